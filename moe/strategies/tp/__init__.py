"""tp: every rank holds H/R hidden units of every expert: columns of fc1, rows of fc2.

replicated: partial results for the whole batch, one all-reduce.
sharded: all-gather of the tokens, reduce-scatter of the outputs. This is the split of weights and
batch done so that it is right: concatenating columns of different ranks' tokens would mix tokens.
Shared experts are cut like the others: their gradients are whole.
"""

from __future__ import annotations

from moe.parallel.rules import Degrees, StrategyRules
from moe.parallel.traffic import Groups, GroupShape, world
from moe.spec import Cell


class TpRules(StrategyRules):
    splits = ("tp",)

    def degrees(self, cell: Cell) -> Degrees:
        return Degrees(1, cell.strategy.tp or cell.placement.world_size, 1)

    def groups(self, cell: Cell) -> Groups:
        return super().groups(cell)._replace(tp=world(cell))

    def routing(self, cell: Cell) -> None:
        return None

    def summed(self, cell: Cell) -> list[tuple[str, GroupShape]]:
        return [("router", world(cell))]


RULES = TpRules()
