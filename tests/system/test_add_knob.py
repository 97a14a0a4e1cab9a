"""CONTRIBUTING.md's example of a knob, applied to a copy of the project."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runners.records import record
from tests.support.copies import ROOT, changed_files, copy_project, run_in

STEP = re.compile(
    r"In `([\w/.]+)`, after:\n+```python\n(.*?)```\n+add:\n+```python\n(.*?)```", re.DOTALL
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the example's lines."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    steps = STEP.findall(text.split("## Add a knob")[1].split("\n## ")[0])
    assert len(steps) >= 2
    folder = copy_project(tmp_path_factory.mktemp("knob"))
    for name, after, added in steps:
        code = (folder / name).read_text("utf-8")
        assert code.count(after) == 1, (name, after)
        (folder / name).write_text(code.replace(after, after + added), "utf-8")
    return folder


def test_a_knob_is_a_field_and_its_use(copy: Path) -> None:
    assert run_in(copy, "-m", "runners.config.schema").returncode == 0
    assert changed_files(copy) == {
        "runners/plan.py", "runners/rank/engine.py", "docs/configuration.md"
    }  # fmt: skip
    assert "`measure.pause_ms`" in (copy / "docs" / "configuration.md").read_text("utf-8")


def test_the_help_and_the_errors_know_it(copy: Path) -> None:
    shown = run_in(copy, "runners/bench.py", "--help")
    assert shown.returncode == 0 and "  measure.pause_ms=0" in shown.stdout
    refused = run_in(copy, "runners/bench.py", "measure.pause_ms=-1")
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: measure.pause_ms=-1: allowed are finite numbers of at least 0.0; "
        "set measure.pause_ms to one of them\n"
    )


@pytest.mark.dist
def test_it_reaches_the_ranks_and_the_record(copy: Path, tmp_path: Path) -> None:
    small = ["world_size=1", "measure=quick", "tracker=none", "report=false"]
    sweep = run_in(
        copy, "runners/bench.py", *small, "measure.pause_ms=5", f"hydra.run.dir={tmp_path}/sweep"
    )
    assert sweep.returncode == 0, sweep.stderr
    (path,) = record.paths(tmp_path / "sweep")
    assert '"pause_ms":5.0' in path.read_text("utf-8")
