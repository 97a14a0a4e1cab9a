"""The order of experts over places: as the user asks, with copies of hot experts, or by load.

Places are numbered over the ranks that share the experts; each rank has the same number.
Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def order_for(cell: Cell, ranks: int, loads: Sequence[int]) -> list[int]:
    """Expert of every place when `ranks` ranks share the experts; `loads` are slots per expert."""
    strategy, experts = cell.strategy, cell.layer.num_experts
    order = primary_order(strategy, experts, ranks)
    if not strategy.hot_replicas:
        return order
    return with_copies(order, ranks, strategy.hot_replicas, loads)


def by_load(loads: Sequence[float], ranks: int) -> list[int]:
    """Expert of each of E places, so that ranks have about the same load: the most loaded expert
    first, each to the least loaded rank that has room (longest processing time first: Graham,
    "Bounds on multiprocessing timing anomalies", SIAM J. Appl. Math. 17, 1969; here with as many
    experts on every rank)."""
    size = len(loads) // ranks
    by_rank: list[list[int]] = [[] for _ in range(ranks)]
    load = [0.0] * ranks
    for expert in sorted(range(len(loads)), key=lambda e: (-loads[e], e)):
        room = (r for r in range(ranks) if len(by_rank[r]) < size)
        rank = min(room, key=lambda r: (load[r], r))
        by_rank[rank].append(expert)
        load[rank] += loads[expert]
    return [expert for on_rank in by_rank for expert in on_rank]
