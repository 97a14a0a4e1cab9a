"""Dispatch through symmetric memory (experimental): splits and offsets stay on the GPU, so no host
waits for the number of rows that come and go.

    forward    slots       ─ copy ─ leaving    all_to_all_vdev_2d          arrived ─ experts
               results     ─ copy ─ passing    all_to_all_vdev_2d_offset   returned ─ gated sum
    backward   of results  ─ copy ─ leaving    all_to_all_vdev_2d          passing ─ experts
               of rows     ─ copy ─ passing    all_to_all_vdev_2d_offset   returned ─ of slots

Four buffers of symmetric memory: `leaving` and `returned` have room for a rank's slots, `arrived`
and `passing` for all rows that can reach it. With G ranks those are up to G times the rows of an
even routing, and whatever works on rows passes over all of them but the products. Buffers stay
until the process ends, because to free symmetric memory all ranks must meet; a cell uses those of
an earlier one that are large enough.

Each operation (torch.ops.symm_mem, on NVSHMEM) begins with a barrier of the group and then reads
the others' memory; it ends without one. So what a rank gives to read must not change before the
next operation has begun: two in a row never read the same buffer. `arrived` keeps the rows that the
experts' backward pass needs, so a step's backward pass must come before the next forward pass.

Rows arrive by place, then by source. `major_align` is 1, the least that the operation takes:
F.grouped_mm takes groups of any number of rows, since a row's bytes are a multiple of 16. With 1 a
place without rows still has one of padding. It is set to zero in both directions, so that it adds
nothing to the gradients of weights. Rows behind those of the last place are undefined.

Shape letters: T tokens, K top-k, S slots of these tokens, N rows that can be here, P places here, G
ranks of the group, X = G * P, D and O columns.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric
from torch import Tensor

from moe import waits
from moe.parallel.comm import RankGroup
from moe.parallel.dispatch import Compute, Way
from moe.parallel.permute import permute, sort_slots, unpermute
from moe.parallel.row_counts import RowCounts
from moe.parallel.symm_mem_limits import FIELD, OTHER, Room
from moe.parallel.symm_mem_limits import SYMM_MEM as SYMM_MEM
from moe.parallel.traffic import SPLIT_BYTES
from moe.phases import phase
from moe.spec import Unsupported

NVSHMEM: Final = "NVSHMEM"
ALIGN = 1

_kept: dict[tuple[int, ...], list[Buffers]] = {}  # by the ranks of the group


class Buffers:
    """Symmetric memory of one rank for exchanges in `group`. Collective over all ranks: each makes
    that of its own group, with the same room."""

    def __init__(self, group: RankGroup, room: Room) -> None:
        self.group, self.room = group, room
        world: Any = dist.group.WORLD
        self.pg: Any = world if group.pg is None else group.pg
        self.name: str = self.pg.group_name
        self.turn = 0  # forward passes so far
        self.last: Tensor | None = None  # what the last operation read from
        splits = group.size * room.places
        with torch.inference_mode(False):
            slots, rows = (count * room.row_bytes for count in (room.slots, room.rows))
            self.leaving, self.returned = self._new(slots), self._new(slots)
            self.arrived, self.passing = self._new(rows), self._new(rows)
            self.leaving_X = self._new(splits, torch.int64)  # rows to each place of the group
            # Splits and offsets: of rows by place here and source, and by member and place there.
            self.arrived_2X = self._new(2 * splits, torch.int64).view(2, splits)
            self.returned_2X = self._new(2 * splits, torch.int64).view(2, splits)

    def __deepcopy__(self, memo: dict[int, Any]) -> Buffers:
        return self  # copies of a layer take turns

    def _new(self, size: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        buffer = symmetric.empty(size, dtype=dtype, device=self.group.comm.device)
        symmetric.rendezvous(buffer, self.pg)
        return buffer

    def fit(self, room: Room) -> bool:
        """Whether a layer with that room can use these."""
        own = self.room
        slots = room.slots * room.row_bytes <= own.slots * own.row_bytes
        rows = room.rows * room.row_bytes <= own.rows * own.row_bytes
        return room.places == own.places and slots and rows


def buffers_of(group: RankGroup, room: Room) -> Buffers:
    """Symmetric memory with that room, new or of an earlier layer. Collective over all ranks.

    Raises Unsupported where there is no NVSHMEM.
    """
    if not symmetric.is_nvshmem_available():
        raise Unsupported(
            FIELD, SYMM_MEM, "symm_mem where torch finds NVSHMEM",
            f"install torch for CUDA with its package of NVSHMEM, or set {OTHER}",
        )  # fmt: skip
    if symmetric.get_backend(group.comm.device) != NVSHMEM:
        symmetric.set_backend(NVSHMEM)
    earlier = _kept.setdefault(group.ranks, [])
    for buffers in earlier:
        if buffers.fit(room):
            return buffers
    earlier.append(Buffers(group, room))
    return earlier[-1]


class Exchange:
    """One layer's way through symmetric memory, in its group."""

    def __init__(self, group: RankGroup, room: Room) -> None:
        self.group, self.room = group, room
        self.buffers = buffers_of(group, room)

    def there(self, x_SD: Tensor, counts: RowCounts) -> Tensor:
        """[N, D]: the rows that come here of those that all ranks send, `counts` to each place of
        the group, which lie in the order of places."""
        self.buffers.turn += 1
        self.buffers.leaving_X.copy_(counts.per_expert(x_SD.device))
        if torch.is_grad_enabled() and x_SD.requires_grad:
            return _There.apply(x_SD, self)  # type: ignore[no-any-return]
        return self.to_places(x_SD, self.buffers.arrived)

    def back(self, y_NO: Tensor, slots: int) -> Tensor:
        """[S, O]: the results of the S=`slots` rows that were sent, in their order."""
        if torch.is_grad_enabled() and y_NO.requires_grad:
            return _Back.apply(y_NO, self, slots)  # type: ignore[no-any-return]
        return self.from_places(y_NO, slots)

    def counts(self) -> RowCounts:
        """Rows at each place, in memory that no other rank writes to. A place's rows end where the
        next one's begin, so that padding between them is its own."""
        splits_PG, offsets_PG = self.buffers.arrived_2X.view(2, -1, self.group.size)
        counts_P = splits_PG.sum(1)
        last = offsets_PG[-1:, 0] + counts_P[-1:]
        ends_P = torch.cat([offsets_PG[1:, 0], last]).to(torch.int32)
        return RowCounts(counts_P=counts_P, ends_P=ends_P)

    def to_places(self, x_SD: Tensor, target: Tensor) -> Tensor:
        """Sends rows to the ranks of their places: a view [N, D] of the buffer `target`."""
        buffers = self.buffers
        x_SD = self._readable(x_SD, buffers.leaving, self.room.slots)
        out_ND = _rows(target, self.room.rows, x_SD)
        self.group.line_up()
        torch.ops.symm_mem.all_to_all_vdev_2d(
            x_SD, out_ND, buffers.leaving_X, buffers.arrived_2X, buffers.name, major_align=ALIGN
        )
        splits_PG, offsets_PG = buffers.arrived_2X.view(2, -1, self.group.size)
        start_P, empty_P1 = offsets_PG[:, 0], splits_PG.sum(1, keepdim=True) == 0
        first_PD = out_ND.index_select(0, start_P)
        out_ND.index_copy_(0, start_P, first_PD.masked_fill(empty_P1, 0))
        self._count(x_SD, back=False)
        return out_ND.detach()  # for autograd no view of what later steps write to

    def from_places(self, y_NO: Tensor, slots: int) -> Tensor:
        """Sends rows back: a view [S, O] of the buffer `returned`, S=`slots`. Those behind the rows
        that were sent are undefined."""
        buffers = self.buffers
        y_NO = self._readable(y_NO, buffers.passing, self.room.rows)
        out_SO = _rows(buffers.returned, self.room.slots, y_NO)
        self.group.line_up()
        torch.ops.symm_mem.all_to_all_vdev_2d_offset(
            y_NO, out_SO, buffers.arrived_2X, buffers.returned_2X, buffers.name
        )
        self._count(y_NO, back=True)
        return out_SO[:slots].detach()

    def _readable(self, x: Tensor, buffer: Tensor, rows: int) -> Tensor:
        """A view [rows, columns] of `buffer` that begins with x, for other ranks to read."""
        if buffer is self.buffers.last:  # the last step was not finished
            self.group.meet()
        self.buffers.last = buffer
        view = _rows(buffer, rows, x)
        view[: len(x)].copy_(x)
        return view

    def _count(self, rows: Tensor, back: bool) -> None:
        """Counts an exchange of splits and one of rows. The host waits only where bytes are
        counted."""
        group, comm, buffers = self.group, self.group.comm, self.buffers
        if not comm.is_counting:
            return
        splits = (group.size - 1) * self.room.places * SPLIT_BYTES
        comm.count("all_to_all", group.name, splits, splits, splits)
        leaving_G = buffers.leaving_X.view(group.size, -1).sum(1)
        arrived_G = buffers.arrived_2X[0].view(-1, group.size).sum(0)
        both_2G = waits.to_host(torch.stack([leaving_G, arrived_G]))
        row_bytes = rows.shape[1] * rows.element_size()
        sent, received = ((sum(one_G) - one_G[group.index]) * row_bytes for one_G in both_2G)
        if back:
            sent, received = received, sent
        comm.count("all_to_all", group.name, sent, received, max(sent, received))


