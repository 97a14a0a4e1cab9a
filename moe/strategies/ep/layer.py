"""The layer of ep: whole experts, reached as the dispatcher says."""

from __future__ import annotations

from torch import Tensor

from moe.layer.base import MoELayer
from moe.strategies.ep import RULES


class Ep(MoELayer):
    rules = RULES

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.own_batch(x_TD) if self.dispatches else self.whole_batch(x_TD)


LAYER = Ep
