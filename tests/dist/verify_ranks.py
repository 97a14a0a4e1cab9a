"""Run by torchrun from test_verify.py: every rank prints nothing, rank 0 one JSON line."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from moe.build import build
from moe.layer import router as router_module
from moe.layer.base import MoELayer, Reductions
from moe.layer.capacity import Scope
from moe.layer.experts import Experts
from moe.layer.router import Router, Routing
from moe.parallel.comm import Comm
from moe.spec import (
    Cell,
    LayerSpec,
    RankLayout,
    RouterSpec,
    StrategySpec,
    WorkloadSpec,
    shard_bounds,
)
from moe.step import Step
from moe.strategies.dp.layer import Dp
from moe.strategies.ep.layer import Ep
from moe.strategies.simple.layer import Simple
from moe.strategies.tp.layer import Tp
from moe.verify.verifier import verify
from moe.workload import batches
from tests.support.ranks import prepare as prepare

BATCHES = (1, 8, 4096)
DTYPES = ("float32", "bfloat16", "float16")


class BiasOnEveryRank(Tp):
    def make_experts(self) -> Experts:
        columns = shard_bounds(self.layer.hidden, self.comm.world_size, self.comm.rank)
        ids = tuple(range(self.layer.num_experts))
        return Experts(self.layer, ids, columns, self.comm.device, bias2=True)


class LiteralBatchSplit(Tp):
    """Each rank's tokens meet that rank's columns only, and the pieces are gathered."""

    def forward(self, x_TD: Tensor) -> Tensor:
        routing = self.route(x_TD)
        start, end = shard_bounds(self.total, self.comm.world_size, self.comm.rank)
        part = dataclasses.replace(
            routing,
            logits_TE=routing.logits_TE[start:end],
            scores_TE=routing.scores_TE[start:end],
            indices_TK=routing.indices_TK[start:end],
            gates_TK=routing.gates_TK[start:end],
        )
        return self.gather_batch(self.mix(x_TD[start:end], part))


class DropsTheLastToken(Ep):
    def forward(self, x_TD: Tensor) -> Tensor:
        y_TO = super().forward(x_TD).clone()
        y_TO[-1:] = 0
        return y_TO


class NotRenormalised(Simple):
    def __init__(self, cell: Cell, comm: Comm) -> None:
        super().__init__(cell, comm)
        self.router.rule = dataclasses.replace(self.router.rule, normalize=False)


class ExpertOffByOne(Simple):
    def mix(self, x_TD: Tensor, routing: Routing) -> Tensor:
        shifted = (routing.indices_TK + 1) % self.layer.num_experts
        return super().mix(x_TD, dataclasses.replace(routing, indices_TK=shifted))


class TiesTheOtherWay(Simple):
    def __init__(self, cell: Cell, comm: Comm) -> None:
        super().__init__(cell, comm)
        self.router.__class__ = HighestOnTies


class HighestOnTies(Router):
    def forward(self, x_TD: Tensor) -> Routing:
        routing = super().forward(x_TD)
        flipped = router_module.top_indices(routing.scores_TE.flip(1), self.layer.topk)
        indices_TK = self.layer.num_experts - 1 - flipped
        gates_TK = self._gates(routing.scores_TE, indices_TK)
        return dataclasses.replace(routing, indices_TK=indices_TK, gates_TK=gates_TK)


class DoublesGradients(Ep):
    """What torch's differentiable all_reduce does to the gradients of replicated outputs."""

    def forward(self, x_TD: Tensor) -> Tensor:
        y_TO = super().forward(x_TD)
        if y_TO.requires_grad:
            y_TO.register_hook(lambda grad: grad * self.comm.world_size)
        return y_TO


class ForgetsToAddUp(Dp):
    def reductions(self) -> Reductions:
        return []


class ForgetsTheRouter(Ep):
    def reductions(self) -> Reductions:
        return []


class ForgetsCopies(Ep):
    def _add_up_copies(self, expert: int) -> None:
        pass


class CountsTheLossOnEveryRank(Tp):
    def scope(self) -> Scope:
        return dataclasses.replace(super().scope(), copies=1)


class BiasInTheGates(Simple):
    def route(self, x_TD: Tensor) -> Routing:
        routing = super().route(x_TD)
        assert self.router.bias_E is not None
        gates_TK = routing.gates_TK + self.router.bias_E[routing.indices_TK]
        return dataclasses.replace(routing, gates_TK=gates_TK)


class IgnoresGroups(Simple):
    def __init__(self, cell: Cell, comm: Comm) -> None:
        super().__init__(cell, comm)
        self.router.rule = dataclasses.replace(self.router.rule, groups=1)


class KeepsTheLast(Simple):
    """Drops the first slots of a full expert, not the last."""

    def __init__(self, cell: Cell, comm: Comm) -> None:
        super().__init__(cell, comm)
        self.router.__class__ = KeepsTheLastSlots


class KeepsTheLastSlots(Router):
    def _limited(self, routing: Routing) -> Routing:
        flipped = dataclasses.replace(
            routing, indices_TK=routing.indices_TK.flip(0), gates_TK=routing.gates_TK.flip(0)
        )
        found = super()._limited(flipped)
        kept_TK = found.kept_TK.flip(0)
        return dataclasses.replace(
            routing, gates_TK=routing.gates_TK * kept_TK, kept_TK=kept_TK,
            weight_TK=routing.gates_TK.detach(),
        )  # fmt: skip


