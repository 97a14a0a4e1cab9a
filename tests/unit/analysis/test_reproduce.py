"""`reproduce`: verdicts of cells with a known ratio, cells without a partner, what is refused."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

import analysis
from analysis import cli
from analysis.packing import reproduction, side_by_side, this_machine
from analysis.packing.this_machine import Possible
from runners.records import record
from runners.records.emulation import Emulation
from runners.records.record import Record, cell_key
from runners.records.sealed import sealed
from tests.support import analysis_factory as factory

PYTHON = sys.executable
EMULATED = {**factory.ENVIRONMENT, "emulated": dataclasses.asdict(Emulation())}
CELLS = {name: factory.cell(name, ranks=2) for name in ("simple", "tp", "ep", "dp")}


def sweep(folder: Path, records: list[Record], command: str = "", **further: str) -> str:
    folder.mkdir(exist_ok=True)
    for one in records:
        record.write(folder, one)
    plan = {"name": folder.name, "command": command, "cells": [], **further}
    (folder / "plan.json").write_text(sealed(plan), "utf-8")
    return str(folder)


def launches(name: str, scale: float = 1.0, **fields: Any) -> list[Record]:
    """Six launches of a cell, of which each is off by half a percent."""
    return [
        factory.measured(CELLS[name], launch=n, scale=scale, launch_effect=0.002, noise=0.002,
                         measure={"samples": 6}, **fields)
        for n in range(6)
    ]  # fmt: skip


def calibrated(name: str, scale: float = 1.0) -> list[Record]:
    return launches(name, scale, calibration={**factory.CALIBRATION, "ranks": 2})


def verdicts(there: str, here: str, **refusals: str) -> dict[str, side_by_side.Pairing]:
    reasons = {cell_key(CELLS[name]): reason for name, reason in refusals.items()}
    pairs = side_by_side.pairings(analysis.load(there), analysis.load(here), 0.02, reasons)
    return {pair.cell.strategy: pair for pair in pairs}


def test_a_ratio_below_one_is_faster_here(tmp_path: Path) -> None:
    """tp takes 10% less here, ep 10% more, simple as long."""
    there = sweep(tmp_path / "there", [r for n in ("simple", "tp", "ep") for r in launches(n)])
    scales = {"simple": 1.0, "tp": 0.9, "ep": 1.1}
    records = [r for name, scale in scales.items() for r in launches(name, scale, seed=1)]
    pairs = verdicts(there, sweep(tmp_path / "here", records))
    words = {name: pair.word for name, pair in pairs.items()}
    assert words == {"simple": "same within 2%", "tp": "faster", "ep": "slower"}
    for name, expected in scales.items():
        ratio, low, high = map(float, pairs[name].row()[3].replace(",", "").replace(
            "[", "").replace("]", "").split())  # fmt: skip
        assert ratio == pytest.approx(expected, rel=0.01)
        assert low < ratio < high
    there_ms, here_ms = (float(text) for text in pairs["tp"].row()[1:3])
    assert here_ms / there_ms == pytest.approx(0.9, rel=0.02)


def test_a_few_noisy_rounds_show_no_difference(tmp_path: Path) -> None:
    for name, scale in (("there", 1.0), ("here", 1.05)):
        one = factory.measured(CELLS["ep"], rounds=4, noise=0.2, scale=scale)
        sweep(tmp_path / name, [one])
    pairs = verdicts(str(tmp_path / "there"), str(tmp_path / "here"))
    assert pairs["ep"].word == "no difference shown"


def test_a_launch_of_the_same_name_and_number_is_not_taken_for_the_same(tmp_path: Path) -> None:
    """Rounds of two runs are no pairs, though machine, sweep and launch are called the same."""
    sides = [sweep(tmp_path / name, launches("ep")) for name in ("there", "here")]
    pairs = verdicts(*sides)
    comparison = pairs["ep"].comparison
    assert comparison and comparison.verdict and not comparison.verdict.paired


def test_a_cell_without_a_partner_says_why(tmp_path: Path) -> None:
    there = sweep(tmp_path / "there", [
        *launches("simple"), *launches("tp"), *launches("dp"),
        factory.unmeasured(CELLS["ep"], "failed", "out of memory"),
    ])  # fmt: skip
    here = sweep(tmp_path / "here", [
        *launches("ep"), factory.unmeasured(CELLS["simple"], "failed", "a rank died"),
        factory.unmeasured(CELLS["dp"], "interrupted", gate={"ok": True, "detail": "it agrees"}),
    ])  # fmt: skip
    pairs = verdicts(there, here, tp="backend=nccl: allowed with 2 CUDA devices")
    assert {name: pair.row()[-1] for name, pair in pairs.items()} == {
        "simple": "not measured here (failed: a rank died)",
        "tp": "not measured here (backend=nccl: allowed with 2 CUDA devices)",
        "dp": "not measured here (interrupted)",
        "ep": "not measured there (failed: out of memory)",
    }
    expected = {name for name, pair in pairs.items() if pair.expected}
    assert expected == {"simple", "dp"}


def test_a_cell_that_is_only_checked_is_not_missed(tmp_path: Path) -> None:
    there = sweep(tmp_path / "there", launches("ep"))
    here = sweep(tmp_path / "here", [factory.unmeasured(CELLS["ep"], "checked")])
    (pair,) = verdicts(there, here).values()
    assert (pair.row()[-1], pair.expected) == ("not measured here (checked, not timed)", False)


def test_both_sides_are_printed_with_what_differs_and_what_explains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("simple", "tp", "ep", "dp")
    there = sweep(tmp_path / "there", [r for name in names for r in calibrated(name)])
    records = [r for n in names for r in calibrated(n, 1.2 if n == "simple" else 1.5)]
    environment = {**factory.ENVIRONMENT, "host": "ba9876543210", "cpu_model": "Imaginary 8000"}
    for one in records:
        one.environment = environment
    here = sweep(tmp_path / "here", records)
    assert cli.main(["reproduce", there, "--with", here]) == 0
    out = capsys.readouterr().out
    assert "Of 4 cells, here against there: slower 4." in out
    assert "There and here are different machines, with the same commit." in out
    assert "processor: Imaginary 9000 there against Imaginary 8000 here" in out
    assert out.count("faster than here (") == 3  # sentences, of there against here
    assert out.count("analysis explain") == 1  # the fourth cell
    assert f"--a cell_id={cell_key(CELLS['simple'])}" in out  # whose ratio is nearest to 1


def test_a_side_without_a_calibration_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = sweep(tmp_path / "there", calibrated("ep"))
    here = sweep(tmp_path / "here", launches("ep", 1.5))
    assert cli.main(["reproduce", there, "--with", here]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "1 difference is not explained: no calibration here; measure with" in out


def test_a_cell_that_was_left_out_here_ends_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = sweep(tmp_path / "there", [*launches("ep"), *launches("tp")])
    here = sweep(tmp_path / "here", [*launches("ep"), *launches("dp")])
    assert cli.main(["reproduce", there, "--with", here, "--format", "csv"]) == 1
    out = capsys.readouterr().out
    assert "cell,there ms,here ms,here / there,verdict" in out
    assert "not measured here (no attempt in these records)" in out
    assert f"# 1 cell of {here} has none there beside it." in out


def test_without_run_it_says_what_was_measured_and_how_to_measure_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "python runners/bench.py -m strategy=ep,tp world_size=2"
    on_gpus = dataclasses.replace(
        CELLS["tp"], placement=dataclasses.replace(CELLS["tp"].placement, device="cuda",
                                                   backend="nccl", world_size=512)
    )  # fmt: skip
    records = [*launches("ep"), factory.measured(on_gpus)]
    there = sweep(tmp_path / "my sweep", records, command)
    assert cli.main(["reproduce", there, "--format", "markdown"]) == 0
    out = capsys.readouterr().out
    assert "2 cells (2 measured) of tp, ep." in out
    assert "Machine: Imaginary 9000, 2 cores" in out
    assert f"bench.py -m 'cells='\"'\"'{there}'\"'\"''" in out  # quoted for Hydra and the shell
    assert f"`{command}`" in out
    assert f"Cannot run here: tp {cell_key(on_gpus)}: " in out
    assert "processor: Imaginary 9000 there against" in out


@pytest.mark.parametrize(
    ("command", "shown"),
    [("python runners/bench.py -m topk=1,2", True), ("", False),
     ("python runners/bench.py -m workload.trace=(withheld)", False)],
)  # fmt: skip
def test_a_command_is_shown_where_it_is_whole(tmp_path: Path, command: str, shown: bool) -> None:
    there = sweep(tmp_path / "there", launches("ep"), command)
    lines = reproduction.commands(there, ["measure=quick"])
    assert lines[1].endswith(f"-m cells={there} measure=quick")
    assert lines[2:] == (["The sweep was started by", f"    {command}"] if shown else [])


def test_cells_that_cannot_run_here_are_named_by_their_reason(tmp_path: Path) -> None:
    frame = analysis.load(sweep(tmp_path / "there", [r for n in CELLS for r in launches(n)]))
    ids = {name: cell_key(cell) for name, cell in CELLS.items()}
    refusals = dict.fromkeys(ids.values(), "no GPU") | {ids["ep"]: None}
    (line,) = reproduction.impossible(frame, Possible(refusals, {}))
    named = ", ".join(f"{name} {ids[name]}" for name in ("simple", "tp", "dp"))
    assert line == f"Cannot run here: {named}: no GPU"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none"], "none: there is no such folder"),
        (["there", "there"], "reproduce: 2 sources; allowed is one"),
        (["there", "--run", "--with", "there"], "--with there: not together with --run"),
        (["there", "--run", "--filter", "topk=2"], "--filter topk=2: not together with --run"),
        (["there", "--run", "--override", "quick"], "--override quick: allowed is KEY=VALUE"),
        (["there", "--with", "none"], "none: there is no such folder"),
        (["there", "--threshold", "2"], "--threshold 2.0: allowed are numbers from 0 to 1"),
        (["x.moebench"], "x.moebench: "),
        (["there", "--override", "nosuch=1"], "reproduce: nosuch: no such key"),
        (["there", "--override", "on_error=never"], "reproduce: on_error='never': allowed are"),
        (["there", "--override", "cells=x"], "reproduce: --override cells=x: names a second"),
        (["there", "-o", "x.moebench/a/b"], "-o x.moebench/a/b: cannot be written"),
        (["emulated"], "reproduce: emulated: its times are of an emulated cluster"),
        (["."], "reproduce: .: holds no cells; allowed are a packed file"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep(tmp_path / "there", launches("ep"))
    if words == ["emulated"]:
        sweep(tmp_path / "emulated", launches("ep", environment=EMULATED))
    (tmp_path / "x.moebench").write_bytes(b"no zip")
    assert cli.main(["reproduce", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"analysis: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a/b-c.moebench", "cells=a/b-c.moebench"), ("https://h.org/x", "cells=https://h.org/x"),
     ("my sweep", "cells='my sweep'"), ("it's", "cells='it\\'s'"), ("a,b", "cells='a,b'"),
     ("${x}", "cells='${x}'")],
)  # fmt: skip
def test_a_source_is_quoted_where_hydra_would_split_it(value: str, expected: str) -> None:
    assert this_machine.word("cells", value) == expected


def start_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Lets `program` take the place of Python; its arguments are those of the bench, after -m and
    the module's name."""
    path = tmp_path / "python"
    path.write_text(f"#!{PYTHON}\nimport json, sys\n{program}\n", "utf-8")
    path.chmod(0o755)
    monkeypatch.setattr(this_machine.sys, "executable", str(path))


