"""`pack`: the tables of a packed file are those of the sweep, and it names nobody."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from random import Random

import pytest

import analysis
from analysis import cli
from analysis.packing import pack
from runners.packed import guard
from runners.packed.packed_file import read_packed
from runners.records import record, stats
from runners.records.sealed import sealed
from tests.support import analysis_factory as factory
from tests.support.packed_sweeps import COMMAND, packed, records, sweep


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert cli.main(list(words)) == 0
    return capsys.readouterr().out


def texts(file: Path) -> str:
    """Everything in the file, as text, its names and headers too."""
    with zipfile.ZipFile(file) as archive:
        inside = [archive.read(name) for name in archive.namelist()]
    return b"\n".join([file.read_bytes(), *inside]).decode("latin-1")


def test_the_tables_are_those_of_the_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path / "sweep")
    file = packed(folder, tmp_path / "mine.moebench", "--no-pictures")
    for style in ("csv", "markdown"):
        there = [
            printed(capsys, "show", str(s), "--format", style).replace("mine", "sweep")
            for s in (folder, file)
        ]
        same = [[line for line in text.splitlines() if "Again: " not in line] for text in there]
        assert same[0] == same[1]
    assert "tp" in printed(capsys, "show", str(file), "--format", "csv")


def test_moved_to_another_folder_it_prints_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = packed(sweep(tmp_path / "a" / "sweep"), tmp_path / "a" / "x.moebench", "--no-pictures")
    there = tmp_path / "b" / "deeper"
    there.mkdir(parents=True)
    outputs = []
    for folder, user in ((tmp_path / "a", "one"), (there, "other")):
        monkeypatch.setenv("USER", user)
        monkeypatch.setenv("HOME", str(folder))
        monkeypatch.chdir(folder)
        if folder == there:
            file.rename(there / "x.moebench")
        outputs.append(printed(capsys, "show", "x.moebench", "--detail"))
    assert outputs[0] == outputs[1]
    assert "Source: x. Again: python -m analysis show x.moebench" in outputs[0]


def test_the_same_sweep_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep")
    first, second = (
        packed(folder, tmp_path / name / "x.moebench", "--no-pictures").read_bytes()
        for name in ("a", "b")
    )
    assert first == second


def test_what_it_is_about_is_in_the_manifest(tmp_path: Path) -> None:
    read = read_packed(packed(sweep(tmp_path / "s"), tmp_path / "x.moebench", "--no-pictures"))
    about = {name: value for name, value in read.manifest.items() if name != "parts"}
    assert about == {
        "format": "moebench", "version": 1, "name": "x", "record_schema": 4,
        "project": ["0.1.0"], "command": COMMAND, "code": [{"sha": "a" * 40, "dirty": None}],
        "created": "2026-01-01T00:00:00+00:00", "cells": 4, "attempts": 4,
    }  # fmt: skip
    assert read.plan is not None
    assert [cell["overrides"] for cell in read.plan["cells"]] == ["topk=2"] * 4
    assert {one.sweep for one in read.records} == {"x"}


def test_names_paths_and_secrets_of_a_hostile_sweep_stay_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder, a plan, refused cells and records that name a person, a machine and a key."""
    key, login = "0123456789abcdef0123456789abcdef01234567", "asmith"
    monkeypatch.setattr(pack, "names_here", lambda: frozenset([login, "node17"]))
    home = tmp_path / "home" / login
    attempts = records(
        sweep="alice-smith-run",
        label=login,
        notes=["written by alice smith to /home/asmith/x"],
        kernel={"name": "bmm", "how": f"/home/{login}/kernel.py", "user": login},
        meta={
            "model": "reference", "scale": 1, "owner": login,
            "overrides": ["topk=2", f"tracker.entity={login}", "workload.trace=/home/asmith/t.npz"],
        },
        environment={
            **factory.ENVIRONMENT, "hostname": "node17.cluster.example", "local_ranks": 2,
            "variables": {"NCCL_DEBUG": "/home/asmith/log", "GLOO_SOCKET_IFNAME": "node17"},
        },
    )  # fmt: skip
    attempts.append(
        dataclasses.replace(
            factory.unmeasured(
                factory.cell("simple", ranks=2), "failed",
                f"ConnectionError: alice.smith@node17.cluster.example: key {key}",
            ),
            sweep="alice-smith-run",
        )
    )  # fmt: skip
    attempts[-1].error = {**(attempts[-1].error or {}), "log": "/home/asmith/outputs/log.txt"}
    folder = sweep(
        home / "alice-smith-run", attempts,
        command=f"/home/{login}/env/bin/python /home/{login}/moe/runners/bench.py -m topk=2 "
                f"hydra.sweep.dir=/home/{login}/out tracker.entity={login} name=alice-smith",
    )  # fmt: skip
    refused = {"overrides": f"topk=9 workload.trace=/home/{login}/x", "reason": "alice smith"}
    (folder / "refused.json").write_text(sealed({"refused": [refused]}))
    file = packed(folder, tmp_path / "x.moebench")
    output = capsys.readouterr().out
    for word in ("alice", "smith", "node17", "/home", "cluster.example", key, "trace=/"):
        assert word not in texts(file).lower()
    assert "left out" in output and "environment.variables" in output
    read = read_packed(file)
    assert len(read.records) == 5
    assert read.damaged == ()
    assert read.plan is not None
    assert read.plan["command"].startswith("python runners/bench.py -m topk=2 (withheld)")
    assert {cell["cell_id"] for cell in read.plan["cells"]} == {r.cell_id for r in read.records}
    assert read.refused == ("topk=9 (withheld)",)


