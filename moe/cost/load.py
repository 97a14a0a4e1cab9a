"""How many tokens and slots a rank has: exact where the strategy decides it, else counted or
expected.

Shape letters: T tokens this rank routes, B global batch, E experts, K top-k, S slots, R ranks,
G ranks of the group that splits the experts, P experts on each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from moe.parallel.degrees import degrees
from moe.spec import Cell, shard_bounds


@dataclass(frozen=True)
class Load:
    """Of one rank in one step. Rows are what a dispatcher moves: slots, or for `dedup` the
    distinct (token, member) pairs; what stays on the rank is not in `sent` and `received`."""

    slots: float  # rows of expert arithmetic on this rank
    rows: float = 0.0  # rows that reach this rank's experts, its own included
    sent: float = 0.0  # rows to other members of the ep group
    received: float = 0.0  # rows from other members
    touched: float = 0.0  # experts here that have at least one slot
    copied: int = 0  # experts of which several ranks hold a copy (strategy.hot_replicas)


def group_rows(cell: Cell, rank: int, neighbours: int) -> int:
    """Tokens of the shards of the `neighbours` ranks around `rank` together."""
    first = rank - rank % neighbours
    batch, size = cell.workload.batch_size, cell.placement.world_size
    bounds = [shard_bounds(batch, size, r) for r in (first, first + neighbours - 1)]
    return bounds[1][1] - bounds[0][0]


def routed_tokens(cell: Cell, rank: int) -> int:
    """T: tokens whose experts this rank chooses."""
    name, dispatcher = cell.strategy.name, cell.strategy.dispatcher
    batch, whole = cell.workload.batch_size, cell.workload.tokens == "replicated"
    found = degrees(cell)
    if name == "serial":
        return batch if rank == 0 else 0
    if name == "tp" or (name == "simple" and whole):
        return batch
    if name in ("ep", "ep_tp") and dispatcher in ("local", "allgather"):
        return batch
    if name == "ep_tp":
        return group_rows(cell, rank, found.tp)
    if name == "dp_ep" and dispatcher == "local":
        return group_rows(cell, rank, found.ep)
    return group_rows(cell, rank, 1)


def dispatches(cell: Cell) -> bool:
    """Whether rows travel to their experts."""
    expert_parallel = cell.strategy.name in ("ep", "ep_tp", "dp_ep")
    return expert_parallel and cell.strategy.dispatcher in ("alltoall", "dedup")


def hit_probability(experts: int, topk: int, places: float) -> float:
    """That a token with K distinct, equally likely experts has one among `places` of the E.

    1 - C(E - places, K) / C(E, K), for whole and fractional `places` (the expected distinct
    destinations of DeepEP's `get_theoretical_num_sms`, divided by the number of destinations).
    """
    missed = 1.0
    for taken in range(topk):
        missed *= max(0.0, experts - places - taken) / (experts - taken)
    return 1.0 - missed


def expected(cell: Cell, rank: int = 0, skew: float = 1.0) -> Load:
    """What to expect of `rank` when it takes `skew` times its even share of slots.

    With skew, every token sends `skew` times as much here as on the average to a member; experts
    are otherwise chosen evenly, so that every copy of a hot expert is of another one (with skew
    there can be fewer copied experts). Raises ValueError for a skew that cannot be.
    """
    layer, found = cell.layer, degrees(cell)
    tokens, topk, experts = routed_tokens(cell, rank), layer.topk, layer.num_experts
    if not 1.0 <= skew <= found.ep:
        raise ValueError(f"skew={skew}: allowed are 1 to {found.ep}, the ranks that share experts")
    places = experts / found.ep
    per_token = min(skew * topk / found.ep, places, topk)  # slots on this rank of every token
    batch = tokens if not dispatches(cell) else dispatched_tokens(cell, rank)
    slots = batch * per_token
    touched = places * (1.0 - (1.0 - per_token / places) ** batch)
    copied = min(cell.strategy.hot_replicas, experts)
    if not dispatches(cell) or found.ep == 1:
        return Load(slots, slots, 0.0, 0.0, touched, copied)
    share = _rows_per_token(cell, per_token)
    others = (_rows_per_token(cell, (topk - per_token) / (found.ep - 1))) * (found.ep - 1)
    rows = batch * share
    return Load(slots, rows, tokens * others, rows - tokens * share, touched, copied)


def dispatched_tokens(cell: Cell, rank: int) -> int:
    """Tokens of all members of the rank's ep group together."""
    found = degrees(cell)
    if cell.strategy.name == "dp_ep":
        return group_rows(cell, rank, found.ep)
    return cell.workload.batch_size


def _rows_per_token(cell: Cell, slots: float) -> float:
    """Rows that a token with `slots` slots on a member sends there."""
    if cell.strategy.dispatcher != "dedup":
        return slots
    experts, topk = cell.layer.num_experts, cell.layer.topk
    return hit_probability(experts, topk, slots * experts / topk)
