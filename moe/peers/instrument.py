"""Counts the collectives and times the phases of another system's layer from outside.

They are counted because a record that says 0 bytes of a system that sends is wrong in every table.
Active only while bytes are counted or phases recorded; a timed step runs the layer unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moe.parallel.algorithms import CHOSEN, LIBRARY
from moe.parallel.comm import Comm
from moe.phases import phase

NAMES = {"alltoall": "all_to_all", "all_to_all": "all_to_all", "allreduce": "all_reduce",
         "all_reduce": "all_reduce", "allgather": "all_gather", "all_gather": "all_gather",
         "reduce_scatter": "reduce_scatter"}  # fmt: skip


class Part(NamedTuple):
    """A method of a system's object, and the phase of its time."""

    owner: Any
    method: str
    phase: str


@contextmanager
def timed(parts: Sequence[Part]) -> Iterator[None]:
    """Times the parts as phases inside the block; restores the objects afterwards."""
    for part in parts:
        setattr(part.owner, part.method, _inside(part, getattr(part.owner, part.method)))
    try:
        yield
    finally:
        for part in parts:
            delattr(part.owner, part.method)  # uncovers the class's method


def _inside(part: Part, call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def inside(*arguments: Any, **named: Any) -> Any:
        with phase(part.phase):
            return call(*arguments, **named)

    return inside


class Listening(TorchDispatchMode):
    """Counts the collectives that the system calls, as `Comm` counts its own. In training the
    backward exchange of a float all-to-all happens outside the block, and is counted with the
    forward one."""

    def __init__(self, comm: Comm, train: bool) -> None:
        super().__init__()
        self.comm, self.train = comm, train

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "c10d" in func.namespace:
            kind = next((n for word, n in NAMES.items() if word in func.__name__), None)
            if kind is not None:
                self._count(kind, func.namespace == "c10d", args)
        return out

    def _count(self, kind: str, in_place: bool, args: Any) -> None:
        tensors = list(_tensors(args))
        given = tensors[-1] if in_place else tensors[0]  # in-place calls have the result first
        size, rank = self.comm.world_size, self.comm.rank
        if kind == "all_to_all":
            splits = [list(one) for one in args if _is_splits(one)]
            received, sent = [*splits, [], []][:2]
            row = given.nbytes / max(1, given.shape[0])
            even = given.shape[0] / size
            out = row * (sum(sent) - sent[rank] if sent else even * (size - 1))
            into = row * (sum(received) - received[rank] if received else even * (size - 1))
            self.comm.count(kind, "peer", out, into, max(out, into))
            if self.train and given.is_floating_point():
                self.comm.count(kind, "peer", into, out, max(out, into))
            return
        share = {"all_reduce": 2 / size, "all_gather": 1.0, "reduce_scatter": 1 / size}[kind]
        moved = share * (size - 1) * given.nbytes
        by = LIBRARY if kind in CHOSEN else ""
        self.comm.count(kind, "peer", moved, moved, moved, by)


def _is_splits(argument: Any) -> bool:
    sequence = isinstance(argument, list | tuple) and len(argument) > 0
    return sequence and all(isinstance(one, int) for one in argument)


def _tensors(arguments: Any) -> Iterator[Tensor]:
    for one in arguments:
        if isinstance(one, torch.Tensor):
            yield one
        elif isinstance(one, list | tuple):
            yield from _tensors(one)