def test_a_record_that_is_damaged_is_named_and_left_out(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep")
    path = sorted(record.paths(folder))[0]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.warns(UserWarning, match=f"{path}.*left out"):
        contents = pack._contents(str(folder), "x", [])
    assert contents.about["attempts"] == 3


def test_a_filter_keeps_cells_and_their_plan(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep")
    file = packed(folder, tmp_path / "x.moebench", "--filter", "strategy=tp", "--no-pictures")
    read = read_packed(file)
    assert {one.cell.strategy.name for one in read.records} == {"tp"}
    assert read.plan is not None
    assert {cell["cell_id"] for cell in read.plan["cells"]} == {r.cell_id for r in read.records}


@pytest.mark.parametrize(
    "words,fault",
    [
        (["a", "b"], "pack: 2 sources; allowed is one sweep a file; pack each by itself"),
        (["x.moebench"], "x.moebench: is packed already; allowed are a sweep folder or W&B runs"),
        (["{folder}", "-o", "x.zip"], "-o x.zip: allowed are names that end in .moebench"),
        (["{folder}", "-o", "-x.moebench"], "allowed are 1 to 60 letters"),
        (["{folder}/..", "-o", "x.moebench"], "no sweep folder; allowed are"),
        (["{folder}", "-o", "x.moebench", "--filter", "topk=7"], "nothing is left"),
    ],
)
def test_bad_input_is_refused(
    words: list[str],
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = sweep(tmp_path / "sweep")
    monkeypatch.chdir(tmp_path)
    words = [word.format(folder=folder) for word in words]
    if "-o" in words:
        place = words.index("-o")
        words[place : place + 2] = [f"--output={words[place + 1]}"]
    assert cli.main(["pack", *words, "--no-pictures"]) == 2
    assert fault in capsys.readouterr().err
    assert not list(tmp_path.glob("*.moebench"))


def test_a_record_of_an_older_schema_is_packed_as_what_it_is(tmp_path: Path) -> None:
    """Its times stay means of blocks."""
    old = dataclasses.replace(
        records()[0], schema=2, samples=factory.samples([1.0] * 6, 2, Random(0), fixed=True)
    )
    file = packed(sweep(tmp_path / "s", [old]), tmp_path / "x.moebench", "--no-pictures")
    (one,) = read_packed(file).records
    assert (one.schema, stats.metric(one)) == (2, stats.BLOCK_MEAN)


def test_the_plan_and_the_command_are_shown_as_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`status` counts planned cells; one that has no attempt is missing."""
    folder = sweep(tmp_path / "sweep")
    first = sorted(record.paths(folder))[0]
    first.unlink()
    file = packed(folder, tmp_path / "x.moebench", "--no-pictures")
    line = printed(capsys, "status", str(file), "--format", "csv").splitlines()[1]
    assert line.split(",")[:3] == ["x", "4", "3"]
    plan = json.loads(zipfile.ZipFile(file).read("plan.json"))
    assert (plan["command"], plan["isolation"]) == (COMMAND, "cell")


def test_names_of_the_machine_and_its_user_are_no_names_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither by default nor when asked for: the file would have them inside."""
    monkeypatch.setattr(pack, "names_here", lambda: frozenset(["asmith"]))
    monkeypatch.setattr(guard, "names_here", lambda: frozenset(["asmith"]))
    monkeypatch.chdir(tmp_path)
    folder = sweep(tmp_path / "asmith-run", records(sweep="asmith-run"))
    assert cli.main(["pack", str(folder), "-o", "by-asmith.moebench", "--no-pictures"]) == 2
    assert "has a name of this machine or its user in it" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.moebench"))
    assert cli.main(["pack", str(folder), "--no-pictures"]) == 0
    assert [path.name for path in tmp_path.glob("*.moebench")] == ["sweep.moebench"]


def test_refused_cells_are_those_of_the_whole_sweep(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep")
    refused = {"overrides": "strategy=dp topk=9", "reason": "too large"}
    (folder / "refused.json").write_text(sealed({"refused": [refused]}))
    whole = packed(folder, tmp_path / "x.moebench", "--no-pictures")
    assert read_packed(whole).refused == ("strategy=dp topk=9",)
    part = packed(folder, tmp_path / "y.moebench", "--no-pictures", "--filter", "strategy=tp")
    assert read_packed(part).refused == ()


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path / "sweep")
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.moebench").mkdir()
    for target in (tmp_path / "file" / "x.moebench", tmp_path / "folder.moebench"):
        assert cli.main(["pack", str(folder), "-o", str(target), "--no-pictures"]) == 2
        assert f"-o {target}: cannot be written (" in capsys.readouterr().err


def test_the_default_name_is_the_nearest_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = sweep(tmp_path / "2026-11-28_01-42-26_my sweep")
    assert cli.main(["pack", str(folder), "--no-pictures"]) == 0
    assert [path.name for path in tmp_path.glob("*.moebench")] == ["my-sweep.moebench"]


def test_two_files_of_one_name_stay_two_sweeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is called `sweep` inside; the same file twice is one."""
    first = packed(sweep(tmp_path / "1"), tmp_path / "a" / "sweep.moebench", "--no-pictures")
    others = [dataclasses.replace(one, created="2026-02-01T00:00:00+00:00") for one in records()]
    second = packed(
        sweep(tmp_path / "2", others), tmp_path / "b" / "sweep.moebench", "--no-pictures"
    )
    both = analysis.load([first, second])
    assert len(both) == 8
    assert sorted(set(both["sweep"]))[0] == "sweep"
    assert len(set(both["sweep"])) == 2
    assert len(analysis.load([first, first])) == 4