class OtherWorkload(Simple):
    """Routes by its own logits what the workload prescribes."""

    def __init__(self, cell: Cell, comm: Comm) -> None:
        super().__init__(cell, comm)
        self.router.allowed_TE = None


Rules = tuple[type[MoELayer], StrategySpec, RouterSpec, WorkloadSpec]
TRAIN = WorkloadSpec(mode="train")
RULE_MUTANTS: dict[str, Rules] = {
    "doubles gradients": (DoublesGradients, StrategySpec("ep", "alltoall"), RouterSpec(), TRAIN),
    "forgets to add up": (ForgetsToAddUp, StrategySpec("dp"), RouterSpec(), TRAIN),
    "forgets the router": (ForgetsTheRouter, StrategySpec("ep", "local"), RouterSpec(), TRAIN),
    "forgets copies": (ForgetsCopies, StrategySpec("ep", "alltoall", hot_replicas=4), RouterSpec(),
                       TRAIN),
    "loss on every rank": (CountsTheLossOnEveryRank, StrategySpec("tp"), RouterSpec(aux_loss=1e4),
                           TRAIN),
    "bias in the gates": (BiasInTheGates, StrategySpec(), RouterSpec(selection_bias="balanced"),
                          WorkloadSpec()),
    "ignores groups": (IgnoresGroups, StrategySpec(),
                       RouterSpec(score="sigmoid", groups=4, group_topk=1), WorkloadSpec()),
    "keeps the last": (KeepsTheLast, StrategySpec(), RouterSpec(capacity_factor=0.5),
                       WorkloadSpec()),
    "other workload": (OtherWorkload, StrategySpec(), RouterSpec(), WorkloadSpec(kind="balanced")),
}  # fmt: skip
RULE_BATCHES = (8, 1024)


def rule_mutants(ranks: int) -> Iterator[tuple[str, Cell, type[MoELayer]]]:
    for name, (kind, strategy, rule, work) in RULE_MUTANTS.items():
        for dtype, batch in itertools.product(DTYPES, RULE_BATCHES):
            plain = cell_of(strategy, dtype, batch, "replicated", "relu", "random", ranks)
            cell = dataclasses.replace(
                plain,
                layer=dataclasses.replace(plain.layer, router=rule),
                workload=dataclasses.replace(work, batch_size=batch),
            )
            yield f"rule {name} {dtype} {batch}", cell, kind


MUTANTS: dict[str, tuple[type[MoELayer], StrategySpec]] = {
    "bias_on_every_rank": (BiasOnEveryRank, StrategySpec(name="tp")),
    "literal_batch_split": (LiteralBatchSplit, StrategySpec(name="tp")),
    "drops_the_last_token": (DropsTheLastToken, StrategySpec(name="ep", dispatcher="local")),
    "drops_the_last_token_alltoall": (
        DropsTheLastToken,
        StrategySpec(name="ep", dispatcher="alltoall"),
    ),
    "not_renormalised": (NotRenormalised, StrategySpec(name="simple")),
    "expert_off_by_one": (ExpertOffByOne, StrategySpec(name="simple")),
    "ties_the_other_way": (TiesTheOtherWay, StrategySpec(name="simple")),
}
RIGHT = [
    StrategySpec(name=name, dispatcher=dispatcher)
    for name, dispatcher in [("simple", "local"), ("dp", "local"), ("tp", "local"),
                             ("ep", "local"), ("ep", "alltoall")]
]  # fmt: skip


def cell_of(
    strategy: StrategySpec,
    dtype: str,
    batch: int,
    tokens: str,
    activation: str,
    bias: str,
    ranks: int,
) -> Cell:
    layer = LayerSpec(num_experts=8, topk=2, topk_requested=2, dtype=dtype, activation=activation,
                  bias=bias)  # fmt: skip
    work = WorkloadSpec(batch_size=batch, tokens=tokens)
    return Cell(layer, strategy, work, RankLayout(world_size=ranks))


def judge(cell: Cell, layer: MoELayer, comm: Comm) -> dict[str, object]:
    x_TD = batches.inputs(cell, comm.rank, comm.device)
    return verify(cell, Step(cell, layer, x_TD), comm).to_dict()


def main(arguments: list[str]) -> int:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    comm = Comm(torch.device("cpu"), ranks, rank)
    found: dict[str, dict[str, object]] = {}
    for name, (kind, strategy) in MUTANTS.items():
        for dtype, batch in itertools.product(DTYPES, BATCHES):
            cell = cell_of(strategy, dtype, batch, "replicated", "relu", "random", ranks)
            found[f"mutant {name} {dtype} {batch}"] = judge(cell, kind(cell, comm), comm)
    for name, cell, kind in rule_mutants(ranks):
        assert judge(cell, build(cell, comm), comm)["ok"], f"{name}: without the mutation"
        found[name] = judge(cell, kind(cell, comm), comm)
    activations = itertools.cycle(["relu", "identity", "gelu", "silu_gated"])
    for strategy, dtype, batch, tokens in itertools.product(
        RIGHT, DTYPES, (1, 3, 8, 4096), ("replicated", "sharded")
    ):
        if strategy.name == "ep" and strategy.dispatcher == "local" and tokens == "sharded":
            continue  # refused by name: local dispatch needs the whole batch
        for bias in ("zero", "random"):
            cell = cell_of(strategy, dtype, batch, tokens, next(activations), bias, ranks)
            name = f"right {strategy.name} {strategy.dispatcher} {dtype} {batch} {tokens} {bias}"
            found[name] = judge(cell, build(cell, comm), comm)
    if rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
