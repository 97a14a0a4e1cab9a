"""Cells that run out of a GPU's memory, and cells whose messages are staged through the host, in
real launches whose ranks compute on the CPU (memory_worker.py plants both)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from memory_worker import STAGED

import analysis
from analysis.stats.summarize import summarize
from analysis.text import status, tables
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec
from runners.launch.local import start
from runners.plan import Job, Measure
from runners.records import record
from runners.records.record import Record
from runners.sweep import launch as follow
from runners.sweep.assemble import STAGED as STAGED_NOTE
from runners.sweep.progress import Progress
from runners.sweep.result import SweepResult
from runners.sweep.settings import Settings
from runners.sweep.sweep import Sweep

MEASURE = Measure(
    samples=3, samples_max=3, block=1, warmup=1, warmup_max=1, anchors=2, phases=1, calibrate=False
)
WHY = "ran out of GPU memory: 20.00 GiB were asked for, 3.10 GiB were free"


def jobs(labels: list[str], ranks: int = 1, strategy: str = "simple") -> list[Job]:
    """A cell for each label, told apart by their batches."""
    layer = LayerSpec(dim=16, hidden=32, dim_out=16, num_experts=4, topk=2, topk_requested=2)
    place = RankLayout(world_size=ranks)
    return [
        Job(Cell(layer, StrategySpec(strategy), WorkloadSpec(batch_size=8 + n), place), MEASURE,
            label=label)
        for n, label in enumerate(labels)
    ]  # fmt: skip


def run(wanted: list[Job], folder: Path) -> tuple[SweepResult, dict[str, Record]]:
    """Its result, and the newest record of every label."""
    planted = partial(start, worker="tests.dist.memory_worker")
    settings = Settings(folder, pass_env=(STAGED,))
    result = Sweep(wanted, settings, Progress(), planted).run()
    found = [record.read(path) for path in record.paths(folder)]
    return result, {one.label: one for one in sorted(found, key=lambda one: one.launch)}


@pytest.mark.dist
@pytest.mark.parametrize("together", [True, False])
def test_a_cell_that_runs_out_fails_alone_at_whatever_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    monkeypatch.setattr(follow, "fits_together", lambda jobs: together)
    stages = ["gate", "warm-up", "phases", "round", "check"]
    result, found = run(jobs(["first", *stages, "last"]), tmp_path)
    assert {label: one.outcome for label, one in found.items()} == {
        "first": "measured", **dict.fromkeys(stages, "failed"), "last": "measured",
    }  # fmt: skip
    assert {one.launch for one in found.values()} == {0}
    for stage in stages:
        one = found[stage]
        assert one.error == {"message": f"rank 0 {WHY}", "rank": 0, "log": one.error["log"]}
        assert (tmp_path / one.error["log"]).is_file()
        assert one.samples.round == []
        assert (one.stop, one.phases) == (None, None)
    for label in ("first", "last"):
        assert found[label].samples.kind.count("fixed") == 3
        assert (found[label].gate or {})["after"]["ok"]
        assert (found[label].kernel or {})["out_of_memory"] == ["bmm"]
        assert "bmm" not in (found[label].kernel or {})["candidates_ms"]
        anchor = (found[label].anchors or {}).get("key")  # none where it was a cell that failed
        assert anchor in {None, found["first"].key, found["last"].key}
    assert result.exit_code == 1
    assert sorted(cell for cell, _, _ in result.failures) == sorted(
        found[stage].cell_id for stage in stages
    )


@pytest.mark.dist
def test_a_wave_of_which_every_cell_runs_out_ends_and_says_so(tmp_path: Path) -> None:
    result, found = run(jobs(["round"]), tmp_path)
    assert found["round"].outcome == "failed"
    assert len(result.failures) == 1


@pytest.mark.dist
def test_of_several_ranks_the_one_that_ran_out_is_named_and_the_other_cells_are_measured(
    tmp_path: Path,
) -> None:
    result, found = run(jobs(["first", "rank1", "last"], ranks=2, strategy="tp"), tmp_path)
    assert {label: one.outcome for label, one in found.items()} == {
        "first": "measured", "rank1": "failed", "last": "measured",
    }  # fmt: skip
    error = found["rank1"].error or {}
    assert (error["message"], error["rank"]) == (f"rank 1 {WHY}", 1)
    assert len(result.failures) == 1


@pytest.mark.dist
def test_cells_with_staged_messages_are_checked_twice_and_never_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STAGED, "1")
    monkeypatch.setattr(RankLayout, "staged", True)
    wanted = jobs(["first", "wrong", "last"], ranks=2, strategy="tp")
    result, found = run(wanted, tmp_path)
    assert {label: one.outcome for label, one in found.items()} == {
        "first": "checked", "wrong": "wrong", "last": "checked",
    }  # fmt: skip
    for label in ("first", "last"):
        one = found[label]
        gate = one.gate or {}
        assert gate["ok"] and gate["after"]["ok"] and gate["seed"] != gate["after"]["seed"]
        assert STAGED_NOTE in one.notes
        assert one.samples.round == [] and not (one.floor or {})["round"]
        assert (one.stop, one.phases, one.warmup, one.calibration) == (None, None, None, None)
        assert one.traffic and one.memory
    assert result.exit_code == 1  # for the wrong one
    assert result.timed_s == 0
    planted = partial(start, worker="tests.dist.memory_worker")
    again = Sweep(
        [wanted[0], wanted[2]], Settings(tmp_path, resume_mode="missing"), Progress(), planted
    ).run()
    assert again.exit_code == 0
    assert again.counts()["checked"] == 2
    assert len(list(tmp_path.glob("launches/*/launch.json"))) == 1

    frame = analysis.load([tmp_path])
    cells = summarize(frame)
    (table,) = tables.sweep_tables(cells[cells["label"] == "first"])
    assert {entry.text for entry in table.entries.values()} == {"checked, not timed"}
    assert [line.split(":")[0] for line in status.failures(frame)] == ["wrong"]
