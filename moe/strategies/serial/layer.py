"""The layer of serial: rank 0 with every core."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from moe.layer.base import MoELayer
from moe.layer.experts import Experts
from moe.strategies.serial import RULES


class Serial(MoELayer):
    rules = RULES

    def make_experts(self) -> Experts:
        return self.hold(()) if self.comm.rank else super().make_experts()

    def make_shared(self) -> Experts | None:
        return None if self.comm.rank else super().make_shared()

    def forward(self, x_BD: Tensor) -> Tensor:
        if self.comm.rank:
            return x_BD.new_empty((0, self.layer.dim_out))
        with every_core(x_BD):
            return self.outputs(x_BD)


@contextmanager
def every_core(x: Tensor) -> Iterator[None]:
    """Uses all cores of this process' affinity inside the block, for CPU tensors."""
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


LAYER = Serial
