"""Chooses the tokens checked in float64: all of a small layer, a sample of a large one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe import weights
from moe.spec import Cell
from moe.verify.definitions import shards

FLOPS = 4e9  # budget of the float64 oracle per rank


def expert_flops(cell: Cell) -> float:
    """FLOPs of one token in one expert, backward included in mode=train."""
    size = sum(math.prod(weights.shape(cell.layer, name)) for name in weights.names(cell.layer))
    return 2.0 * size * (3 if cell.workload.mode == "train" else 1)


def affordable_tokens(cell: Cell) -> int:
    """Number of tokens that the ranks together can check in float64."""
    layer, ranks = cell.layer, cell.placement.world_size
    visits = layer.topk + layer.shared_experts
    return max(2 * ranks, int(FLOPS * ranks / (expert_flops(cell) * visits)))


def sample(cell: Cell, seed: int) -> Tensor:
    """Sorted global ids: the whole batch if affordable, else tokens drawn by `seed` and the first
    and last of every rank's shard."""
    batch, count = cell.workload.batch_size, affordable_tokens(cell)
    if batch <= count:
        return torch.arange(batch)
    drawn = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))[:count]
    ends = [end for low, high in shards(cell) if high > low for end in (low, high - 1)]
    return torch.cat([drawn, torch.tensor(ends)]).unique()
