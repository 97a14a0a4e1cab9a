"""ep: every rank holds E/R whole experts.

local (replicated): own experts on the whole batch, one all-reduce of the outputs.
allgather (sharded): all-gather of the tokens, own experts, reduce-scatter of the outputs.
alltoall: every slot of the rank's own tokens travels to its expert and back.
dedup: a token crosses once to every rank that has one of its experts.
symm_mem: as alltoall, through symmetric memory (experimental).
The last three end with an all-gather of the outputs where tokens are replicated.
"""

from __future__ import annotations

from typing import ClassVar

from moe.parallel.rules import Degrees, StrategyRules
from moe.parallel.traffic import Groups, GroupShape, world
from moe.spec import Cell


class EpRules(StrategyRules):
    dispatchers: ClassVar = {
        "replicated": ("local", "alltoall", "dedup", "symm_mem"),
        "sharded": ("alltoall", "dedup", "allgather", "symm_mem"),
    }
    splits = ("ep",)
    replicas = True

    def degrees(self, cell: Cell) -> Degrees:
        return Degrees(cell.strategy.ep or cell.placement.world_size, 1, 1)

    def groups(self, cell: Cell) -> Groups:
        return super().groups(cell)._replace(ep=world(cell))

    def routing(self, cell: Cell) -> tuple[GroupShape, int] | None:
        return super().routing(cell) if self.dispatches(cell) else None


RULES = EpRules()
