"""dp: every rank holds all weights and computes its own tokens.

replicated: the rank's slice of the batch, then an all-gather of the outputs.
sharded: the rank's own tokens, no communication in forward. Training adds up all gradients.
"""

from __future__ import annotations

from torch import Tensor

from moe.layer.base import MoELayer, Reductions


class Dp(MoELayer):
    def reductions(self) -> Reductions:
        return [(list(self.parameters()), self.comm.world)]

    def forward(self, x_TD: Tensor) -> Tensor:
        own_TD = self.own_tokens(x_TD)
        y_TO = self.plus_shared(self.mix(own_TD, self.route(own_TD)), own_TD)
        return y_TO if self.sharded else self.gather_batch(y_TO)
