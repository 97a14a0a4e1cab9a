"""Which tokens the gate checks: all of a small layer, a bounded sample of a large one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe import weights, workload
from moe.spec import Cell

_FLOPS = 4e9  # of the float64 oracle per rank
_WEIGHTS = 3e8  # elements it may generate per rank


def expert_size(cell: Cell) -> int:
    """Elements of one expert."""
    return sum(math.prod(weights.shape(cell.layer, n)) for n in weights.names(cell.layer))


def sample(cell: Cell, rank: int, table_BK: Tensor) -> Tensor:
    """Sorted global ids out of this rank's shard, always with its first and its last token. The
    table has the experts of every token, -1 for a slot that is dropped.

    Further tokens are drawn by seed until the work or the number of distinct experts is used up;
    tokens that need no further expert come first.
    """
    low, high = workload.own_rows(cell, rank)
    ids = torch.arange(low, high)
    size, layer = expert_size(cell), cell.layer
    most_tokens = max(2, int(_FLOPS / (2 * size * layer.topk)))
    most_experts = max(1, int(_WEIGHTS / size))
    own_TK = table_BK[low:high].cpu()
    if len(ids) <= most_tokens and len(own_TK.unique()) <= most_experts:
        return ids
    random = torch.Generator().manual_seed(cell.workload.seed)
    order = torch.randperm(len(ids), generator=random)
    ends = torch.tensor([0, len(ids) - 1])
    order = torch.cat([ends, order[(order != 0) & (order != len(ids) - 1)]])
    experts = own_TK[order[: max(2, most_experts // layer.topk)]].unique()
    covered = (torch.isin(own_TK[order], experts) | (own_TK[order] < 0)).all(dim=1)
    return ids[order[covered][:most_tokens]].unique()
