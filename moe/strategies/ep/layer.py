"""The layer of ep: whole experts, by the dispatcher's way."""

from __future__ import annotations

from torch import Tensor

from moe.layer.base import MoELayer
from moe.parallel.collectives import add_and_scatter, add_up, gather_tokens, spread
from moe.phases import phase
from moe.strategies.ep import RULES


class Ep(MoELayer):
    rules = RULES

    def forward(self, x_TD: Tensor) -> Tensor:
        if self.cell.strategy.dispatcher == "local":
            return self._local(x_TD)
        if self.cell.strategy.dispatcher == "allgather":
            return self._allgather(x_TD)
        own_TD = self.own_tokens(x_TD)
        y_TO = self.plus_shared(self.dispatched(own_TD, self.route(own_TD)), own_TD)
        return y_TO if self.sharded else self.gather_batch(y_TO)

    def _local(self, x_TD: Tensor) -> Tensor:
        x_BD = spread(x_TD, self.comm.world, self.wire)
        y_BO = self.plus_shared(self.mix(x_BD, self.route(x_BD)), x_BD)
        with phase("combine"):
            return add_up(y_BO, self.comm.world, self.wire)

    def _allgather(self, x_TD: Tensor) -> Tensor:
        with phase("dispatch"):
            x_BD = gather_tokens(x_TD, self.comm.world, self.shard_sizes)
        y_BO = self.plus_shared(self.mix(x_BD, self.route(x_BD)), x_BD)
        with phase("combine"):
            return add_and_scatter(y_BO, self.comm.world, self.shard_sizes, self.wire)


LAYER = Ep
