"""Every fault of the table is reported as wrong by a real run; the cells without it are not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from runners.launch.local import start
from runners.plan import Job, Measure
from runners.records import record
from runners.records.record import Record
from runners.sweep import launch
from runners.sweep.progress import Progress
from runners.sweep.settings import Settings
from runners.sweep.sweep import Sweep
from tests.support.mutants import MUTANTS, Mutant

MEASURE = Measure(
    samples=3, samples_max=3, block=2, warmup=1, warmup_max=1, anchors=2, phases=2, wave_cells=1,
    calibrate=False,
)  # fmt: skip
TOGETHER = replace(MEASURE, wave_cells=20)  # where nothing is planted
KINDS = {"routing", "definitions", "dispatch", "combine", "kernels", "tolerance", "state",
         "copies", "gradients", "sampling"}  # fmt: skip


@pytest.fixture(autouse=True)
def launcher_that_looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wave waits for it."""
    monkeypatch.setattr(launch, "POLL_S", 0.02)


def run(folder: Path, jobs: Iterable[Job]) -> dict[str, Record]:
    """Records by label, or by key where there is none."""
    mutated = partial(start, worker="tests.dist.mutant_worker")
    Sweep(list(jobs), Settings(folder), Progress(), mutated).run()
    found = [record.read(path) for path in record.paths(folder)]
    return {one.label or one.key: one for one in found}


def test_the_table_has_every_kind() -> None:
    assert {mutant.kind for mutant in MUTANTS.values()} == KINDS
    assert len(MUTANTS) >= 80


@pytest.mark.dist
@pytest.mark.timeout(900)
def test_every_mutant_is_wrong_and_every_cell_without_it_is_right(tmp_path: Path) -> None:
    planted = [Job(m.cell, MEASURE, label=name) for name, m in MUTANTS.items()]
    clean = {job.key: Job(job.cell, TOGETHER) for job in planted}
    found = run(tmp_path, [*clean.values(), *planted])
    outcomes = Counter((name in MUTANTS, one.outcome) for name, one in found.items())
    passed = [name for name in MUTANTS if found[name].outcome != "wrong"]
    called_wrong = {k: found[k].gate for k in clean if found[k].outcome != "measured"}
    assert (passed, called_wrong) == ([], {})
    assert outcomes == {(True, "wrong"): len(MUTANTS), (False, "measured"): len(clean)}
    for name in MUTANTS:
        one = found[name]
        assert one.samples.steps == [] and one.phases is None, name
        assert one.gate is not None and not one.gate["ok"] and one.gate["detail"], name


def later(name: str) -> Mutant:
    return MUTANTS[name]


@pytest.mark.dist
def test_what_changes_later_is_named_with_its_rank_and_size(tmp_path: Path) -> None:
    names = ("wrong_on_one_rank_from_the_9th_call", "gradient_lost_at_the_9th_call")
    jobs = [Job(later(name).cell, MEASURE, label=name) for name in names]
    found = run(tmp_path, jobs)
    details = [(found[name].gate or {})["detail"] for name in names]
    assert details[0].startswith("right at first, then the output (relative change ")
    assert re.search(r"\) on rank 1, (after|when) [a-z]", details[0])
    assert "the gradient of router.weight_ED (relative change 1) on rank 0" in details[1]
