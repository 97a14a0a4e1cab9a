"""The layer of ep_tp: parts of whole experts, by the dispatcher's way."""

from __future__ import annotations

from torch import Tensor

from moe.layer.base import MoELayer
from moe.parallel.collectives import add_and_scatter, add_up, gather_outputs, gather_tokens, spread
from moe.phases import phase
from moe.strategies.ep_tp import RULES
from moe.workload import batches


class EpTp(MoELayer):
    rules = RULES

    def forward(self, x_TD: Tensor) -> Tensor:
        if self.cell.strategy.dispatcher == "local":
            return self._local(x_TD)
        return self._sharded(x_TD) if self.sharded else self._replicated(x_TD)

    def _local(self, x_TD: Tensor) -> Tensor:
        x_BD = spread(x_TD, self.comm.world, self.wire)
        y_BO = self.plus_shared(self.mix(x_BD, self.route(x_BD)), x_BD)
        with phase("combine"):
            return add_up(y_BO, self.comm.world, self.wire)

    def _replicated(self, x_TD: Tensor) -> Tensor:
        own_TD = self.own_tokens(x_TD)
        y_TO = self.plus_shared(self.dispatched(own_TD, self.route(own_TD)), own_TD)
        with phase("combine"):
            y_TO = add_up(y_TO, self.tp, self.wire)
            return gather_outputs(y_TO, *self.routers, self.wire)

    def _sharded(self, x_TD: Tensor) -> Tensor:
        bounds = [batches.own_rows(self.cell, rank) for rank in self.tp.ranks]
        sizes = [end - start for start, end in bounds]
        with phase("dispatch"):
            x_TD = gather_tokens(x_TD, self.tp, sizes)
        y_TO = self.plus_shared(self.dispatched(x_TD, self.route(x_TD)), x_TD)
        with phase("combine"):
            return add_and_scatter(y_TO, self.tp, sizes, self.wire)


LAYER = EpTp
