"""The layer of dp_ep: whole experts inside a replica, by the dispatcher's way."""

from __future__ import annotations

from torch import Tensor

from moe.layer.base import MoELayer
from moe.parallel.collectives import add_up, gather_outputs
from moe.phases import phase
from moe.strategies.dp_ep import RULES


class DpEp(MoELayer):
    rules = RULES

    def forward(self, x_TD: Tensor) -> Tensor:
        own_TD = self.own_tokens(x_TD)
        if self.cell.strategy.dispatcher == "local":
            return self._local(own_TD)
        y_TO = self.plus_shared(self.dispatched(own_TD, self.route(own_TD)), own_TD)
        return y_TO if self.sharded else self.gather_batch(y_TO)

    def _local(self, own_TD: Tensor) -> Tensor:
        y_TO = self.plus_shared(self.mix(own_TD, self.route(own_TD)), own_TD)
        with phase("combine"):
            y_TO = add_up(y_TO, self.ep, self.wire)
            return gather_outputs(y_TO, *self.routers, self.wire)


LAYER = DpEp
