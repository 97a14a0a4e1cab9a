"""simple: every rank holds all weights and needs nobody.

replicated: every rank computes the whole batch (R times the work, no communication).
sharded: every rank computes its own tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe.layer import MoELayer


class Simple(MoELayer):
    def routed_rows(self) -> tuple[int, int]:
        return super().routed_rows() if self.sharded else (0, self.total)

    def replicated_parameters(self) -> list[torch.nn.Parameter]:
        """On the whole batch every rank has the whole gradient already."""
        return list(self.parameters()) if self.sharded else []

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.mix(x_TD, self.route(x_TD))
