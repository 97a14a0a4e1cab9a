"""ep: every rank holds E/R whole experts.

local (replicated): own experts on the whole batch, one all-reduce of the outputs.
alltoall: the rank's own tokens travel to their experts and back; with replicated tokens an
all-gather of the outputs follows.
"""

from __future__ import annotations

from torch import Tensor

from moe import dispatch
from moe.collectives import add_up, spread
from moe.experts import Experts
from moe.layer import MoELayer
from moe.phases import phase


class Ep(MoELayer):
    def routed_rows(self) -> tuple[int, int]:
        return (
            (0, self.total) if self.cell.strategy.dispatcher == "local" else super().routed_rows()
        )

    @property
    def first(self) -> int:
        """Id of the first expert held here."""
        return self.comm.rank * (self.layer.num_experts // self.comm.world_size)

    def make_experts(self) -> Experts:
        per_rank = self.layer.num_experts // self.comm.world_size
        return self.hold(range(self.first, self.first + per_rank))

    def forward(self, x_TD: Tensor) -> Tensor:
        world = self.comm.world
        if self.cell.strategy.dispatcher == "local":
            x_BD = spread(x_TD, world)
            y_BO = self.mix(x_BD, self.route(x_BD), self.first)
            with phase("combine"):
                return add_up(y_BO, world)
        own_TD = x_TD if self.sharded else self.own_slice(spread(x_TD, world))
        routing, experts = self.route(own_TD), self.layer.num_experts
        y_TO = dispatch.alltoall(own_TD, routing, experts, world, self.compute)
        return y_TO if self.sharded else self.gather_batch(y_TO)
