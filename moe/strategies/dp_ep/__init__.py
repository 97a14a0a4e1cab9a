"""dp_ep: R/ep replicas of a group of ep neighbouring ranks that share the experts.

local (replicated): own experts on the replica's slice of the batch, all-reduce over ep, all-gather
of the outputs over dp.
alltoall, dedup: own tokens travel inside the replica; an all-gather of the outputs over all ranks
follows where tokens are replicated. Training adds up the experts' gradients over dp.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from moe.parallel.rules import Degrees, StrategyRules, small_divisor
from moe.parallel.traffic import Call, GroupShape, RankTraffic, group_rows
from moe.spec import Cell


class DpEpRules(StrategyRules):
    dispatchers: ClassVar = {
        "replicated": ("local", "alltoall", "dedup"),
        "sharded": ("alltoall", "dedup"),
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
            return
        out = r.layer.dim_out * r.w
        yield r.all_reduce(r.ep, group_rows(r.cell, r.rank, r.ep.size) * out, "combine")
        yield r.all_gather(r.dp, r.longest(r.ep.size) * out, "combine")

    def summed(self, cell: Cell) -> list[tuple[str, GroupShape]]:
        return [*super().summed(cell), ("experts", self.groups(cell).dp)]


RULES = DpEpRules()
