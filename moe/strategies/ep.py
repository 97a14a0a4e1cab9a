"""ep: every rank holds E/R whole experts.

local (replicated): own experts on the whole batch, one all-reduce of the outputs.
allgather (sharded): all-gather of the tokens, own experts, reduce-scatter of the outputs.
alltoall: every slot of the rank's own tokens travels to its expert and back.
dedup: a token crosses once to every rank that has one of its experts.
The last two end with an all-gather of the outputs where tokens are replicated.
"""

from __future__ import annotations

from torch import Tensor

from moe.layer.base import MoELayer
from moe.parallel.collectives import add_and_scatter, add_up, gather_tokens, spread
from moe.parallel.comm import RankGroup
from moe.phases import phase
from moe.workload import batches


class Ep(MoELayer):
    def make_groups(self) -> None:
        self.ep = self.comm.world

    @property
    def whole(self) -> bool:
        """Whether every rank routes the whole batch."""
        return self.cell.strategy.dispatcher in ("local", "allgather")

    def routed_rows(self) -> tuple[int, int]:
        return (0, self.total) if self.whole else super().routed_rows()

    def routed_by(self) -> tuple[RankGroup, list[int]] | None:
        return None if self.whole else super().routed_by()

    def forward(self, x_TD: Tensor) -> Tensor:
        if self.cell.strategy.dispatcher == "local":
            return self._local(x_TD)
        if self.cell.strategy.dispatcher == "allgather":
            return self._allgather(x_TD)
        own_TD = self.own_tokens(x_TD)
        y_TO = self.plus_shared(self.dispatched(own_TD, self.route(own_TD)), own_TD)
        return y_TO if self.sharded else self.gather_batch(y_TO)

    def _local(self, x_TD: Tensor) -> Tensor:
        x_BD = spread(x_TD, self.comm.world, self.wire)
        y_BO = self._own_experts(x_BD)
        with phase("combine"):
            return add_up(y_BO, self.comm.world, self.wire)

    def _allgather(self, x_TD: Tensor) -> Tensor:
        with phase("dispatch"):
            x_BD = gather_tokens(x_TD, self.comm.world, self.shard_sizes)
        y_BO = self._own_experts(x_BD)
        with phase("combine"):
            return add_and_scatter(y_BO, self.comm.world, self.shard_sizes, self.wire)

    def _own_experts(self, x_BD: Tensor) -> Tensor:
        """Of the whole batch; shared experts see this rank's share of it."""
        own = batches.own_rows(self.cell, self.comm.rank)
        return self.plus_shared(self.mix(x_BD, self.route(x_BD)), x_BD, own)