class _There(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_SD: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange, ctx.turn, ctx.slots = exchange, exchange.buffers.turn, len(x_SD)
        return exchange.to_places(x_SD, exchange.buffers.arrived)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None]:
        _require(ctx)
        return ctx.exchange.from_places(grad_ND, ctx.slots), None


class _Back(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_NO: Tensor, exchange: Exchange, slots: int) -> Tensor:
        ctx.exchange, ctx.turn = exchange, exchange.buffers.turn
        return exchange.from_places(y_NO, slots)

    @staticmethod
    def backward(ctx: Any, grad_SO: Tensor) -> tuple[Tensor, None, None]:
        _require(ctx)
        exchange = ctx.exchange
        return exchange.to_places(grad_SO, exchange.buffers.passing), None, None


def _require(ctx: Any) -> None:
    if ctx.turn != ctx.exchange.buffers.turn:
        raise RuntimeError(
            "strategy.dispatcher=symm_mem: the rows of a forward pass were overwritten by a later "
            "one before its backward pass"
        )


def _rows(buffer: Tensor, rows: int, like: Tensor) -> Tensor:
    """A view [rows, columns of `like`] of a buffer of bytes, in the dtype of `like`."""
    size = rows * like.shape[1] * like.element_size()
    return buffer[:size].view(like.dtype).view(rows, like.shape[1])


def exchanged(
    x_TD: Tensor, places_TK: Tensor, gates_TK: Tensor, way: Way, compute: Compute,
    exchange: Exchange,
) -> Tensor:  # fmt: skip
    """[T, O]: `moe.parallel.dispatch.alltoall` through symmetric memory."""
    with phase("permute"):
        slots = sort_slots(places_TK, way.places, "padded" if way.drops else "kept")
        x_SD = permute(x_TD, slots)
    with phase("dispatch"):
        x_ND = exchange.there(x_SD, slots.counts)
        counts = exchange.counts()
    y_NO = compute(x_ND, counts)
    with phase("combine"):
        y_SO = exchange.back(y_NO, len(x_SD))
    with phase("unpermute"):
        return unpermute(y_SO, gates_TK, slots)