def test_the_exit_code_and_folder_of_the_sweep_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = 'print("tables"); print(json.dumps({"sweep_dir": sys.argv[4]})); sys.exit(1)'
    start_instead(tmp_path, monkeypatch, end)
    assert this_machine.measure(["-m", "x"]) == (1, Path("x"))
    start_instead(tmp_path, monkeypatch, "sys.exit(2)")
    assert this_machine.measure(["-m", "x"]) == (2, None)


def test_a_sweep_that_refuses_or_is_interrupted_ends_reproduce_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = sweep(tmp_path / "there", launches("ep"))
    possible = Possible({cell_key(CELLS["ep"]): None}, {})
    monkeypatch.setattr(this_machine, "possible", lambda *_: possible)
    nothing = tmp_path / "nothing"
    sweep(nothing, [])
    for code, folder in ((130, nothing), (2, None), (130, tmp_path / "there"), (130, None),
                         (1, None)):  # fmt: skip
        monkeypatch.setattr(this_machine, "measure", lambda _, c=code, f=folder: (c, f))
        assert cli.main(["reproduce", there, "--run"]) == code
        err = capsys.readouterr().err
        assert ("nothing was measured" in err) == (folder == nothing)
        assert ("interrupted; what was measured is shown by:" in err) == (str(folder) == there)
        again = (f"resume={folder}", f"reproduce {there} --with {folder}")
        assert all((line in err) == (folder is not None) for line in again)


