"""dp: every rank holds all weights and computes its own tokens.

replicated: the rank's slice of the batch, then an all-gather of the outputs.
sharded: the rank's own tokens, no communication in forward. Training adds up all gradients.
"""

from __future__ import annotations

from moe.parallel.rules import StrategyRules
from moe.parallel.traffic import GroupShape, world
from moe.spec import Cell


class DpRules(StrategyRules):
    def summed(self, cell: Cell) -> list[tuple[str, GroupShape]]:
        return [*super().summed(cell), ("experts", world(cell))]


RULES = DpRules()
