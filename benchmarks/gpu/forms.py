"""Forms of a layer (strategy, dispatcher, kernel, dtype, mode, router) through the whole check."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.gpu.facts import device_of
from benchmarks.gpu.rows import Part, error_of
from moe import build, waits
from moe.parallel.comm import Comm
from moe.spec import (
    Cell,
    LayerSpec,
    RankLayout,
    RouterSpec,
    StrategySpec,
    Unsupported,
    WorkloadSpec,
)
from moe.step import Step
from moe.strategies.checks import GRAPH_KERNELS, WAITING_DISPATCHERS
from moe.verify.verifier import Verifier
from moe.workload import batches

PLACES = (  # strategy and tokens
    *((StrategySpec(name), "sharded") for name in ("simple", "dp", "tp", "fsdp")),
    (StrategySpec("ep", "local"), "replicated"),
    (StrategySpec("ep", "allgather"), "sharded"),
    (StrategySpec("ep", "alltoall"), "sharded"),
    (StrategySpec("ep", "alltoall", overlap=2), "sharded"),
    (StrategySpec("ep", "dedup"), "sharded"),
    (StrategySpec("dp_ep", "alltoall"), "sharded"),
    (StrategySpec("ep_tp", "alltoall"), "sharded"),
    (StrategySpec("dp_ep", "local"), "replicated"),
    (StrategySpec("ep_tp", "local"), "replicated"),
    (StrategySpec("ep_tp", "dedup"), "sharded"),
)
FEWER = 11  # of these, in dtypes beside the first: every strategy, and every dispatcher of ep
KERNELS = ("grouped", "loop", "bmm", "dense", "liger", "triton")
DTYPES = ("bfloat16", "float32", "float16")
MODES = ("forward", "train")
PLAIN = "softmax"
ROUTERS = {
    PLAIN: RouterSpec(),
    "sigmoid_groups": RouterSpec(
        score="sigmoid", scale=2.5, groups=4, group_topk=2, selection_bias="balanced"
    ),
    "capacity": RouterSpec(capacity_factor=0.8),
    "expert_choice": RouterSpec(kind="expert_choice"),
}
ROUTED = ("simple", "ep")  # strategies that are checked with every router
BATCH = 63
TRITON, CPU_KERNELS = KERNELS[4:], KERNELS[:4]
STRIDE = 5  # a dry run takes every fifth form: no multiple of the number of its kernels or places


@dataclass(frozen=True)
class Form:
    """What is checked; `strategy` has the kernel."""

    strategy: StrategySpec
    tokens: str
    dtype: str
    mode: str
    router: str = PLAIN

    def cell(self, layer: LayerSpec, placement: RankLayout, batch: int = BATCH) -> Cell:
        """The form with a layer's sizes."""
        layer = replace(layer, dtype=self.dtype, router=ROUTERS[self.router])
        work = WorkloadSpec(batch_size=batch, tokens=self.tokens, mode=self.mode)
        return Cell(layer, self.strategy, work, placement)

    def labels(self) -> dict[str, Any]:
        """The form as fields of a row."""
        names = {"strategy": self.strategy.name, "dispatcher": self.strategy.dispatcher}
        if self.strategy.overlap > 1:
            names["overlap"] = str(self.strategy.overlap)
        if self.strategy.graph == "on":
            names["graph"] = "on"
        return {**names, "kernel": self.strategy.kernel, "dtype": self.dtype, "mode": self.mode,
                "router": self.router}  # fmt: skip


def forms() -> list[Form]:
    """Every strategy, kernel, dtype and mode with the plain router, the most used dtype first; then
    CUDA graphs, then the other routers."""
    plain = [
        Form(replace(strategy, kernel=kernel), tokens, dtype, mode)
        for dtype in DTYPES
        for mode, (strategy, tokens), kernel in itertools.product(
            MODES, PLACES if dtype == DTYPES[0] else PLACES[:FEWER], KERNELS
        )
        if dtype != "float32" or kernel not in TRITON  # their twins are checked in sweeps
    ]
    routed = [
        Form(replace(strategy, kernel="grouped"), tokens, "bfloat16", mode, router)
        for router, mode, (strategy, tokens) in itertools.product(ROUTERS, MODES, PLACES)
        if router != PLAIN and strategy.name in ROUTED
    ]
    graphs = [
        Form(replace(strategy, kernel=kernel, graph="on"), tokens, "bfloat16", mode)
        for mode, (strategy, tokens), kernel in itertools.product(MODES, PLACES, GRAPH_KERNELS[1:])
        if strategy.dispatcher not in WAITING_DISPATCHERS
    ]
    return plain + graphs + routed


def dry_forms() -> list[Form]:
    """Those of a dry run."""
    return [form for form in forms() if form.strategy.kernel in CPU_KERNELS][::STRIDE]


def layer_of(tiny: bool) -> LayerSpec:
    """The layer that is checked."""
    dim, hidden = (32, 64) if tiny else (128, 256)
    return LayerSpec(dim=dim, hidden=hidden, dim_out=dim, activation="silu_gated", bias="none")


def one_rank(tiny: bool) -> RankLayout:
    return RankLayout(1, "gloo" if tiny else "nccl", device_of(tiny).type, 1)


def run(part: Part) -> None:
    placement, layer = one_rank(part.tiny), layer_of(part.tiny)
    comm = Comm(device_of(part.tiny), 1, 0)
    for form in dry_forms() if part.tiny else forms():
        if part.is_over():
            return part.add(cut=True)
        part.add(**form.labels(), **check(form.cell(layer, placement), comm))
    return None


def check(cell: Cell, comm: Comm, count: bool = True) -> dict[str, Any]:
    """What the check says of a cell, as fields of a row; with `count`, the host's waits of a step.
    Collective."""
    try:
        step = step_of(cell, comm)
        row = checked(cell, step, comm)
        return {**row, "waits": waits.count(step, comm.device)} if count else row
    except Unsupported as why:
        return {"refused": str(why)}
    except Exception as error:
        return {"ok": False, "error": error_of(error)}


def step_of(cell: Cell, comm: Comm) -> Step:
    """A step of a new layer. Collective; raises Unsupported."""
    build.supports(cell)
    x_TD = batches.inputs(cell, comm.rank, comm.device)
    return Step(cell, build.build(cell, comm), x_TD)


def checked(cell: Cell, step: Step, comm: Comm) -> dict[str, Any]:
    """As in a sweep: before the steps, between them, and after them on other tokens; errors as
    shares of their limits. Collective."""
    verifier = Verifier(cell, comm)
    results = [verifier.prove([step], 0)]
    changes = []
    for _ in range(3):
        step()
        changes.append(verifier.compare(step))
    results.append(verifier.prove_again([step], 1))
    row: dict[str, Any] = {
        "ok": all(one.ok for one in results) and not any(changes),
        "row_share": max(one.error / one.tolerance for one in results),
        "rms_share": max(one.rms / one.rms_limit for one in results),
    }
    if results[0].gradient_error is not None:
        row["gradient_share"] = max(
            (one.gradient_error or 0.0) / (one.gradient_limit or 1.0) for one in results
        )
    if not row["ok"]:
        row["why"] = [one.detail for one in results] + [str(change) for change in changes]
    return row
