"""Every collective of a step: what is sent, over which group, how often.

The formulas are in moe.parallel.traffic, the order of the collectives in each strategy's rules.
"""

from __future__ import annotations

from collections.abc import Iterable

from moe.parallel.algorithms import Limits
from moe.parallel.traffic import Call, Load
from moe.spec import Cell
from moe.strategies import rules_of


def collectives(
    cell: Cell, load: Load, rank: int = 0, exchanged: Limits | None = None
) -> list[Call]:
    """Collectives of a step in order: router.scope=global, forward, backward, gradients; groups of
    one rank are left out. `exchanged` are the calibrated limits of moe.parallel.algorithms."""
    return rules_of(cell.strategy.name).collectives(cell, load, rank, exchanged)


def totals(calls: Iterable[Call]) -> dict[tuple[str, str], tuple[int, float, float]]:
    """{(collective, group): (calls, bytes sent, bytes received)}, as `moe.parallel.comm` counts
    them."""
    sums: dict[tuple[str, str], tuple[int, float, float]] = {}
    for call in calls:
        key = (call.collective, call.group.name)
        number, sent, received = sums.get(key, (0, 0.0, 0.0))
        sums[key] = (number + call.calls, sent + call.sent_bytes, received + call.received_bytes)
    return sums
