"""The layer of tp: all tokens, a part of every expert."""

from __future__ import annotations

from torch import Tensor

from moe.layer.base import MoELayer
from moe.strategies.tp import RULES


class Tp(MoELayer):
    rules = RULES

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.whole_batch(x_TD)


LAYER = Tp
