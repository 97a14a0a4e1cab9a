"""The layer of dp: own tokens, all experts."""

from __future__ import annotations

from torch import Tensor

from moe.layer.base import MoELayer
from moe.strategies.dp import RULES


class Dp(MoELayer):
    rules = RULES

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.own_batch(x_TD)


LAYER = Dp
