"""fsdp: every rank keeps 1/R of all weights as one flat shard, and its own tokens.

Forward: all-gather of the shards, the rank's tokens through all experts, weights are freed.
Backward: all-gather again, then reduce-scatter of the gradients: each rank ends with its shard's.
With replicated tokens an all-gather of the outputs follows. Training needs no other reduction.
"""

from __future__ import annotations

from collections.abc import Iterator

from moe.parallel.rules import StrategyRules
from moe.parallel.traffic import Call, GroupShape, RankTraffic
from moe.spec import DTYPE_BYTES, Cell


class FsdpRules(StrategyRules):
    def kept_bytes(self, cell: Cell, rank: int = 0) -> int:
        """A shard of all weights, padded to be the same on every rank."""
        elements = sum(self.parameter_elements(cell).values())
        return -(-elements // cell.placement.world_size) * DTYPE_BYTES[cell.layer.dtype]

    def gathered_bytes(self, cell: Cell) -> int:
        return cell.placement.world_size * self.kept_bytes(cell)

    def forward(self, r: RankTraffic) -> Iterator[Call]:
        yield r.all_gather(r.world, self.kept_bytes(r.cell), "dispatch")
        yield from super().forward(r)

    def backward(self, r: RankTraffic) -> Iterator[Call]:
        shard = self.kept_bytes(r.cell)
        yield r.all_gather(r.world, shard, "backward")
        yield r.reduce_scatter(r.world, self.gathered_bytes(r.cell), shard, "backward")
        yield from super().backward(r)

    def summed(self, cell: Cell) -> list[tuple[str, GroupShape]]:
        return []


RULES = FsdpRules()
