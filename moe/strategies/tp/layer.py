"""The layer of tp: all tokens, a part of every expert."""

from __future__ import annotations

from torch import Tensor

from moe.layer.base import MoELayer
from moe.parallel.collectives import add_and_scatter, add_up, gather_tokens, spread
from moe.phases import phase
from moe.strategies.tp import RULES


class Tp(MoELayer):
    rules = RULES

    def forward(self, x_TD: Tensor) -> Tensor:
        world = self.comm.world
        if not self.sharded:
            x_BD = spread(x_TD, world, self.wire)
            y_BO = self.plus_shared(self.mix(x_BD, self.route(x_BD)), x_BD)
            with phase("combine"):
                return add_up(y_BO, world, self.wire)
        with phase("dispatch"):
            x_BD = gather_tokens(x_TD, world, self.shard_sizes)
        y_BO = self.plus_shared(self.mix(x_BD, self.route(x_BD)), x_BD)
        with phase("combine"):
            return add_and_scatter(y_BO, world, self.shard_sizes, self.wire)


LAYER = Tp
