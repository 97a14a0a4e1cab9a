"""The rank that the others wait for, from the phases that every rank recorded of one step."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

EXCESS = 0.25  # more busy time than the others, as a fraction of their median
SHARE = 0.05  # and as a fraction of the step


@dataclass(frozen=True)
class Straggler:
    """A rank that is busy for longer than the others, and the time they wait."""

    rank: int
    busy_ms: float
    others_busy_ms: float  # median
    others_wait_ms: float  # median
    phase: str  # the one in which it loses most


def find(ranks: Sequence[Mapping[str, float]]) -> Straggler | None:
    """The straggler, or None; `ranks` holds each rank's ms by phase, waiting a phase of its own."""
    if len(ranks) < 2:
        return None
    busy = [sum(ms for name, ms in rank.items() if name != "wait") for rank in ranks]
    slowest = max(range(len(ranks)), key=busy.__getitem__)
    rest = [rank for number, rank in enumerate(ranks) if number != slowest]
    typical = statistics.median(ms for number, ms in enumerate(busy) if number != slowest)
    waited = statistics.median(rank.get("wait", 0.0) for rank in rest)
    excess = busy[slowest] - typical
    if excess < EXCESS * typical or excess < SHARE * (typical + waited):
        return None
    lost = {
        name: ms - statistics.median(rank.get(name, 0.0) for rank in rest)
        for name, ms in ranks[slowest].items()
        if name != "wait"
    }
    return Straggler(slowest, busy[slowest], typical, waited, max(lost, key=lost.__getitem__))
