"""How many tokens and slots a rank has. Exact where the strategy decides it, else counted or
expected.

Shape letters: T tokens this rank routes, B global batch, E experts, K top-k, S slots, R ranks, G
ranks of the group that splits the experts, P experts on each of them.
"""

from __future__ import annotations

import math

from moe.parallel.traffic import Load, group_rows
from moe.spec import Cell
from moe.strategies import degrees, rules_of


def routed_tokens(cell: Cell, rank: int) -> int:
    """T: number of tokens this rank routes."""
    return len(range(*rules_of(cell.strategy.name).routed_rows(cell, rank)))


def dispatches(cell: Cell) -> bool:
    """Whether slots travel to the ranks of their experts."""
    return rules_of(cell.strategy.name).dispatches(cell)


def hit_probability(experts: int, topk: int, places: float) -> float:
    """Probability that a token with K distinct, equally likely experts has one among `places` of
    the E.

    1 - C(E - places, K) / C(E, K), for whole and fractional `places` (the expected distinct
    destinations of DeepEP's `get_theoretical_num_sms`, divided by the number of destinations).
    """
    missed = 1.0
    for taken in range(topk):
        missed *= max(0.0, experts - places - taken) / (experts - taken)
    return 1.0 - missed


def expected(cell: Cell, rank: int = 0, skew: float = 1.0) -> Load:
    """Expected load of `rank` when it takes `skew` times its even share of slots.

    With skew, every token sends `skew` times the average of a member here. Experts are otherwise
    chosen evenly, so every copy is of a different hot expert (with skew, fewer experts may be
    copied). Raises ValueError unless 1 <= skew <= the ranks that share experts.
    """
    layer, members = cell.layer, degrees(cell).ep
    tokens, topk, experts = routed_tokens(cell, rank), layer.topk, layer.num_experts
    if not 1.0 <= skew <= members:
        raise ValueError(f"skew={skew}: allowed are 1 to {members}, the ranks that share experts")
    places = experts / members
    per_token = min(skew * topk / members, places, topk)  # slots on this rank of every token
    batch = tokens if not dispatches(cell) else dispatched_tokens(cell, rank)
    slots = batch * per_token
    touched = places * (1.0 - (1.0 - per_token / places) ** batch)
    copied = min(cell.strategy.hot_replicas, experts)
    if not dispatches(cell) or members == 1:
        return Load(slots, slots, 0.0, 0.0, touched, copied)
    share = _rows_per_token(cell, per_token)
    others = (_rows_per_token(cell, (topk - per_token) / (members - 1))) * (members - 1)
    rows = batch * share
    return Load(slots, rows, tokens * others, rows - tokens * share, touched, copied)


def fullest(slots: float, experts: float) -> float:
    """Expected slots of the fullest of `experts` experts that share `slots`, drawn evenly: the
    largest of E counts of mean and variance m is about m + sqrt(2 m ln E)."""
    mean = slots / experts
    return min(slots, mean + math.sqrt(2.0 * mean * math.log(experts)) if experts > 1 else mean)


def dispatched_tokens(cell: Cell, rank: int) -> int:
    """Tokens of all members of the rank's ep group together."""
    ep = rules_of(cell.strategy.name).groups(cell).ep
    return group_rows(cell, rank, ep.size * ep.stride)


def _rows_per_token(cell: Cell, slots: float) -> float:
    """Rows that a token with `slots` slots on a member sends there."""
    if cell.strategy.dispatcher != "dedup":
        return slots
    experts, topk = cell.layer.num_experts, cell.layer.topk
    return hit_probability(experts, topk, slots * experts / topk)
