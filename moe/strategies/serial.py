"""serial: one process does everything, the honest baseline of any speed-up.

Rank 0 holds all weights and uses every core; the other ranks hold nothing and sleep. No
collectives.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from moe.layer.base import MoELayer, Reductions
from moe.layer.capacity import Scope
from moe.layer.experts import Experts


class Serial(MoELayer):
    def routed_rows(self) -> tuple[int, int]:
        return (0, self.total) if self.comm.rank == 0 else (0, 0)

    def make_experts(self) -> Experts:
        return self.hold(range(self.layer.num_experts if self.comm.rank == 0 else 0))

    def make_shared(self) -> Experts | None:
        return None if self.comm.rank else super().make_shared()

    def routed_by(self) -> None:
        return None

    def scope(self) -> Scope:
        """One rank has the loss, whole."""
        return replace(super().scope(), copies=1)

    def reductions(self) -> Reductions:
        return []

    def forward(self, x_BD: Tensor) -> Tensor:
        if self.comm.rank:
            return x_BD.new_empty((0, self.layer.dim_out))
        with every_core(x_BD):
            return self.plus_shared(self.mix(x_BD, self.route(x_BD)), x_BD)


@contextmanager
def every_core(x: Tensor) -> Iterator[None]:
    """All cores of this process' affinity, for CPU tensors, and the old number afterwards."""
    before = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if x.is_cuda or cores == before:
        yield
        return
    torch.set_num_threads(cores or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
