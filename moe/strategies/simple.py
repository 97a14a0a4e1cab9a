"""simple: every rank holds all weights and needs nobody.

replicated: every rank computes the whole batch (R times the work, no communication).
sharded: every rank computes its own tokens.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from moe.layer.base import MoELayer, Reductions
from moe.layer.capacity import Scope
from moe.parallel.comm import RankGroup


class Simple(MoELayer):
    def routed_rows(self) -> tuple[int, int]:
        return super().routed_rows() if self.sharded else (0, self.total)

    def routed_by(self) -> tuple[RankGroup, list[int]] | None:
        return super().routed_by() if self.sharded else None

    def scope(self) -> Scope:
        """On the whole batch no gradients are added up: each rank has the loss once."""
        return super().scope() if self.sharded else replace(super().scope(), copies=1)

    def reductions(self) -> Reductions:
        """On the whole batch every rank has the whole gradient already."""
        return [(list(self.parameters()), self.comm.world)] if self.sharded else []

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.plus_shared(self.mix(x_TD, self.route(x_TD)), x_TD)
