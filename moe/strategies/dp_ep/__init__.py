"""dp_ep: R/ep replicas of a group of ep neighbouring ranks that share the experts.

local (replicated): own experts on the replica's slice of the batch, all-reduce over ep, all-gather
of the outputs over dp.
alltoall, dedup, symm_mem: own tokens travel inside the replica; an all-gather of the outputs over
all ranks follows where tokens are replicated. Training adds up the experts' gradients over dp.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from moe.parallel.rules import Degrees, StrategyRules, small_divisor
from moe.parallel.traffic import Call, GroupShape, RankTraffic
from moe.spec import Cell


class DpEpRules(StrategyRules):
    dispatchers: ClassVar = {
        "replicated": ("local", "alltoall", "dedup", "symm_mem"),
        "sharded": ("alltoall", "dedup", "symm_mem"),
    }
    splits = ("ep",)

    def degrees(self, cell: Cell) -> Degrees:
        size = cell.placement.world_size
        ep = cell.strategy.ep or size // small_divisor(size)
        return Degrees(ep, 1, size // ep)

    def routing(self, cell: Cell) -> tuple[GroupShape, int] | None:
        groups = self.groups(cell)
        return super().routing(cell) if self.dispatches(cell) else (groups.dp, groups.ep.size)

    def forward(self, r: RankTraffic) -> Iterator[Call]:
        if self.dispatches(r.cell):
            yield from super().forward(r)
        else:
            yield from r.slice_to_batch(r.ep, r.dp)

    def summed(self, cell: Cell) -> list[tuple[str, GroupShape]]:
        return [*super().summed(cell), ("experts", self.groups(cell).dp)]


RULES = DpEpRules()
