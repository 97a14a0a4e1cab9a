"""Rules over many tokens: which slots an expert drops when it is full, which tokens an expert
takes.

`router.scope` sets which tokens share a limit: those of one rank's shard of the batch (whichever
ranks route them), or the whole batch. So the rule is the same for every strategy.

Shape letters: T tokens, K slots of a token, E experts, B global batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moe.spec import Cell, LayerSpec, shard_bounds

ROUNDING = 9  # decimals, so that 1.1 * 2 * 50 / 11 gives 10 places, not 11


def places_per_expert(layer: LayerSpec, tokens: int) -> int:
    """ceil(factor * K * tokens / E), at most `tokens`: GShard's expert capacity (Lepikhin et al.
    2020, section 2.2), and expert choice's k (Zhou et al. 2022, section 3.2)."""
    factor = layer.router.capacity_factor or 1.0
    exact = round(factor * layer.topk * tokens / layer.num_experts, ROUNDING)
    return min(tokens, math.ceil(exact))


def extents(cell: Cell) -> list[tuple[int, int]]:
    """Half-open ranges of global token ids that share a limit."""
    batch, ranks = cell.workload.batch_size, cell.placement.world_size
    if cell.layer.router.scope == "global":
        return [(0, batch)]
    return [bounds for r in range(ranks) if len(range(*(bounds := shard_bounds(batch, ranks, r))))]


@dataclass(frozen=True)
class Scope:
    """The tokens a router sees, and how it gets those of other ranks in the same extents.

    `gather` turns [T, ...] of all ranks into [B, ...]; None where nothing is missing. `copies` is
    the number of ranks that route each of these tokens and sum their gradients.
    """

    rows: tuple[int, int]
    extents: tuple[tuple[int, int], ...]
    gather: Callable[[Tensor], Tensor] | None = None
    copies: int = 1

    def each(self, rule: Callable[..., Tensor], *tables: Tensor) -> Tensor:
        """Applies rule(*parts) to every extent that has rows here; returns the results for the rows
        here, [T, ...]."""
        first = 0 if self.gather else self.rows[0]
        if self.gather:
            tables = tuple(self.gather(table) for table in tables)
        low, high = self.rows
        parts = [
            rule(*(table[a - first : b - first] for table in tables))[max(low - a, 0) : high - a]
            for a, b in self.extents
            if a < high and b > low
        ]
        return torch.cat(parts) if parts else rule(*(table[:0] for table in tables))


def keep_first(
    indices_TK: Tensor, weight_TK: Tensor | None, experts: int, places: int, drop: str = "position"
) -> Tensor:
    """[T, K] bool: true for the first `places` slots of every expert. `drop` sets the order:

    position       earlier tokens first, a token's slots together
    first_choices  the first choices of all tokens, then the second ones, ... (GShard, arXiv
                   2006.16668, algorithm 1)
    probability    larger `weight_TK` first, ties by token (Megatron-LM's
                   moe_token_drop_policy=probs)
    """
    flat_S = indices_TK.reshape(-1)
    by = torch.arange(flat_S.numel(), device=flat_S.device)
    if drop == "first_choices":
        by = by.view_as(indices_TK).T.reshape(-1)
    elif drop == "probability":
        assert weight_TK is not None
        by = torch.sort(weight_TK.reshape(-1), descending=True, stable=True)[1]
    order = by[torch.argsort(flat_S[by], stable=True)]
    counts_E = slots_of_experts(flat_S, experts)
    start_E = counts_E.cumsum(0) - counts_E
    position = torch.arange(order.numel(), device=order.device) - start_E[flat_S[order]]
    kept_S = torch.empty_like(order, dtype=torch.bool)
    kept_S[order] = position < places
    return kept_S.view_as(indices_TK)


def slots_of_experts(experts_S: Tensor, experts: int) -> Tensor:
    """[E] int64: how often each expert occurs. torch.bincount makes the host wait for a GPU."""
    if not experts_S.is_cuda:
        return torch.bincount(experts_S, minlength=experts)
    counts_E = experts_S.new_zeros(experts)
    return counts_E.scatter_add(0, experts_S, torch.ones_like(experts_S))


def take_best(scores_TE: Tensor, places: int) -> Tensor:
    """[T, E] bool: true for the `places` best tokens of every expert; ties go to the earlier
    token."""
    best = torch.sort(scores_TE, dim=0, descending=True, stable=True)[1][:places]
    return torch.zeros_like(scores_TE, dtype=torch.bool).scatter(0, best, True)
