"""Cells that come and go within a round, cold caches, and one kernel for all launches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec
from runners.plan import Job, Measure
from runners.records import record
from runners.sweep import launch as follow
from runners.sweep.progress import Progress
from runners.sweep.settings import Settings
from runners.sweep.sweep import Sweep

MEASURE = Measure(
    samples=6, samples_max=6, block=1, anchors=2, phases=2, launches=2, calibrate=False
)  # fmt: skip


def job(strategy: str, cache: str, slowdown: float = 0.0) -> Job:
    layer = LayerSpec(dim=64, hidden=128, dim_out=64, num_experts=4, topk=2, topk_requested=2)
    cell = Cell(
        layer, StrategySpec(strategy, slowdown=slowdown), placement=RankLayout(world_size=2)
    )
    cell = replace(cell, workload=replace(cell.workload, batch_size=8, cache=cache))
    return Job(cell, MEASURE)


@pytest.mark.dist
@pytest.mark.parametrize("together", [True, False])
def test_cells_are_measured_alike_whether_or_not_they_fit_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    monkeypatch.setattr(follow, "fits_together", lambda jobs: together)
    jobs = [job("tp", "warm"), job("tp", "warm", slowdown=0.5), job("tp", "cold")]
    result = Sweep(jobs, Settings(tmp_path), Progress()).run()
    assert result.exit_code == 0, result.failures
    found = [record.read(path) for path in record.paths(tmp_path)]
    assert len(found) == 6
    for one in found:
        assert one.samples.kind.count("fixed") == 6
        assert set(one.anchors or {}) == {"key", "first", "middle", "last"}
        assert one.phases and one.traffic and one.memory and one.skew
    for cache in ("warm", "cold"):  # planted work takes the kernel of the cell without it
        mine = [one for one in found if one.cell.workload.cache == cache]
        how = sorted((one.launch, (one.kernel or {})["how"]) for one in mine)
        assert len({(one.kernel or {})["name"] for one in mine}) == 1
        assert how.count((0, "measured")) == 1
        assert all(told == "chosen before" for launch, told in how if launch == 1)
