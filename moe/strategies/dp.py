"""dp: every rank holds all weights and computes its own tokens.

replicated: the rank's slice of the batch, then an all-gather of the outputs.
sharded: the rank's own tokens, no communication in forward. Training adds up all gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe.collectives import spread
from moe.layer import MoELayer


class Dp(MoELayer):
    def replicated_parameters(self) -> list[torch.nn.Parameter]:
        return list(self.parameters())

    def forward(self, x_TD: Tensor) -> Tensor:
        if self.sharded:
            return self.mix(x_TD, self.route(x_TD))
        own_TD = self.own_slice(spread(x_TD, self.comm.world))
        return self.gather_batch(self.mix(own_TD, self.route(own_TD)))
