"""Forced balance that is not labelled: slots that are equal for all experts, as chance would hardly
have it.

E experts, K top-k, N tokens.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from moe.spec import Cell, RouterSpec

# Workloads in which every token draws its experts by itself. The others prescribe counts; what a
# trace prescribes is not in the record.
DRAWN = ("learned", "zipf", "k_hot")
# A thousandth of what an honest cell may have: where tokens that choose one expert tend to choose
# another too, equal slots are likelier than `probability` says.
UNLIKELY = 1e-9
_PLAIN = RouterSpec()


def probability(tokens: int, experts: int, topk: int) -> float:
    """Estimate of the probability that all experts get equally many slots, where every token draws
    `topk` different ones of equally popular experts.

    C(N, m)^E / C(N E, N K) with m = N K / E slots of an expert: E independent counts of slots, each
    of N draws, given their sum. It is above the exact probability, which a test counts out.
    Experts that are not equally popular have equal slots more rarely.
    """
    share = tokens * topk // experts
    equal = experts * _log_choose(tokens, share)
    return math.exp(min(0.0, equal - _log_choose(tokens * experts, tokens * topk)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def are_equal(cell: Cell, expert_slots: Sequence[float]) -> bool:
    """Whether all experts have equally many slots, although not every token visits all experts."""
    return len(set(expert_slots)) == 1 and 1 <= cell.layer.topk < cell.layer.num_experts


def are_drawn(cell: Cell) -> bool:
    """Whether the cell's tokens draw some of the experts freely.

    Groups, limits and biases of a router, and workloads that prescribe counts, can make slots
    equal: such cells pass.
    """
    router, layer = cell.layer.router, cell.layer
    return (
        cell.workload.kind in DRAWN
        and 1 <= layer.topk < layer.num_experts
        and router.kind == _PLAIN.kind
        and router.groups == _PLAIN.groups
        and router.selection_bias == _PLAIN.selection_bias
        and not router.capacity_factor
    )


def are_missing(cell: Cell, expert_slots: Sequence[float]) -> bool:
    """Whether experts are drawn freely, and their slots are not recorded, or not of all tokens."""
    slots = cell.workload.batch_size * cell.layer.topk
    are_whole = len(expert_slots) == cell.layer.num_experts and sum(expert_slots) == slots
    return are_drawn(cell) and not are_whole


def are_suspicious(cell: Cell, expert_slots: Sequence[float]) -> bool:
    """Whether the slots are equal although the cell's tokens draw their experts freely, and chance
    makes that UNLIKELY.
    """
    one = routing(cell, expert_slots)
    return one is not None and one.is_equal and one.probability(one.tokens) < UNLIKELY


class Routing(NamedTuple):
    """A free draw of experts, the same for every strategy.

    Draws of one `stream` are of the same random numbers: a larger batch begins with the tokens of
    a smaller one. Those of different streams are independent.
    """

    stream: tuple[Hashable, ...]
    experts: int
    topk: int
    dtype: str  # near ties may go otherwise in another
    tokens: int
    is_equal: bool

    def probability(self, tokens: int) -> float:
        """Estimate of the probability of equal slots of that many tokens."""
        return probability(tokens, self.experts, self.topk)


def routing(cell: Cell, expert_slots: Sequence[float]) -> Routing | None:
    """The routing of a cell; None where its slots are missing or prescribed."""
    layer, work = cell.layer, cell.workload
    if not are_drawn(cell) or are_missing(cell, expert_slots):
        return None
    stream = ("learned", work.seed, layer.dim) if work.kind == "learned" else ("drawn", work.seed)
    is_equal = are_equal(cell, expert_slots)
    return Routing(stream, layer.num_experts, layer.topk, layer.dtype, work.batch_size, is_equal)


def chance(routings: Iterable[Routing]) -> float:
    """A bound on the probability that as many of these different routings have equal slots, and as
    unlikely ones, as have them.

    C(n, m) times the probability that those m of the n have (Bonferroni, over all sets of m). In a
    stream that is at most the probability of one of its series of batches: the tokens that a batch
    has more than the smaller one before it are drawn independently, and have equal slots, too.
    """
    distinct = set(routings)
    equal = sorted((one for one in distinct if one.is_equal), key=lambda one: one.tokens)
    drawn = {one._replace(is_equal=False) for one in distinct}
    series: dict[tuple[Hashable, ...], dict[tuple[Hashable, ...], list[Routing]]] = {}
    for one in equal:
        series.setdefault(one.stream, {}).setdefault(one[1:4], []).append(one)
    log_chance = _log_choose(len(drawn), len(equal))
    for alike in series.values():
        log_chance += min(map(_log_probability, alike.values()))
    return math.exp(min(0.0, log_chance))


def _log_probability(batches: Sequence[Routing]) -> float:
    """Of equal slots in each of these batches, of which the next begins with the one before."""
    sizes = [0, *(one.tokens for one in batches)]
    pieces = (
        one.probability(size - before)
        for one, before, size in zip(batches, sizes, sizes[1:], strict=False)
    )
    return sum(math.log(max(piece, sys.float_info.min)) for piece in pieces)
