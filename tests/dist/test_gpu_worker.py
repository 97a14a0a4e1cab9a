"""Whole sweeps on a simulated GPU: what their records say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

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
MODES = ("forward", "train")


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


def with_and_without_graph(strategy: StrategySpec, kernel: str) -> list[StrategySpec]:
    return [replace(strategy, kernel=kernel, graph=graph) for graph in ("off", "on")]


def jobs(ranks: int) -> list[Job]:
    """Every strategy and mode, with and without a graph, some with the choice of a kernel, some
    with a cold cache."""
    strategies = [
        *(one for strategy in STRATEGIES for one in with_and_without_graph(strategy, "grouped")),
        *with_and_without_graph(STRATEGIES[0], "auto"),
        *with_and_without_graph(STRATEGIES[-1], "auto"),
    ]
    warm = [job(ranks, one, mode) for one in strategies for mode in MODES]
    cold = [job(ranks, one, "train", COLD) for one in strategies[:2]]
    return [one for one in (*warm, *cold) if accepted(one)]


def measured(jobs: list[Job], folder: Path, worker: str = "gpu_worker") -> list[Record]:
    begin = partial(start, worker=f"tests.dist.{worker}")
    result = Sweep(jobs, Settings(folder / "sweep"), Progress(), begin).run()
    assert result.exit_code == 0, result.failures
    return [record.read(path) for path in record.paths(folder / "sweep")]


def watched(folder: Path) -> Iterator[dict[str, Any]]:
    """What every rank of every launch saw of its cells."""
    for launch in (folder / "sweep" / "launches").iterdir():
        for path in launch.glob("gpu-*.json"):
            yield gpu_worker.read(path)


def name_of(one: Record) -> str:
    strategy, work = one.cell.strategy, one.cell.workload
    names = (strategy.name, strategy.dispatcher, strategy.kernel, work.mode, work.cache)
    return " ".join((*names, "graph" if strategy.graph == "on" else "eager"))


def check(one: Record, ranks: int) -> None:
    """Asserts what holds for every cell on GPUs."""
    name, strategy = name_of(one), one.cell.strategy
    assert (one.outcome, one.error) == ("measured", None), name
    assert one.gate and one.gate["ok"] and one.gate["after"]["ok"], name
    assert one.gate["float32"]["ok"], name  # a graph's cell has a twin too
    assert one.kernel and one.traffic is not None, name
    assert one.phases and all("experts" in rank for rank in one.phases["per_rank_ns"]), name
    assert [rank["weights_bytes"] > 0 for rank in one.memory or []] == [True] * ranks, name
    assert all(rank["method"] == "torch.cuda allocator" for rank in one.memory or []), name
    budget = host_waits(strategy.name, strategy.dispatcher, one.kernel["name"])
    # Tuning may choose a kernel that needs counts, which has no budget; in a graph it cannot.
    assert budget in (0, 1) or (strategy.kernel, strategy.graph) == ("auto", "off"), name
    if budget is not None:
        if strategy.graph == "on" or ranks == 1:
            budget = 0  # a rank alone sends nothing
        assert one.host_waits == [budget] * ranks, name


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_sweep_on_gpus(ranks: int, tmp_path: Path) -> None:
    records = measured(jobs(ranks), tmp_path)
    forms = {(one.cell.strategy.graph, one.cell.workload.cache) for one in records}
    assert len(forms) == 4
    for one in records:
        check(one, ranks)
        assert one.calibration and one.calibration["device"] == "cuda"
        assert one.calibration["backend"] == "nccl" and one.calibration["launch_s"] > 0
        cold = one.cell.workload.cache == "cold"
        assert [("cache" in rank) for rank in one.memory or []] == [cold] * ranks
    tuned = {
        one.kernel["how"] for one in records if one.kernel and one.cell.strategy.kernel == "auto"
    }
    assert tuned == {"measured"}
    seen = list(watched(tmp_path))
    assert len(seen) == 2 * ranks  # launches: warm and cold
    assert [rank["on_host"] for rank in seen if rank["on_host"]] == []


@pytest.mark.dist
def test_cells_of_a_wave_without_room_for_all_keep_their_layer_s_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "fits_together", lambda jobs: False)
    strategies = with_and_without_graph(STRATEGIES[0], "grouped")
    measure = replace(WARM, calibrate=False)
    records = measured(
        [job(1, one, mode, measure) for one in strategies for mode in MODES], tmp_path
    )
    assert len(records) == 4
    for one in records:
        check(one, 1)
        assert one.samples.kind.count("fixed") == 3, name_of(one)
    (seen,) = watched(tmp_path)
    assert seen["on_host"] == []
    in_dtype = {name: times for name, times in seen["made"].items() if "bfloat16" in name}
    assert in_dtype == {"bfloat16 [0, 1, 2, 3] [0, 64]": 1}


SYMM_MEM = StrategySpec("ep", dispatcher="symm_mem")


@pytest.mark.dist
def test_a_sweep_through_symmetric_memory(tmp_path: Path) -> None:
    measure = replace(WARM, calibrate=False)
    jobs = [job(2, SYMM_MEM, mode, measure) for mode in MODES]
    jobs += [
        job(2, SYMM_MEM, "train", replace(measure, cache="cold")),
        job(2, STRATEGIES[2], "train", measure),
    ]
    records = measured(jobs, tmp_path, "symm_mem_worker")
    assert len(records) == 4
    for one in records:
        check(one, 2)
        if one.cell.strategy.dispatcher == "symm_mem":
            assert one.host_waits == [0, 0] and one.kernel
            assert (one.kernel["name"], one.kernel["how"]) == ("grouped", "asked for")


@pytest.mark.dist
def test_without_nvshmem_the_cell_fails_by_name_and_others_are_measured(tmp_path: Path) -> None:
    measure = replace(WARM, calibrate=False)
    jobs = [job(2, one, "forward", measure) for one in (SYMM_MEM, STRATEGIES[2])]
    worker = partial(start, worker="tests.dist.gpu_worker")
    Sweep(jobs, Settings(tmp_path / "sweep"), Progress(), worker).run()
    records = [record.read(path) for path in record.paths(tmp_path / "sweep")]
    by_dispatcher = {one.cell.strategy.dispatcher: one for one in records}
    assert by_dispatcher["alltoall"].outcome == "measured"
    failed = by_dispatcher["symm_mem"]
    assert failed.outcome == "failed"
    assert "strategy.dispatcher=symm_mem: allowed is symm_mem where torch finds NVSHMEM" in str(
        failed.error
    )
