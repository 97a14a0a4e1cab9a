"""simple: every rank holds all weights and sends nothing in forward.

replicated: every rank computes the whole batch (R times the work, no communication).
sharded: every rank computes its own tokens. Training adds up all gradients; on the whole batch
every rank has the whole gradient already.
"""

from __future__ import annotations

from moe.parallel.rules import StrategyRules
from moe.parallel.traffic import GroupShape, world
from moe.spec import Cell


class SimpleRules(StrategyRules):
    sends = False

    def routing(self, cell: Cell) -> tuple[GroupShape, int] | None:
        return super().routing(cell) if cell.workload.tokens == "sharded" else None

    def summed(self, cell: Cell) -> list[tuple[str, GroupShape]]:
        if cell.workload.tokens == "replicated":
            return []
        return [*super().summed(cell), ("experts", world(cell))]


RULES = SimpleRules()
