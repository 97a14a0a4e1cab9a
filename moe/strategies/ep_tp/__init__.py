"""ep_tp: E/ep experts on a rank, H/tp hidden units of each; ep * tp = R, tp groups are neighbours.

local (replicated): own part of own experts on the whole batch, one all-reduce over all ranks.
alltoall, dedup, symm_mem: a tp group acts as one rank of ep. Its members route the same tokens and
send the slots to the members of the same part in other tp groups; partial results add up over tp.
replicated: the tp group's slice of the batch; all-reduce over tp, all-gather over ep.
sharded: all-gather of the tokens over tp before, reduce-scatter of the outputs over tp after.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from moe.parallel.rules import Degrees, StrategyRules, small_divisor
from moe.parallel.traffic import Call, GroupShape, RankTraffic, world
from moe.spec import Cell


class EpTpRules(StrategyRules):
    dispatchers: ClassVar = {
        "replicated": ("local", "alltoall", "dedup", "symm_mem"),
        "sharded": ("alltoall", "dedup", "symm_mem"),
    }
    splits = ("ep", "tp")

    def degrees(self, cell: Cell) -> Degrees:
        size, asked = cell.placement.world_size, cell.strategy
        tp = asked.tp or (size // asked.ep if asked.ep else small_divisor(size))
        return Degrees(asked.ep or size // tp, tp, 1)

    def routing(self, cell: Cell) -> tuple[GroupShape, int] | None:
        groups = self.groups(cell)
        return (groups.ep, groups.tp.size) if self.dispatches(cell) else None

    def forward(self, r: RankTraffic) -> Iterator[Call]:
        if not self.dispatches(r.cell):
            yield from super().forward(r)
        elif r.sharded:
            gather, scatter = r.tokens_to_outputs(r.tp)
            yield from (gather, *r.dispatch(), scatter)
        else:
            yield from (*r.dispatch(), *r.slice_to_batch(r.tp, r.ep))

    def backward(self, r: RankTraffic) -> Iterator[Call]:
        yield from super().backward(r)
        if r.sharded:
            yield from r.tokens_to_outputs(r.tp, backward=True)

    def summed(self, cell: Cell) -> list[tuple[str, GroupShape]]:
        return [("router", world(cell)), ("shared", self.groups(cell).ep)]


RULES = EpTpRules()
