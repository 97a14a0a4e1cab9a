"""The layer of dp_ep: whole experts inside a replica, reached as the dispatcher says."""

from __future__ import annotations

from torch import Tensor

from moe.layer.base import MoELayer
from moe.strategies.dp_ep import RULES


class DpEp(MoELayer):
    rules = RULES

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.own_batch(x_TD) if self.dispatches else self.slice_to_batch(x_TD, self.ep)


LAYER = DpEp
