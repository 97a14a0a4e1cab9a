"""Which rank holds which experts: the order of experts over places, and copies of hot experts.

Places are numbered over the ranks that share the experts; each rank has the same number.

Shape letters: T tokens, K slots of a token, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from moe.spec import Cell, StrategySpec


def primary_order(strategy: StrategySpec, experts: int, ranks: int) -> list[int]:
    """Expert of each of E places: contiguous blocks, round robin, or the user's order."""
    if strategy.placement == "round_robin":
        return [expert for rank in range(ranks) for expert in range(rank, experts, ranks)]
    if strategy.placement == "explicit":
        return list(strategy.expert_order)
    return list(range(experts))


def with_copies(order: Sequence[int], ranks: int, copies: int, loads: Sequence[int]) -> list[int]:
    """Adds `copies` places, the same number on every rank. Each goes to the expert with the most
    load per copy, on the least loaded rank that has room and does not hold it yet."""
    size = len(order) // ranks
    by_rank = [list(order[r * size : (r + 1) * size]) for r in range(ranks)]
    number = dict.fromkeys(order, 1)

    def load(rank: int) -> float:
        return sum(loads[e] / number[e] for e in by_rank[rank])

    for _ in range(copies):
        room = [r for r in range(ranks) if len(by_rank[r]) < size + copies // ranks]
        hot = sorted(number, key=lambda e: (-loads[e] / number[e], e))
        expert, where = next(
            (e, [r for r in room if e not in by_rank[r]])
            for e in hot
            if any(e not in by_rank[r] for r in room)
        )
        rank = min(where, key=lambda r: (load(r), r))
        by_rank[rank].append(expert)
        number[expert] += 1
    return [expert for on_rank in by_rank for expert in on_rank]


@dataclass(frozen=True)
class Places:
    """`experts[p]` is the expert in place p. `table_EC` holds the places of each expert's copies,
    padded with the first. `plain`: place e holds expert e."""

    experts: tuple[int, ...]
    table_EC: Tensor
    copies_E: Tensor
    plain: bool

    def locate(self, indices_TK: Tensor, first_token: int) -> Tensor:
        """[T, K] places; tokens alternate between an expert's copies by global id.

        So which copy computes a slot depends on neither strategy nor rank, and needs no exchange.
        """
        if self.plain:
            return indices_TK
        if self.table_EC.shape[1] == 1:
            return self.table_EC[:, 0][indices_TK]
        last = first_token + indices_TK.shape[0]
        token_T1 = torch.arange(first_token, last, device=indices_TK.device).unsqueeze(1)
        return self.table_EC[indices_TK, token_T1 % self.copies_E[indices_TK]]

    @cached_property
    def copied(self) -> list[int]:
        """Experts that have several copies."""
        return (self.copies_E > 1).nonzero().flatten().tolist()


def places_of(order: Sequence[int], experts: int, device: torch.device) -> Places:
    where: list[list[int]] = [[] for _ in range(experts)]
    for place, expert in enumerate(order):
        where[expert].append(place)
    most = max(map(len, where))
    table = [places + places[:1] * (most - len(places)) for places in where]
    copies = torch.tensor([len(places) for places in where], device=device)
    plain = list(order) == list(range(experts))
    return Places(tuple(order), torch.tensor(table, device=device), copies, plain)


def order_for(cell: Cell, ranks: int, loads: Sequence[int]) -> list[int]:
    """Expert of every place when `ranks` ranks share the experts; `loads` are slots per expert."""
    strategy, experts = cell.strategy, cell.layer.num_experts
    order = primary_order(strategy, experts, ranks)
    if not strategy.hot_replicas:
        return order
    return with_copies(order, ranks, strategy.hot_replicas, loads)
