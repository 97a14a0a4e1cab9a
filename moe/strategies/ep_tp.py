"""ep_tp: E/ep experts on a rank, H/tp hidden units of each; ep * tp = R, tp groups are neighbours.

local (replicated): own part of own experts on the whole batch, one all-reduce over all ranks.
alltoall, dedup: a tp group acts as one rank of ep. Its members route the same tokens and send the
slots to the members of the same part in other tp groups; partial results add up over tp.
replicated: the tp group's slice of the batch; all-reduce over tp, all-gather over ep.
sharded: all-gather of the tokens over tp before, reduce-scatter of the outputs over tp after.
"""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from moe.layer.base import MoELayer, Reductions
from moe.parallel.collectives import add_and_scatter, add_up, gather_outputs, gather_tokens, spread
from moe.parallel.comm import RankGroup
from moe.phases import phase
from moe.workload import batches


class EpTp(MoELayer):
    def make_groups(self) -> None:
        self.tp, self.ep = self.comm.split(self.degrees.tp, ("tp", "ep"))
        self.part, self.parts = self.tp.index, self.tp.size

    def routed_rows(self) -> tuple[int, int]:
        whole = self.cell.strategy.dispatcher == "local"
        return (0, self.total) if whole else batches.rows_of(self.cell, self.tp.ranks)

    def routed_by(self) -> tuple[RankGroup, list[int]] | None:
        return None if self.cell.strategy.dispatcher == "local" else self.by_tp_group

    @cached_property
    def by_tp_group(self) -> tuple[RankGroup, list[int]]:
        firsts = [rank - self.tp.index for rank in self.ep.ranks]
        slices = [batches.rows_of(self.cell, (f, f + self.tp.size - 1)) for f in firsts]
        return self.ep, [end - start for start, end in slices]

    def reductions(self) -> Reductions:
        return [
            ([self.router.weight_ED], self.comm.world),
            (self.shared_parameters(), self.ep),
        ]

    def forward(self, x_TD: Tensor) -> Tensor:
        if self.cell.strategy.dispatcher == "local":
            return self._local(x_TD)
        return self._sharded(x_TD) if self.sharded else self._replicated(x_TD)

    def _local(self, x_TD: Tensor) -> Tensor:
        x_BD = spread(x_TD, self.comm.world, self.wire)
        shared_rows = batches.rows_of(self.cell, self.tp.ranks)
        y_BO = self.plus_shared(self.mix(x_BD, self.route(x_BD)), x_BD, shared_rows)
        with phase("combine"):
            return add_up(y_BO, self.comm.world, self.wire)

    def _replicated(self, x_TD: Tensor) -> Tensor:
        own_TD = self.own_tokens(x_TD)
        y_TO = self.plus_shared(self.dispatched(own_TD, self.route(own_TD)), own_TD)
        group, sizes = self.by_tp_group
        with phase("combine"):
            y_TO = add_up(y_TO, self.tp, self.wire)
            return gather_outputs(y_TO, group, sizes, self.wire)

    def _sharded(self, x_TD: Tensor) -> Tensor:
        bounds = [batches.own_rows(self.cell, rank) for rank in self.tp.ranks]
        sizes = [end - start for start, end in bounds]
        with phase("dispatch"):
            x_TD = gather_tokens(x_TD, self.tp, sizes)
        y_TO = self.plus_shared(self.dispatched(x_TD, self.route(x_TD)), x_TD)
        with phase("combine"):
            return add_and_scatter(y_TO, self.tp, sizes, self.wire)
