"""`check --submission`: each problem alone, what is only remarked on, and a clean file."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest

from analysis import cli
from analysis.packing import submission, submission_rules
from analysis.text.flag_legend import MARKS
from runners.records import record
from runners.records.record import Record
from tests.support import analysis_factory as factory
from tests.support.submissions import (
    EMULATED,
    EVEN,
    SPACIOUS,
    measured,
    only_problem,
    packed,
    review,
)


def test_nothing_is_said_of_a_clean_file() -> None:
    result = review(measured("tp"), measured("ep"))
    assert result == submission.Review()
    assert result.lines("a.moebench") == ["a.moebench: may be submitted"]


def changed(one: Record, **environment: Any) -> Record:
    return dataclasses.replace(one, environment={**one.environment, **environment})


def of_schema_3() -> Record:
    return dataclasses.replace(measured(), schema=3)


def drifting() -> Record:
    return measured(anchors=factory.anchors(1.0, 1.4))


def under_floor() -> Record:
    floor = factory.samples([400.0] * 5, 8, random.Random(0), warmup=0, steps=1, fixed=True)
    return measured(floor=dataclasses.asdict(floor))


def not_cold() -> Record:
    cache = {"bytes": 10**9, "sets": 2, "l2_bytes": 1, "cold_s": 0.01, "warm_s": 0.01}
    return measured(memory=[{"cache": cache}] * 8, calibration=factory.CALIBRATION)


LARGE = factory.cell("tp", batch=65536)
TP = f"tp {record.cell_key(factory.cell('tp'))}"
PROBLEMS = {
    "schema": (of_schema_3, f"records of an older schema than 4: 1 attempt ({TP}-0); next: measure "
               "again, then python -m analysis pack"),
    "no commit": (lambda: changed(measured(), git=None),
                  f"no commit, so that nobody knows which code ran: 1 attempt ({TP}-0); next: "
                  "measure again, then python -m analysis pack, in a clone of the repository"),
    "wrong": (lambda: factory.unmeasured(factory.cell("tp"), "wrong", environment=SPACIOUS),
              f"wrong results: 1 attempt ({TP}-0); next: mend the strategy; python -m analysis "
              "status has the details"),
    "wrong afterwards": (lambda: measured(gate={"ok": True, "after": {"ok": False}}),
                         f"wrong results: 1 attempt ({TP}-0); next: mend the strategy; python -m "
                         "analysis status has the details"),
    "unchecked afterwards": (lambda: measured(gate={"ok": True}),
                             "correctness was not checked both before and after timing: 1 attempt "
                             f"({TP}-0); next: measure again, then python -m analysis pack, with "
                             "this version"),
    "no interval": (lambda: measured(rounds=5),
                    "too few rounds for an interval (nothing says how sure the time is): 1 cell "
                    f"({TP}); next: measure.samples=6 or more, or measure.launches=5"),
    "drift": (drifting, "the machine drifted while the cell was measured (no interval covers a "
              f"change of the machine): 1 cell ({TP}); next: measure again on a quiet machine"),
    "under the floor": (under_floor, "under the floor: a timed block is shorter than ten times "
                        "what an empty block takes (the clock and the barriers are too large a "
                        f"part of such a block): 1 cell ({TP}); next: use longer blocks "
                        "(measure.block_ms) or a larger layer"),
    "not cold": (not_cold, "not cold: reading its sets of weights in turn took less time than from "
                 f"memory (the setting says that the cache is cold): 1 cell ({TP}); next: use a "
                 "larger layer or more tokens, or measure.cache=warm"),
    "forced balance": (lambda: measured(of=LARGE, skew=EVEN),
                       "all experts have equally many slots, which is forced balance under another "
                       f"name: 1 attempt (tp {record.cell_key(LARGE)}-0); next: measure with "
                       "workload=balanced, which is labelled so"),
    "no slots": (lambda: measured(skew=None),
                 "its slots were not recorded, or not of all tokens, so forced balance cannot be "
                 f"seen: 1 attempt ({TP}-0); next: measure again, then python -m analysis pack, "
                 "with this version"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_is_named_with_what_to_do(name: str) -> None:
    made, text = PROBLEMS[name]
    assert only_problem(review(made(), measured("ep"))) == text


def test_an_attempt_without_a_check_at_all_is_unchecked_and_has_no_time() -> None:
    result = review(measured(gate=None), measured("ep"))
    assert only_problem(result).startswith("correctness was not checked both before and after")


def test_problems_of_the_file() -> None:
    one = measured()
    assert only_problem(review(one, damaged=("a.moebench: part plan.json: gone; left out",))) == (
        "damaged: a.moebench: part plan.json: gone; left out; next: python -m analysis pack again"
    )
    assert only_problem(review(one, plan=None)).startswith("no plan, so that missing cells")
    assert only_problem(review()).startswith("no attempt; next: measure again")
    of_wandb = review(rows=({"cell_id": one.cell_id},))
    assert of_wandb.problems[0].startswith("damaged: a: row 1: ")  # no whole row
    assert of_wandb.problems[1].startswith("packed from W&B runs, from which no figure can be")


def test_an_attempt_whose_figures_cannot_be_computed_is_damaged() -> None:
    call = {"collective": "all_reduce", "calls": 1, "sent_bytes": 1e308}
    result = review(measured(traffic=[[call]] * 8), measured("ep"))
    assert only_problem(result).startswith(
        f"damaged: a: attempt {TP[3:]}-0: sent_bytes_max: allowed is a whole number of at most 64"
    )


def test_a_planned_cell_needs_an_attempt_that_has_ended() -> None:
    done, stopped = measured("tp"), factory.unmeasured(factory.cell("ep"), "interrupted")
    stopped.environment = SPACIOUS
    plan = {
        "cells": [{"cell_id": done.cell_id}, {"cell_id": stopped.cell_id}, {"cell_id": "f" * 12}]
    }
    result = only_problem(review(done, stopped, plan=plan))
    assert result == (
        f"planned, and no attempt has ended: 2 cells ({stopped.cell_id}, ffffffffffff); next: "
        "resume the sweep (resume=FOLDER), or pack the others alone (--filter)"
    )


def test_what_is_remarked_on_refuses_nothing() -> None:
    failed = factory.unmeasured(factory.cell("ep"), "failed", environment=SPACIOUS)
    crowded = measured(environment={**SPACIOUS, "cores": 2, "emulated": {}})
    result = review(crowded, failed)
    assert result.problems == ()
    assert [line.partition(":")[0] for line in result.remarks] == ["no time", "oversubscribed"]
    dirty = review(changed(measured(), git={"sha": "a" * 40, "dirty": "1a2b"}))
    assert dirty == submission.Review((), (
        f"measured by code with changes that are in no commit: 1 attempt ({TP}-0); the gallery "
        "says so; better commit first (git status)",
    ))  # fmt: skip
    emulated = review(measured(environment={**SPACIOUS, "emulated": EMULATED}))
    assert emulated == submission.Review((), (
        "emulated times, of ranks dilated x20; nodes of 2 at 90/10 Mbit/s; MTU 1500; they never "
        "stand beside real ones",
    ))  # fmt: skip


def test_five_launches_have_an_interval_that_few_rounds_lack() -> None:
    launches = [measured(rounds=3, launch=n) for n in range(5)]
    assert review(*launches) == submission.Review()
    assert only_problem(review(*launches[:4])).startswith("too few rounds for an interval")


def test_every_flag_has_a_rule() -> None:
    assert set(submission_rules.FLAGS) == set(MARKS)


def test_name_and_size_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "read_packed", lambda path: packed(measured()))
    good, bad = tmp_path / "gpu-h200.2.moebench", tmp_path / "My sweep.moebench"
    for path in (good, bad):
        path.write_bytes(b"x" * 5_000_000)
    assert submission.of_file(good).problems == ()
    assert only_problem(submission.of_file(bad)).startswith("name My sweep.moebench: allowed are")
    good.write_bytes(b"x" * 5_000_001)
    assert only_problem(submission.of_file(good)) == (
        "5,000,001 bytes: allowed are 5,000,000; next: pack fewer cells (--filter)"
    )


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    contents = {"a.moebench": packed(measured()), "b.moebench": packed(measured(rounds=5))}
    monkeypatch.setattr(submission, "read_packed", lambda path: contents[path.name])
    paths = [str(tmp_path / name) for name in contents]
    for path in paths:
        Path(path).write_bytes(b"x")
    assert cli.main(["check", paths[0], "--submission"]) == 0
    assert " ".join(capsys.readouterr().out.split()) == f"{paths[0]}: may be submitted"
    assert cli.main(["check", *paths, "--submission"]) == 1
    lines = " ".join(capsys.readouterr().out.split())
    assert lines.startswith(f"{paths[0]}: may be submitted problem: too few rounds")
    assert lines.endswith(f"{paths[1]}: 1 problem")


@pytest.mark.parametrize(("words", "fault"), [
    ([], "check --submission: no file; allowed are packed files"),
    (["gone.moebench"], "check --submission gone.moebench: no such file; allowed are files NAME."),
    (["."], "check --submission .: allowed are files NAME.moebench on this machine"),
    (["https://example.org/a.moebench"], "allowed are files NAME.moebench on this machine"),
    (["gone.moebench", "--filter", "topk=2"], "--filter topk=2: not with --submission"),
])  # fmt: skip
def test_what_cannot_be_submitted_is_bad_input(words: list[str], fault: str, capsys: Any) -> None:
    assert cli.main(["check", *words, "--submission"]) == 2
    assert fault in capsys.readouterr().err


def test_what_is_no_packed_file_is_a_problem(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "a.moebench"
    path.write_bytes(b"none")
    assert cli.main(["check", str(path), "--submission"]) == 1
    words = " ".join(capsys.readouterr().out.split())
    assert words.startswith("problem:") and words.endswith(f"{path}: 1 problem")
    assert cli.main(["check", str(path), str(tmp_path / "gone.moebench"), "--submission"]) == 2
    output, error = capsys.readouterr()
    assert output == "" and "gone.moebench: no such file" in error


@pytest.mark.parametrize("outcome", ["failed", "checked"])
def test_a_file_without_a_single_time_is_refused(outcome: str) -> None:
    result = review(factory.unmeasured(factory.cell("ep"), outcome, environment=SPACIOUS))
    assert only_problem(result) == (
        "no cell has a time; next: measure again, then python -m analysis pack (python -m analysis "
        "status says why)"
    )
