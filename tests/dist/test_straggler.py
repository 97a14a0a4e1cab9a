"""A slow rank is named, the others are seen to wait for it, and the cell's time has it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from planted_worker import SLEEP_S

import analysis
from analysis.stats import straggler
from analysis.stats.summarize import summarize
from analysis.text import diagnosis
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec
from runners.launch.local import start
from runners.plan import Job, Measure
from runners.sweep.progress import Progress
from runners.sweep.settings import Settings
from runners.sweep.sweep import Sweep

SLEEP_MS = SLEEP_S * 1e3
MEASURE = Measure(samples=6, samples_max=6, block=1, anchors=0, phases=3, calibrate=False)


def test_the_straggler_is_who_is_busy_while_the_others_wait() -> None:
    ranks = [
        {"experts": 2.0, "wait": 9.0, "router": 1.0},
        {"experts": 9.0, "wait": 0.5, "router": 1.5},
        {"experts": 2.5, "wait": 8.0, "router": 1.0},
    ]
    assert straggler.find(ranks) == straggler.Straggler(1, 10.5, 3.25, 8.5, "experts")


@pytest.mark.parametrize(
    "ranks",
    [
        [],
        [{"experts": 5.0}],
        [{"experts": 5.0, "wait": 1.0}, {"experts": 6.0, "wait": 0.0}],  # under a quarter more
        [{"experts": 0.1, "wait": 9.9}, {"experts": 0.5, "wait": 9.5}],  # under 5% of the step
    ],
)
def test_small_differences_are_no_straggler(ranks: list[dict[str, float]]) -> None:
    assert straggler.find(ranks) is None


def cell(strategy: StrategySpec) -> Cell:
    layer = LayerSpec(dim=64, hidden=128, dim_out=64, num_experts=4, topk=2, topk_requested=2)
    return Cell(layer, strategy, WorkloadSpec(batch_size=32), RankLayout(world_size=2))


@pytest.mark.dist
def test_a_planted_sleep_shows_by_rank_in_the_wait_and_in_the_time(tmp_path: Path) -> None:
    chosen = [
        StrategySpec("tp", kernel="bmm"),
        StrategySpec("ep", dispatcher="alltoall", kernel="bmm"),
    ]
    jobs = [Job(cell(strategy), MEASURE) for strategy in chosen]
    planted = partial(start, worker="tests.dist.planted_worker")
    result = Sweep(jobs, Settings(tmp_path), Progress(), planted).run()
    assert result.exit_code == 0, result.failures
    frame = analysis.load([tmp_path])
    assert len(frame) == 2
    for row in frame.itertuples():
        first, second = row.phase_per_rank_ms
        assert second["experts"] >= SLEEP_MS > first["experts"]
        assert first["wait"] >= SLEEP_MS / 2 > second["wait"]
        assert row.min_duration_ms >= SLEEP_MS
        found = straggler.find(row.phase_per_rank_ms)
        assert found is not None
        assert (found.rank, found.phase) == (1, "experts")
        assert 0.9 < sum(row.phase_ms.values()) / row.phase_total_ms < 1.1
    found_by_check = [
        f for f in diagnosis.findings(frame, summarize(frame)) if "straggler" in f.problem
    ]
    if (frame["cores"] >= 2).all():  # ranks without a core of their own prove nothing
        assert [len(f.cells) for f in found_by_check] == [2]
