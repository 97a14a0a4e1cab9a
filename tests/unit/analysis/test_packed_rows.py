"""W&B runs in packed files: the same frame but for what is left out, and nothing forged read."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import cli
from analysis.data import schema
from analysis.data.frame import to_frame
from analysis.errors import SourceWarning
from analysis.packing.rows import of_runs
from analysis.sources import load_rows
from analysis.sources.packed_rows import FIXED, portable_row, read_row, row_shape
from analysis.sources.wandb_rows import NoRow
from runners.packed import container
from runners.records import flat_row
from runners.records.record import Record
from runners.track.run import run_of
from tests.support import analysis_factory, wandb_records
from tests.support import wandb_frames as frames

BAD = {3: "failed", 4: "wrong"}
# Every column of the grid below that differs, and what it holds in the packed file.
LEFT_OUT = {
    "sweep": "mine",
    "notes": [],
    "error_message": "",
    "error_log": "",
    "memory_method": "",  # "rss" is none of the methods
    "environment": {"cores": 1, "local_ranks": 2},
    "measure": {},
}
SAMPLES = {column.name for column in schema.SAMPLES}
ROW = flat_row.row(analysis_factory.measured(analysis_factory.cell("ep"), sweep="s"), True)
SECRET = "5" * 40
HOSTILE = ["/home/alice/run", "alice", "box.alice.org", f"token {SECRET}", "<b>x</b>", "a\x1b[2J"]


def write(folder: Path, records: list[Record]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, one in enumerate(records):
        run = run_of(one, "s")
        path = folder / f"run-{number}.wandb"
        path.write_bytes(frames.frame(frames.payloads(run)))
    return folder


def pack(source: Path, target: Path, *words: str) -> Path:
    command = ["pack", str(source), "-o", str(target), "--no-pictures", *words]
    assert cli.main(command) == 0
    return target


def read(source: Path) -> tuple[pd.DataFrame, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = load_rows([source], samples=True)
    assert all(one.category is SourceWarning for one in caught)
    return to_frame(rows, samples=True), [str(one.message) for one in caught]


def test_every_column_has_a_shape() -> None:
    columns = [column.name for column in (*schema.columns(), *schema.SAMPLES)]
    assert list(row_shape().fields) == columns == list(ROW)


def test_the_frame_is_the_same_but_for_what_is_left_out(tmp_path: Path) -> None:
    logs = write(tmp_path / "logs", wandb_records.grid(BAD))
    packed = pack(logs, tmp_path / "mine.moebench")
    (before, _), (after, texts) = read(logs), read(packed)
    assert texts == []
    assert list(before.columns) == list(after.columns)
    same = [column for column in before.columns if column not in LEFT_OUT]
    pd.testing.assert_frame_equal(before[same], after[same])
    for name, value in LEFT_OUT.items():
        assert list(after[name]) == [value] * 9
        assert list(before[name]) != [value] * 9


def test_equal_runs_give_equal_files_and_no_name_of_a_sweep(tmp_path: Path) -> None:
    records = wandb_records.grid(BAD)
    one = pack(write(tmp_path / "a", records), tmp_path / "mine.moebench").read_bytes()
    other = pack(write(tmp_path / "b", records[::-1]), tmp_path / "mine.moebench").read_bytes()
    assert one == other
    opened = container.read(one, "mine")
    everything = json.dumps(dict(opened.manifest)).encode() + b"".join(opened.parts.values())
    for text in ("2026-01-02_03-04-05_topk", "rank 1 died", "<b>", "launches/0"):
        assert text.encode() not in everything
    assert opened.manifest["attempts"] == 9


def test_several_sweeps_are_numbered(tmp_path: Path) -> None:
    records = wandb_records.grid(size=4)
    for one, sweep in zip(records, ("b", "a", "b", "c"), strict=True):
        one.sweep = sweep
    packed = pack(write(tmp_path / "logs", records), tmp_path / "x.moebench")
    frame, _ = read(packed)
    keys = {name: set(frame[frame["sweep"] == name]["key"]) for name in frame["sweep"]}
    assert keys == {"x-1": {records[1].key}, "x-2": {records[0].key, records[2].key},
                    "x-3": {records[3].key}}  # fmt: skip


def test_ten_sweeps_sort_as_their_names_do(tmp_path: Path) -> None:
    records = wandb_records.grid(size=10)
    for number, one in enumerate(records):
        one.sweep = f"sweep {chr(ord('a') + number)}"
    logs = write(tmp_path / "logs", records)
    rows, _ = of_runs(str(logs), "x", [], [])
    assert [row["sweep"] for row in rows] == [f"x-{number:02}" for number in range(1, 11)]
    assert [row["key"] for row in rows] == [one.key for one in records]


def test_a_filter_chooses_runs(tmp_path: Path) -> None:
    logs = write(tmp_path / "logs", wandb_records.grid())
    frame, _ = read(pack(logs, tmp_path / "x.moebench", "--filter", "topk=2,4"))
    assert sorted(set(frame["topk"])) == [2, 4]
    assert len(frame) == 6


TEXTS = [c.name for c in schema.columns() if c.kind in ("text", "list[text]")]


@pytest.mark.parametrize("name", [name for name in TEXTS if name not in ("sweep", "label")])
def test_no_text_says_who_or_where(name: str) -> None:
    for text in HOSTILE:
        odd = [text] if isinstance(ROW[name], list) else text
        try:
            kept, left_out = portable_row({**ROW, name: odd}, ["alice", "box"])
        except NoRow:
            assert name in FIXED
            continue
        assert name in {path.partition("[")[0] for path in left_out}
        assert name not in FIXED
        written = json.dumps(kept)
        assert text not in written and "alice" not in written and SECRET not in written
        assert read_row(json.loads(written)) == kept


def test_a_label_that_names_somebody_becomes_a_hash_and_ids_stay_apart() -> None:
    cell, ids = analysis_factory.cell("ep"), set()
    for label in ("alice", "box"):
        one = analysis_factory.measured(cell, sweep="s", label=label)
        kept, left_out = portable_row(flat_row.row(one, True), ["alice", "box"])
        assert "label" in left_out and label not in json.dumps(kept)
        assert kept["attempt_id"] == f"{ROW['key']}.{kept['label']}-0"
        assert read_row(kept) == kept
        ids.add(kept["attempt_id"])
    assert len(ids) == 2


def test_names_in_what_is_nested_are_left_out() -> None:
    environment = {**ROW["environment"], "hostname": "box", "cpu_model": "alice's", "path": "/x"}
    kept, left_out = portable_row({**ROW, "environment": environment}, ["alice", "box"])
    assert {"environment.hostname", "environment.cpu_model", "environment.path"} <= set(left_out)
    assert "alice" not in json.dumps(kept) and "box" not in json.dumps(kept)


def test_a_model_that_is_not_the_projects_is_left_out_and_read() -> None:
    mine = {**ROW, "model": "bob_secret", "overrides": "model=bob_secret topk=2"}
    kept, left_out = portable_row(mine, [])
    assert (kept["model"], kept["overrides"]) == ("", "model=(withheld) topk=2")
    assert {"model", "overrides"} <= set(left_out)
    assert read_row({**kept, "model": "later"})["model"] == "later"


def test_a_column_that_nobody_knows_is_left_out() -> None:
    kept, left_out = portable_row({**ROW, "owner": "alice"}, [])
    assert "owner" in left_out and list(kept) == list(ROW)


def test_numbers_are_written_by_the_kind_of_their_column() -> None:
    """As a server may write them, and as we do."""
    theirs = {"topk": 2.0, "num_samples": 10.0, "round_numbers": [0.0], "router_scale": 1,
              "skew_lambda": 2, "phase_ms": {"wait": 3}, "round_medians_ms": [3]}  # fmt: skip
    ours = {"topk": 2, "num_samples": 10, "round_numbers": [0], "router_scale": 1.0,
            "skew_lambda": 2.0, "phase_ms": {"wait": 3.0}, "round_medians_ms": [3.0]}  # fmt: skip
    for numbers in (theirs, ours):
        kept, _ = portable_row({**ROW, **numbers}, [])
        assert json.dumps({name: kept[name] for name in ours}) == json.dumps(ours)


PORTABLE, _ = portable_row(ROW, [])
FORGED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another cell": (lambda row: {**row, "topk": 4, "topk_requested": 4}, "its config was edited"),
    "another id": (lambda row: {**row, "cell_id": "0" * 12}, "cell_id="),
    "a text for a number": (lambda row: {**row, "median_duration_ms": "fast"}, "median_duration"),
    "a huge number": (lambda row: {**row, "cores": 2**70}, "cores="),
    "no time": (lambda row: {**row, "num_samples": None}, "num_samples="),
    "a sentence": (lambda row: {**row, "error_message": "call 555"}, 'error_message="call 555"'),
    "an unknown column": (lambda row: {**row, "owner": "me"}, 'owner="me"'),
    "HTML": (lambda row: {**row, "cpu_model": "<script>"}, "cpu_model="),
    "half of the samples": (lambda row: {**row, "sample_ms": row["sample_ms"][:3]}, "samples have"),
    "an unknown kind": (lambda row: {**row, "sample_kind": ["warm"] * 32}, "sample_kind"),
    "a rate of 0": (
        lambda row: {**row, "calibration": {"read_bytes_per_s": 0}},
        "calibration.read_bytes_per_s=0: allowed are 1 to",
    ),
    "endless slots": (lambda row: {**row, "rank_slots": [1e308]}, "rank_slots[0]=1e+308: allowed"),
    "no cluster": (lambda row: {**row, "emulation": {"dilation": 2}}, "emulation="),
    "no row": (lambda row: [1], "no JSON object"),
    "steers the terminal": (lambda row: {**row, "\x1b[2J": 1}, "u001b[2J"),
    "deep": (lambda row: {**row, "calibration": deep(30)}, "calibration"),
}  # fmt: skip


def deep(levels: int) -> dict[str, Any]:
    return {"a": deep(levels - 1)} if levels else {}


@pytest.mark.parametrize("forgery", FORGED)
def test_a_forged_row_is_named_and_the_others_are_there(forgery: str, tmp_path: Path) -> None:
    change, text = FORGED[forgery]
    good = wandb_records.grid(size=3)
    packed = pack(write(tmp_path / "logs", good), tmp_path / "x.moebench")
    opened = container.read(packed.read_bytes(), "x")
    parts = dict(opened.parts)
    forged = json.dumps(change(json.loads(json.dumps(PORTABLE)))).encode()
    parts["rows/0000.jsonl"] += b"\n" + forged + b"\n" + json.dumps(PORTABLE).encode()
    about = {name: value for name, value in opened.manifest.items() if name != "parts"}
    packed.write_bytes(container.write(about, parts))
    frame, texts = read(packed)
    assert set(frame["key"]) == {*(one.key for one in good), ROW["key"]}
    (warning,) = texts
    assert "row 4: " in warning or "line 4: " in warning
    assert text in warning and warning.endswith("left out") and len(warning) < 400
    assert "\x1b" not in warning


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_of_json_is_not_packed(value: float) -> None:
    with pytest.raises(NoRow, match="avg_duration_ms"):
        portable_row({**ROW, "avg_duration_ms": value}, [])


def test_what_is_nested_too_deeply_is_named() -> None:
    nested: dict[str, Any] = {}
    for _ in range(100_000):
        nested = {"a": nested}
    with pytest.raises(NoRow, match=r"calibration.*: not a value of a packed row"):
        read_row({**PORTABLE, "calibration": nested})


def test_a_row_of_before_a_column_was_there() -> None:
    older = {
        name: value for name, value in PORTABLE.items() if name not in ("nodes", "void_samples")
    }
    assert read_row(older) == PORTABLE


def test_sample_columns_are_all_there() -> None:
    assert set(PORTABLE) >= SAMPLES and len(PORTABLE["sample_ms"]) == len(ROW["sample_ms"]) > 0
