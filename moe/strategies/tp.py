"""tp: every rank holds H/R hidden units of every expert: columns of fc1, rows of fc2.

replicated: partial results for the whole batch, one all-reduce.
sharded: all-gather of the tokens, reduce-scatter of the outputs. This is the split of weights and
batch done so that it is right: concatenating columns of different ranks' tokens would mix tokens.
"""

from __future__ import annotations

from torch import Tensor

from moe.layer.base import MoELayer, Reductions
from moe.parallel.collectives import add_and_scatter, add_up, gather_tokens, spread
from moe.phases import phase


class Tp(MoELayer):
    def make_groups(self) -> None:
        super().make_groups()
        self.part, self.parts = self.comm.rank, self.comm.world_size

    def routed_rows(self) -> tuple[int, int]:
        return 0, self.total

    def routed_by(self) -> None:
        return None

    def reductions(self) -> Reductions:
        """Shared experts are cut like the others: their gradients are whole."""
        return [([self.router.weight_ED], self.comm.world)]

    def forward(self, x_TD: Tensor) -> Tensor:
        world = self.comm.world
        if not self.sharded:
            x_BD = spread(x_TD, world, self.wire)
            y_BO = self.plus_shared(self.mix(x_BD, self.route(x_BD)), x_BD)
            with phase("combine"):
                return add_up(y_BO, world, self.wire)
        with phase("dispatch"):
            x_BD = gather_tokens(x_TD, world, self.shard_sizes)
        y_BO = self.plus_shared(self.mix(x_BD, self.route(x_BD)), x_BD)
        with phase("combine"):
            return add_and_scatter(y_BO, world, self.shard_sizes, self.wire)
