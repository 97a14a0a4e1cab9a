"""Ranks and their groups: flat tensor collectives, counted and timed in one place.

This module only moves data; gradients are in `moe.parallel.collectives`. A group of one rank moves
nothing and needs no torch.distributed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from moe import phases
from moe.parallel.algorithms import EXCHANGE, Limits, algorithm
from moe.parallel.traffic import GroupShape

# The name since torch 2.13, or the one before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
HALF = (torch.bfloat16, torch.float16)
_SUM: Any = getattr(dist, "AllreduceOptions", object)()


@dataclass
class Traffic:
    """One rank's bytes for one collective on one group; what stays on the rank is not counted."""

    collective: str
    group: str
    calls: int = 0
    sent_bytes: float = 0
    received_bytes: float = 0
    busbw_bytes: float = 0  # numerator of nccl-tests' bus bandwidth
    algorithm: str = ""  # where there are two: see moe.parallel.algorithms


class Comm:
    """This rank's view of all ranks. Cells that share processes share one Comm."""

    def __init__(self, device: torch.device, world_size: int, rank: int) -> None:
        self.device, self.world_size, self.rank = device, world_size, rank
        self.backend = dist.get_backend() if world_size > 1 else "none"
        self._groups: dict[tuple[int, ...], Any] = {tuple(range(world_size)): None}
        self._traffic: dict[tuple[str, str, str], Traffic] | None = None
        # Among all ranks, as calibrated: see moe.parallel.algorithms.
        self.exchanged: Limits | None = None
        self.world = RankGroup(self, "world", tuple(range(world_size)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Comm:
        return self  # process groups are shared by copies of a layer

    def group(self, shape: GroupShape) -> RankGroup:
        """This rank's group of that shape.

        Collective when the shape is new: all ranks create all its groups together, so every rank
        must ask for the same shapes in the same order.
        """
        for rank in range(self.world_size if 1 < shape.size < self.world_size else 0):
            ranks = shape.ranks_with(rank)
            if rank == ranks[0] and ranks not in self._groups:
                self._groups[ranks] = dist.new_group(list(ranks))
        return RankGroup(self, shape.name, shape.ranks_with(self.rank))

    def process_group(self, ranks: tuple[int, ...]) -> Any:
        return self._groups.get(ranks)

    @contextmanager
    def counting(self) -> Iterator[list[dict[str, Any]]]:
        """Yields a list that holds, when the block has ended, one row per collective and group."""
        rows: list[dict[str, Any]] = []
        self._traffic = {}
        try:
            yield rows
        finally:
            rows.extend(asdict(row) for row in self._traffic.values())
            self._traffic = None

    @contextmanager
    def exchanging(self, limits: Limits | None) -> Iterator[None]:
        """Uses these limits for exchanges among all ranks inside the block."""
        before, self.exchanged = self.exchanged, limits
        try:
            yield
        finally:
            self.exchanged = before

    def count(
        self,
        collective: str,
        group: str,
        sent: float,
        received: float,
        bus: float,
        algorithm: str = "",
    ) -> None:
        if self._traffic is None:
            return
        key = collective, group, algorithm
        row = self._traffic.setdefault(key, Traffic(collective, group, algorithm=algorithm))
        row.calls += 1
        row.sent_bytes += sent
        row.received_bytes += received
        row.busbw_bytes += bus

    @property
    def is_counting(self) -> bool:
        return self._traffic is not None

    def barrier(self) -> None:
        self.world.barrier()


@dataclass(frozen=True)
class RankGroup:
    """Ranks that exchange data with each other. Collectives work on the first dimension (rows)."""

    comm: Comm
    name: str
    ranks: tuple[int, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> RankGroup:
        return self

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def index(self) -> int:
        return self.ranks.index(self.comm.rank)

    @property
    def pg(self) -> Any:
        """torch.distributed's group; None for all ranks."""
        return self.comm.process_group(self.ranks)

    @property
    def _own(self) -> Any:
        """The process group if it is written in Python (runners.mpi.backend), else None.
        Its methods are called directly then, because torch's wrapper takes as long as a small
        message."""
        if self.comm.backend != "mpi4py":
            return None
        return self.pg or dist.group.WORLD

    @property
    def _staged(self) -> bool:
        """Whether data is copied through the host because the backend cannot read the device (never
        timed)."""
        return self.comm.device.type == "cuda" and self.comm.backend != "nccl"

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self.pg)

    def _begin(
        self, name: str, sent: float, received: float, bus: float | None = None, algorithm: str = ""
    ) -> None:
        bus = received if bus is None else bus
        self.comm.count(name, self.name, sent, received, bus, algorithm)
        self.line_up()

    def line_up(self) -> None:
        """Where phases are timed, ranks wait for each other before a collective."""
        if phases.active():
            with phases.phase("wait"):
                self.meet()

    def meet(self) -> None:
        """Ranks wait for each other: on their GPUs with NCCL, where no host waits."""
        if self.comm.backend == "nccl":
            dist.all_reduce(torch.zeros(1, device=self.comm.device), group=self.pg)
        else:
            self.barrier()

    def _run(self, call: Callable[..., Any], out: Tensor, *inputs: Tensor) -> Tensor:
        """call(out, *inputs) on memory that the backend can read; returns the filled `out`."""
        if not self._staged:
            call(out, *inputs)
            return out
        host = out.cpu()
        call(host, *(x.cpu() for x in inputs))
        return out.copy_(host)

    def all_reduce_(self, x: Tensor) -> Tensor:
        """Sums x over the group, in place."""
        if self.size == 1:
            return x
        by, ring = self._algorithm("all_reduce", x), 2 * (self.size - 1) / self.size * x.nbytes
        moved = (self.size - 1) * x.nbytes if by == EXCHANGE else ring
        self._begin("all_reduce", moved, moved, ring, by)
        if by == EXCHANGE:
            return x.copy_(add_in_order(self._from_all(x.reshape(1, -1))).view_as(x))
        own = self._own
        if own is not None:
            own.allreduce([x], _SUM)
            return x
        return self._run(lambda out: dist.all_reduce(out, group=self.pg), x)

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """[sum(sizes), ...] rows of every member in rank order; sent rows are padded to the
        longest."""
        if self.size == 1:
            return x
        longest = max(sizes)
        if x.shape[0] < longest:
            x = F.pad(x, (0, 0) * (x.dim() - 1) + (0, longest - x.shape[0]))
        x = x.contiguous()
        by, moved = self._algorithm("all_gather", x), (self.size - 1) * x.nbytes
        self._begin("all_gather", moved, moved, algorithm=by)
        out = self._from_all(x) if by == EXCHANGE else self._gathered(x)
        if min(sizes) == longest:
            return out
        return torch.cat([out[i * longest : i * longest + n] for i, n in enumerate(sizes)])

    def _gathered(self, x: Tensor) -> Tensor:
        """Every member's x, concatenated in rank order, by the library's all-gather."""
        out, own = x.new_empty((self.size * x.shape[0], *x.shape[1:])), self._own
        if own is not None:
            own.all_gather_single(out, x)
            return out
        return self._run(lambda o, i: _all_gather(o, i, group=self.pg), out, x)

    def reduce_scatter(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """This rank's `sizes[index]` rows of the sum over the group.

        Without NCCL it is an all-to-all and a local sum: several times faster on gloo, and half
        precision is then summed in float32.
        """
        if self.size == 1:
            return x
        x, own = x.contiguous(), sizes[self.index]
        row_bytes = x.nbytes / max(x.shape[0], 1)
        received = (self.size - 1) * own * row_bytes
        self._begin("reduce_scatter", x.nbytes - own * row_bytes, received)
        if self.comm.backend == "nccl" and min(sizes) == max(sizes):
            out = x.new_empty((own, *x.shape[1:]))
            dist.reduce_scatter_tensor(out, x, group=self.pg)
            return out
        parts = x.new_empty((self.size * own, *x.shape[1:]))
        self._exchange(parts, x, [own] * self.size, list(sizes))
        return add_in_order(parts.view(self.size, own, *x.shape[1:]))

    def all_to_all(
        self, x: Tensor, received: Sequence[int], sent: Sequence[int], wait: bool = True
    ) -> tuple[Tensor, Any]:
        """Sends `sent[i]` rows to member i and receives `received[i]`. Returns (rows, open work or
        None)."""
        if self.size == 1:
            return x, None
        x = x.contiguous()
        out = x.new_empty((sum(received), *x.shape[1:]))
        row_bytes = x.element_size() * (x[0].numel() if x.shape[0] else out[:1].numel())
        out_bytes = (sum(received) - received[self.index]) * row_bytes
        in_bytes = (sum(sent) - sent[self.index]) * row_bytes
        self._begin("all_to_all", in_bytes, out_bytes, max(in_bytes, out_bytes))
        return out, self._exchange(out, x, list(received), list(sent), wait)

    def _algorithm(self, collective: str, x: Tensor) -> str:
        whole = self.size == self.comm.world_size
        calibrated = self.comm.exchanged if whole else None
        backend = self.comm.backend
        return algorithm(collective, x.nbytes, self.size, backend=backend, calibrated=calibrated)

    def _from_all(self, x: Tensor) -> Tensor:
        """Every member's x, concatenated in rank order, by one exchange."""
        out = x.new_empty((self.size * x.shape[0], *x.shape[1:]))
        rows = [x.shape[0]] * self.size
        self._exchange(out, x.repeat(self.size, *[1] * (x.dim() - 1)), rows, rows)
        return out

    def _exchange(
        self, out: Tensor, x: Tensor, received: list[int], sent: list[int], wait: bool = True
    ) -> Any:
        own = self._own
        if own is not None:
            return own.all_to_all_single(out, x, received, sent)
        if not wait and not self._staged:
            return dist.all_to_all_single(out, x, received, sent, group=self.pg, async_op=True)
        self._run(lambda o, i: dist.all_to_all_single(o, i, received, sent, group=self.pg), out, x)
        return None

    # Not part of a step: neither counted nor timed.

    def combine_(self, x: Tensor, operation: str = "max") -> Tensor:
        """Reduces x over the group in place by max, min or sum."""
        if self.size > 1 and self._algorithm("all_reduce", x) == EXCHANGE:
            parts = self._from_all(x.reshape(1, -1))
            x.copy_(REDUCE[operation](parts).view_as(x))
        elif self.size > 1:
            kind = {"max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN, "sum": dist.ReduceOp.SUM}
            self._run(lambda out: dist.all_reduce(out, kind[operation], group=self.pg), x)
        return x

    def broadcast_(self, x: Tensor) -> Tensor:
        """Gives every member the first member's x, in place."""
        if self.size > 1:
            self._run(lambda out: dist.broadcast(out, self.ranks[0], group=self.pg), x)
        return x


def add_in_order(parts: Tensor) -> Tensor:
    """Sums over the first dimension in order, so that all ranks round alike; half precision is
    summed in float32."""
    total = parts[0].float() if parts.dtype in HALF else parts[0].clone()
    for part in parts[1:]:
        total += part
    return total.to(parts.dtype)


REDUCE: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": add_in_order,
    "max": lambda parts: parts.amax(0),
    "min": lambda parts: parts.amin(0),
}
