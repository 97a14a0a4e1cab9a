"""The layer of dp: own tokens, all experts."""

from __future__ import annotations

from torch import Tensor

from moe.layer.base import MoELayer
from moe.strategies.dp import RULES


class Dp(MoELayer):
    rules = RULES

    def forward(self, x_TD: Tensor) -> Tensor:
        own_TD = self.own_tokens(x_TD)
        y_TO = self.plus_shared(self.mix(own_TD, self.route(own_TD)), own_TD)
        return y_TO if self.sharded else self.gather_batch(y_TO)


LAYER = Dp
