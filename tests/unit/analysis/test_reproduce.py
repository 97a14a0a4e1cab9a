"""`reproduce`: verdicts of cells with a known ratio, cells without a partner, what is refused."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

import analysis
from analysis import cli
from analysis.packing import reproduction, this_machine
from analysis.packing.this_machine import Possible
from runners.records.record import cell_key
from tests.support import analysis_factory as factory
from tests.support.reproduced import CELLS, EMULATED, calibrated, launches, sweep, verdicts

PYTHON = sys.executable


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
