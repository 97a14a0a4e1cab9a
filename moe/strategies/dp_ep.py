"""dp_ep: R/ep replicas of a group of ep neighbouring ranks that share the experts.

local (replicated): own experts on the replica's slice of the batch, all-reduce over ep, all-gather
of the outputs over dp.
alltoall, dedup: own tokens travel inside the replica; an all-gather of the outputs over all ranks
follows where tokens are replicated. Training adds up the experts' gradients over dp.
"""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from moe.layer.base import MoELayer, Reductions
from moe.parallel.collectives import add_up, gather_outputs
from moe.parallel.comm import RankGroup
from moe.phases import phase
from moe.workload import batches


class DpEp(MoELayer):
    def make_groups(self) -> None:
        self.ep, self.dp = self.comm.split(self.degrees.ep, ("ep", "dp"))

    def routed_rows(self) -> tuple[int, int]:
        local = self.cell.strategy.dispatcher == "local"
        return batches.rows_of(self.cell, self.ep.ranks) if local else super().routed_rows()

    def routed_by(self) -> tuple[RankGroup, list[int]] | None:
        return self.by_replica if self.cell.strategy.dispatcher == "local" else super().routed_by()

    @cached_property
    def by_replica(self) -> tuple[RankGroup, list[int]]:
        firsts = [rank - self.ep.index for rank in self.dp.ranks]
        slices = [batches.rows_of(self.cell, (f, f + self.ep.size - 1)) for f in firsts]
        return self.dp, [end - start for start, end in slices]

    def reductions(self) -> Reductions:
        return [*super().reductions(), (list(self.experts.parameters()), self.dp)]

    def forward(self, x_TD: Tensor) -> Tensor:
        own_TD = self.own_tokens(x_TD)
        if self.cell.strategy.dispatcher == "local":
            return self._local(own_TD)
        y_TO = self.plus_shared(self.dispatched(own_TD, self.route(own_TD)), own_TD)
        return y_TO if self.sharded else self.gather_batch(y_TO)

    def _local(self, own_TD: Tensor) -> Tensor:
        shared_rows = batches.own_rows(self.cell, self.comm.rank)
        y_TO = self.plus_shared(self.mix(own_TD, self.route(own_TD)), own_TD, shared_rows)
        group, sizes = self.by_replica
        with phase("combine"):
            y_TO = add_up(y_TO, self.ep, self.wire)
            return gather_outputs(y_TO, group, sizes, self.wire)
