"""The layer of simple: all of it on every rank."""

from __future__ import annotations

from torch import Tensor

from moe.layer.base import MoELayer
from moe.strategies.simple import RULES


class Simple(MoELayer):
    rules = RULES

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.outputs(x_TD)


LAYER = Simple
