"""Whole sweeps on a simulated GPU: what their records say."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from benchmarks.gpu.budget import host_waits
from moe.build import supports
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, Unsupported, WorkloadSpec
from runners.launch.local import start
from runners.plan import Job, Measure
from runners.records import record
from runners.records.record import Record
from runners.sweep import launch as follow
from runners.sweep.progress import Progress
from runners.sweep.settings import Settings
from runners.sweep.sweep import Sweep
from tests.dist import gpu_worker

WARM = Measure(
    samples=3, samples_max=3, block=2, warmup=1, warmup_max=1, anchors=2, phases=2,
    calibration_limit_s=1.0,
)  # fmt: skip
COLD = replace(WARM, cache="cold")
LAYER = LayerSpec(
    dim=64, hidden=64, dim_out=64, num_experts=4, topk=2, topk_requested=2, dtype="bfloat16",
)  # fmt: skip
STRATEGIES = (
    StrategySpec("simple"),
    StrategySpec("tp"),
    StrategySpec("ep", dispatcher="alltoall"),
    StrategySpec("ep", dispatcher="allgather"),
)
GRAPH_KERNELS = ("grouped", "dense")


def job(ranks: int, strategy: StrategySpec, mode: str, measure: Measure = WARM) -> Job:
    tokens = "replicated" if strategy.name in ("simple", "tp") else "sharded"
    work = WorkloadSpec(batch_size=8, tokens=tokens, mode=mode, cache=measure.cache)
    return Job(Cell(LAYER, strategy, work, RankLayout(ranks, "nccl", "cuda", 1)), measure)


def accepted(one: Job) -> bool:
    try:
        supports(one.cell)
    except Unsupported:
        return False
    return True


def jobs(ranks: int) -> list[Job]:
    """Every strategy, kernel, mode and with and without a graph; some of them with a cold cache."""
    strategies = [
        replace(one, kernel=kernel, graph=graph)
        for one in STRATEGIES
        for kernel in ("auto", "grouped")
        for graph in ("off", "on")
    ]
    warm = [job(ranks, one, mode) for one in strategies for mode in ("forward", "train")]
    cold = [
        job(ranks, replace(STRATEGIES[0], kernel="grouped", graph=graph), mode, COLD)
        for graph in ("off", "on")
        for mode in ("forward", "train")
    ]
    return [one for one in (*warm, *cold) if accepted(one)]


def measured(jobs: list[Job], folder: Path) -> list[Record]:
    worker = partial(start, worker="tests.dist.gpu_worker")
    result = Sweep(jobs, Settings(folder), Progress(), worker).run()
    assert result.exit_code == 0, result.failures
    return [record.read(path) for path in record.paths(folder)]


def name_of(one: Record) -> str:
    strategy, work = one.cell.strategy, one.cell.workload
    graph = "graph" if strategy.graph == "on" else "eager"
    return " ".join(
        (strategy.name, strategy.dispatcher, strategy.kernel, work.mode, work.cache, graph)
    )


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_sweep_on_gpus(ranks: int, tmp_path: Path) -> None:
    records = measured(jobs(ranks), tmp_path)
    assert {one.cell.strategy.graph for one in records} == {"off", "on"}
    assert {one.cell.workload.cache for one in records} == {"warm", "cold"}
    for one in records:
        name, strategy = name_of(one), one.cell.strategy
        assert (one.outcome, one.error) == ("measured", None), name
        assert one.gate and one.gate["ok"] and one.gate["after"]["ok"], name
        assert one.kernel and one.memory and one.phases and one.traffic is not None, name
        budget = host_waits(strategy.name, strategy.dispatcher, one.kernel["name"])
        if strategy.graph == "on":
            assert one.kernel["name"] in GRAPH_KERNELS, name
            budget = 0
        if ranks == 1:
            budget = 0  # nothing is sent
        if budget is not None:
            assert one.host_waits == [budget] * ranks, name
    print(sorted((name_of(one), one.kernel["name"], one.host_waits) for one in records))
