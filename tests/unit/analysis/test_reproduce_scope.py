"""`reproduce`: which cells, overrides and attempts count, and where the verdicts are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis import cli
from analysis.packing import this_machine
from analysis.packing.this_machine import Possible
from runners.records.record import cell_key
from tests.support import analysis_factory as factory
from tests.support.reproduced import CELLS, EMULATED, launches, sweep, verdicts


def test_a_filter_leaves_out_refusals_and_is_not_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = sweep(tmp_path / "there", [*launches("ep"), *launches("tp"), *launches("dp")])
    refusals = {cell_key(CELLS[name]): "no GPU" for name in ("ep", "tp", "dp")}
    monkeypatch.setattr(this_machine, "possible", lambda *_: Possible(refusals, {}))
    assert cli.main(["reproduce", there, "--filter", "strategy=ep,tp"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Cannot run here" in out
    assert cell_key(CELLS["dp"]) not in out
    assert all(f"{name} {cell_key(CELLS[name])}" in out for name in ("tp", "ep"))
    assert "and 1 more" not in out
    assert "--filter is not of this command, which measures all 3 cells, here:" in out


def test_an_override_is_part_of_the_check(tmp_path: Path) -> None:
    """ep with two ranks needs as many experts as ranks, or a multiple."""
    there = sweep(tmp_path / "there", [*launches("ep"), *launches("dp")])
    possible = this_machine.possible(there, ["model.num_experts=3", "num_experts=3"])
    assert "num_experts=3" in str(possible.refusals[cell_key(CELLS["ep"])])
    assert possible.refusals[cell_key(CELLS["dp"])] is None
    either = this_machine.possible(there, ["num_experts=3,4"])
    assert set(either.refusals.values()) == {None}  # one of the two jobs of ep can run


def test_an_attempt_here_says_more_than_a_refusal(tmp_path: Path) -> None:
    there = sweep(tmp_path / "there", launches("ep"))
    here = sweep(tmp_path / "here", [factory.unmeasured(CELLS["ep"], "failed", "a rank died")])
    (pair,) = verdicts(there, here, ep="no GPU").values()
    assert (pair.why, pair.expected) == ("failed: a rank died", True)


def test_environments_are_those_of_the_cells_that_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {**factory.ENVIRONMENT, "cpu_model": "Imaginary 7000"}
    failed = factory.unmeasured(CELLS["ep"], "failed", environment=other)
    failed.launch = 9
    there = sweep(tmp_path / "there", [*launches("ep"), *launches("tp", environment=other), failed])
    here = sweep(tmp_path / "here", launches("ep"))
    assert cli.main(["reproduce", there, "--with", here]) == 1
    assert "Imaginary 7000" not in capsys.readouterr().out


def test_cells_of_an_emulated_cluster_are_left_out_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [*launches("ep"), *launches("tp", environment=EMULATED)]
    there = sweep(tmp_path / "there", records)
    assert cli.main(["reproduce", there]) == 0
    out = capsys.readouterr().out
    assert f"Left out, as their times are of an emulated cluster: tp {cell_key(CELLS['tp'])}" in out
    assert "1 cell (1 measured) of ep." in out
    assert cli.main(["reproduce", there, "--with", sweep(tmp_path / "here", launches("ep"))]) == 0
    assert "Of 1 cell, here against there" in capsys.readouterr().out
    assert cli.main(["reproduce", there, "--filter", "strategy=ep"]) == 0
    assert "Left out" not in capsys.readouterr().out


def test_how_cells_were_scheduled_is_said_before_the_rest_of_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All three cells of a launch share a wave there; here each has a launch of its own. A filter
    does not change how many they were."""
    names = ("ep", "tp", "dp")
    shared = [factory.measured(CELLS[name], measure={"samples": 20, "phases": 5}) for name in names]
    alone = [
        factory.measured(CELLS[name], launch=number, measure={"samples": 6, "phases": 5, "new": 1})
        for number, name in enumerate(names)
    ]
    for one in alone:
        one.environment = {**factory.ENVIRONMENT, "cpu_model": "Imaginary 8000", "cores": 99}
    there = sweep(tmp_path / "there", shared, name="sweep", isolation="group")
    here = sweep(tmp_path / "here", alone, name="sweep", isolation="cell")
    assert cli.main(["reproduce", there, "--with", here, "--filter", "strategy=ep,tp"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = lines.index("processor: Imaginary 9000 there against Imaginary 8000 here")
    assert lines[first + 1 : first + 5] == [
        "isolation: group there against cell here",
        "cells in a wave: 3 there against 1 here",
        "measure: samples 20 there against samples 6 here",
        "cores: 2 there against 99 here",
    ]


def test_one_ratio_and_its_launches_are_counted_in_the_singular(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = sweep(tmp_path / "there", launches("ep"))
    here = sweep(tmp_path / "here", launches("ep", 1.5)[:1])
    assert cli.main(["reproduce", there, "--with", here]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "The interval of the ratio holds at 95%, within 6 launches there and 1 here;" in out


def test_the_verdicts_are_kept_in_the_folder_of_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = sweep(tmp_path / "there", launches("ep"))
    here = sweep(tmp_path / "here", launches("ep", 1.5))
    possible = Possible({cell_key(CELLS["ep"]): None}, {})
    monkeypatch.setattr(this_machine, "possible", lambda *_: possible)
    monkeypatch.setattr(this_machine, "measure", lambda _: (0, Path(here)))
    assert cli.main(["reproduce", there, "--run", "--format", "csv"]) == 0
    path = Path(here) / "tables" / "reproduced.md"
    assert f"# Written to {path}" in capsys.readouterr().out
    text = path.read_text("utf-8")
    assert "| here / there" in text
    assert "| slower" in text
    assert f"Measured here: {here}" in text
