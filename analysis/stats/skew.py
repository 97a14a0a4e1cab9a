"""Which strategies can give a rank more slots than another."""

from __future__ import annotations

from moe.strategies import names, rules_of


def always_even(strategy: str) -> bool:
    """Whether all ranks have the same slots whatever the workload: a strategy of ours that sends no
    token to its expert's rank."""
    return strategy in names() and not rules_of(strategy).dispatchers
