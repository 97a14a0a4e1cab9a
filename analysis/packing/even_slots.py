"""Forced balance that is not labelled: slots that are equal for all experts, as chance would hardly
have it.

E experts, K top-k, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def are_suspicious(cell: Cell, expert_slots: Sequence[float]) -> bool:
    """Whether the slots are equal although the cell's tokens draw their experts freely, and chance
    makes that UNLIKELY.

    Groups, limits and biases of a router, and workloads that prescribe counts, can make slots
    equal: such cells pass.
    """
    router, layer = cell.layer.router, cell.layer
    is_free = (
        cell.workload.kind in DRAWN
        and router.kind == _PLAIN.kind
        and router.groups == _PLAIN.groups
        and router.selection_bias == _PLAIN.selection_bias
        and not router.capacity_factor
    )
    if not is_free or not are_equal(cell, expert_slots):
        return False
    tokens, rest = divmod(round(sum(expert_slots)), layer.topk)
    if rest or len(expert_slots) != layer.num_experts:
        return False
    return probability(tokens, layer.num_experts, layer.topk) < UNLIKELY
