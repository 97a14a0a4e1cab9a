"""The layer of ep_tp: parts of experts, reached as the dispatcher says."""

from __future__ import annotations

from torch import Tensor

from moe.layer.base import MoELayer
from moe.strategies.ep_tp import RULES


class EpTp(MoELayer):
    rules = RULES

    def forward(self, x_TD: Tensor) -> Tensor:
        if not self.dispatches:
            return self.whole_batch(x_TD)
        step = self.tokens_to_outputs if self.sharded else self.slice_to_batch
        return step(x_TD, self.tp)


LAYER = EpTp
