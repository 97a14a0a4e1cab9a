"""serial: one process does everything, the baseline of any speed-up.

Rank 0 holds all weights and uses every core; the other ranks hold nothing and sleep. No
collectives.
"""

from __future__ import annotations

from moe.parallel.rules import StrategyRules
from moe.parallel.traffic import GroupShape
from moe.spec import Cell, Unsupported


class SerialRules(StrategyRules):
    sends = False
    single_rank = True

    def routing(self, cell: Cell) -> None:
        return None

    def summed(self, cell: Cell) -> list[tuple[str, GroupShape]]:
        return []

    def refuse_degrees(self, cell: Cell) -> None:
        if cell.workload.tokens != "replicated":
            raise Unsupported("tokens", cell.workload.tokens, "replicated for strategy=serial",
                              "set tokens=replicated or use strategy=simple")  # fmt: skip
        super().refuse_degrees(cell)


RULES = SerialRules()