def test_nothing_is_started_where_no_cell_can_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = sweep(tmp_path / "there", launches("ep"))
    possible = Possible({cell_key(CELLS["ep"]): "no GPU"}, {})
    monkeypatch.setattr(this_machine, "possible", lambda *_: possible)
    monkeypatch.setattr(this_machine, "measure", lambda _: pytest.fail("it was started"))
    assert cli.main(["reproduce", there, "--run"]) == 1
    out = capsys.readouterr().out
    assert "Nothing was measured here: none of these cells can run." in out
    assert "not measured here (no GPU)" in out
    assert "Of 1 cell, here against there: not measured here 1." in out


def test_what_is_typed_wins_over_what_run_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = sweep(tmp_path / "there", launches("ep"))
    words: list[str] = []
    monkeypatch.setattr(
        this_machine, "possible", lambda *_: Possible({cell_key(CELLS["ep"]): None}, {})
    )
    monkeypatch.setattr(this_machine, "measure", lambda given: (words.extend(given), (2, None))[1])
    options = ["--run", "-o", str(tmp_path / "o"), "--override", "report=true"]
    assert cli.main(["reproduce", there, *options]) == 2
    assert words == ["-m", f"cells={there}", "on_invalid=skip", "name=reproduce",
                     f"hydra.sweep.dir={tmp_path / 'o'}", "report=true"]  # fmt: skip


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
