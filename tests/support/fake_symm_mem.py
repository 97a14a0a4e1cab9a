"""A stand-in of torch's two operations on symmetric memory, for ranks on the simulated GPU.

    with FakeCuda(), nccl_only(comm_module), FakeSymmMem(gathered):
        ...

It gives the semantics of PyTorch's torch/csrc/distributed/c10d/symm_mem/nvshmem_extension.cu to
real values, and holds what the kernels leave to their callers:

- every argument is contiguous symmetric memory that all ranks have made alike; rows have one dtype
  and width; splits and offsets are int64, [X] and [2, X];
- at most 16 ranks and 16 experts of a rank, which both operations take;
- `all_to_all_vdev_2d` rounds the rows of an expert up to `major_align`, at least to one row;
- rows that do not fit raise; what is not written is undefined: NaN in all of `out` but its rows;
- an operation reads the others' memory, and has no barrier at its end: what a rank gave one to read
  from must be unchanged when the next one begins.

Not simulated: that the table of offsets holds other numbers while an operation runs, and memory
that is freed.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed._symmetric_memory as symmetric
from torch import Tensor

from tests.support.fake_cuda_queue import simulating
from tests.support.fake_cuda_tensor import DEVICE, OnDevice

MOST_RANKS, MOST_EXPERTS = 16, 16  # of both operations together
Gather = Callable[[str, Any], list[Any]]  # (group's name, own) -> of all its members, in order
WORLD = "0"


class Arrival(NamedTuple):
    """Rows that one rank receives from another's chunk: `count` from row `source` of `peer` on, to
    row `target` on."""

    peer: int
    source: int
    target: int
    count: int


def starts(counts: list[int]) -> list[int]:
    """The exclusive running sum."""
    return [0, *itertools.accumulate(counts)][:-1]


def to_experts(splits: list[list[int]], me: int, align: int) -> list[Arrival]:
    """What rank `me` receives in all_to_all_vdev_2d where rank r sends splits[r][e] rows to expert
    e of all: by expert here, then by source; each expert's part is rounded up to `align` rows, at
    least one `align`."""
    ranks = len(splits)
    experts = len(splits[0]) // ranks
    arrivals, first = [], 0
    for expert in range(me * experts, (me + 1) * experts):
        target = first
        for peer, sent in enumerate(splits):
            arrivals.append(Arrival(peer, starts(sent)[expert], target, sent[expert]))
            target += sent[expert]
        first += max(-(-(target - first) // align) * align, align)
    return arrivals


def from_experts(tables: list[tuple[list[int], list[int]]], me: int) -> list[Arrival]:
    """What rank `me` receives in all_to_all_vdev_2d_offset where rank r has rows from offsets[x]
    on, splits[x] of them, for each x = expert here * ranks + rank they go to: by the rank they come
    from, then by its expert, without gaps."""
    ranks = len(tables)
    experts = len(tables[0][0]) // ranks
    arrivals, target = [], 0
    for peer, (splits, offsets) in enumerate(tables):
        for expert in range(experts):
            chunk = expert * ranks + me
            arrivals.append(Arrival(peer, offsets[chunk], target, splits[chunk]))
            target += splits[chunk]
    return arrivals


class FakeSymmMem:
    """torch's symmetric memory on NVSHMEM, while the block lasts; `available` is whether there is
    NVSHMEM. `gather` is how ranks meet, `index` this one's place in a group."""

    def __init__(self, gather: Gather, index: Callable[[str], int], available: bool = True) -> None:
        self.gather, self.index, self.available = gather, index, available
        self.backend: str | None = None
        self.known: dict[int, tuple[OnDevice, set[str]]] = {}  # by address: groups it is known in
        self.calls: list[str] = []
        self._read: tuple[Tensor, Tensor] | None = None  # what others may still read; as it was
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> FakeSymmMem:
        for name in ("empty", "rendezvous", "set_backend", "get_backend"):
            patch = mock.patch.object(symmetric, name, getattr(self, name))
            self._patches.enter_context(patch)
        available = mock.patch.object(symmetric, "is_nvshmem_available", lambda: self.available)
        self._patches.enter_context(available)
        for name in ("all_to_all_vdev_2d", "all_to_all_vdev_2d_offset"):
            patch = mock.patch.object(torch.ops.symm_mem, name, getattr(self, name))
            self._patches.enter_context(patch)
        return self

    def __exit__(self, *error: Any) -> None:
        self._patches.close()

    # torch.distributed._symmetric_memory

    def set_backend(self, name: str) -> None:
        assert self.available, "there is no NVSHMEM"
        if self.known:
            raise RuntimeError("the backend cannot be changed once there is symmetric memory")
        self.backend = name

    def get_backend(self, device: Any) -> str | None:
        return self.backend

    def empty(self, *size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Collective over all ranks, with the same size on each."""
        assert torch.device(device) == DEVICE
        if self.backend != "NVSHMEM":
            raise RuntimeError("symmetric memory of another backend cannot be exchanged")
        wanted = self.gather(WORLD, (size, str(dtype)))
        if any(one != wanted[0] for one in wanted):
            raise RuntimeError(f"symmetric memory is not the same on all ranks: {wanted}")
        with simulating():
            value = torch.full(size, 113, dtype=dtype)  # undefined: as floats neither 0 nor NaN
            made = OnDevice(value)
        self.known[made.data_ptr()] = made, set()
        return made

    def rendezvous(self, tensor: Tensor, group: Any) -> None:
        self._known(tensor)[1].add(group if isinstance(group, str) else group.group_name)

    def _known(self, x: Tensor) -> tuple[OnDevice, set[str]]:
        if not isinstance(x, OnDevice) or x.untyped_storage().data_ptr() not in self.known:
            raise RuntimeError("Pointer not within any SymmetricMemory allocation")
        return self.known[x.untyped_storage().data_ptr()]

    # torch.ops.symm_mem

    def all_to_all_vdev_2d(
        self, rows: Tensor, out: Tensor, in_splits: Tensor, out_splits_offsets: Tensor,
        group_name: str, major_align: int | None = None,
    ) -> None:  # fmt: skip
        align = 1 if major_align is None else major_align
        assert align > 0, "major_align must be positive"
        tables = self._begun("there", rows, out, in_splits, out_splits_offsets, group_name)
        if in_splits.dim() != 1:
            raise RuntimeError("splits must have one dimension")
        splits = [table for table, _ in tables]
        for table, given in tables:
            assert min(table) >= 0, "split value is negative"
            assert sum(table) <= len(given), "sum of splits is larger than input dim"
        me = self.index(group_name)
        self._finish(to_experts(splits, me, align), [x for _, x in tables], out, out_splits_offsets)

    def all_to_all_vdev_2d_offset(
        self, rows: Tensor, out: Tensor, in_splits_offsets: Tensor, out_splits_offsets: Tensor,
        group_name: str,
    ) -> None:  # fmt: skip
        tables = self._begun("back", rows, out, in_splits_offsets, out_splits_offsets, group_name)
        if in_splits_offsets.dim() != 2 or len(in_splits_offsets) != 2:
            raise RuntimeError("in_splits_offsets must be 2D with 2 rows")
        me = self.index(group_name)
        both = [(table[0], table[1]) for table, _ in tables]
        self._finish(from_experts(both, me), [x for _, x in tables], out, out_splits_offsets)

    def _begun(
        self, call: str, rows: Tensor, out: Tensor, table: Tensor, out_table: Tensor, group: str
    ) -> list[tuple[Any, Tensor]]:
        """Checks the arguments; then every rank's table and rows, in the order of ranks."""
        self.calls.append(call)
        for x in (rows, out, table, out_table):
            if group not in self._known(x)[1]:
                raise RuntimeError("no rendezvous of this memory in the group")
            if not x.value.is_contiguous():  # type: ignore[attr-defined]
                raise RuntimeError("input, out, splits and offsets must be contiguous")
            address = x.untyped_storage().data_ptr()
            if x.data_ptr() != address:
                raise RuntimeError("memory of an operation must begin where it was made")
        if rows.dtype != out.dtype or rows.stride(0) != out.stride(0):
            raise RuntimeError("input and out must have the same dtype and same stride at dim 0")
        if table.dtype != torch.int64 or out_table.dtype != torch.int64:
            raise RuntimeError("splits and offsets must be int64")
        if rows.untyped_storage().data_ptr() == out.untyped_storage().data_ptr():
            raise RuntimeError("an operation reads what it writes to")
        if out_table.dim() != 2 or out_table.shape != (2, table.shape[-1]):
            raise RuntimeError("out_splits_offsets must be 2D with 2 rows")
        if self._read is not None and not _same(*self._read):
            raise RuntimeError("memory was written to that other ranks may still read")
        with simulating():
            value = rows.value.clone()  # type: ignore[attr-defined]
            mine = (table.value.tolist(), value)  # type: ignore[attr-defined]
            everyone = self.gather(group, mine)
        ranks = len(everyone)
        if table.shape[-1] % ranks:
            raise RuntimeError("each row must be a multiple of world_size")
        if ranks > MOST_RANKS or table.shape[-1] // ranks > MOST_EXPERTS:
            raise RuntimeError("too many ranks, or experts of a rank")
        self._read = rows.value, value  # type: ignore[attr-defined]
        return everyone

    def _finish(
        self, arrivals: list[Arrival], given: list[Tensor], out: Tensor, out_table: Tensor
    ) -> None:
        value = out.value  # type: ignore[attr-defined]
        with simulating(), torch.no_grad():
            value.fill_(torch.nan)
            for peer, source, target, count in arrivals:
                if source + count > len(given[peer]) or target + count > len(value):
                    raise RuntimeError("an illegal memory access was encountered")
                value[target : target + count] = given[peer][source : source + count]
            splits, offsets = [a.count for a in arrivals], [a.target for a in arrivals]
            out_table.value.copy_(torch.tensor([splits, offsets]))  # type: ignore[attr-defined]


def _same(now: Tensor, then: Tensor) -> bool:
    """Whether memory is unchanged, NaN included."""
    with simulating():
        return torch.equal(now.view(torch.uint8), then.view(torch.uint8))
