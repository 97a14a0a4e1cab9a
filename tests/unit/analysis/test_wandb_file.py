"""The reader of offline runs: framing, folding, and damage of every kind."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wandb.proto.wandb_internal_pb2 import Record

from analysis.errors import SourceError, SourceWarning
from analysis.sources import wandb_file
from runners.records import flat_row
from runners.track import decode, log_file
from runners.track.run import run_of
from tests.support import wandb_frames as frames
from tests.support import wandb_records

MUTANTS = 500


def test_one_record_is_framed_as_in_the_format() -> None:
    """The chunk of b"ab": its checksum is crc32 of the type byte 1 and the data."""
    log = frames.frame([b"ab"])
    assert log.hex() == "3a572642e1be00" + "b7e9d921" + "0200" + "01" + "6162"
    assert list(log_file.frames(log)) == [b"ab"]


@pytest.mark.parametrize("tail", range(12))
def test_records_that_end_near_the_end_of_a_block(tail: int) -> None:
    """Fewer than 7 bytes left are padding, exactly 7 hold an empty FIRST chunk."""
    first = bytes(log_file.BLOCK - len(log_file.HEADER) - log_file.CHUNK_HEADER.size - tail)
    assert list(log_file.frames(frames.frame([first, b"second"]))) == [first, b"second"]


@given(st.lists(st.integers(0, 3 * log_file.BLOCK), max_size=5))
def test_any_sizes_read_back(sizes: list[int]) -> None:
    wanted = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    assert list(log_file.frames(frames.frame(wanted))) == wanted


def test_the_kind_is_found_behind_the_envelope() -> None:
    record = Record(num=300, uuid="u")
    record.control.mailbox_slot = "slot"
    record.exit.exit_code = 3
    assert log_file.kind(record.SerializeToString()) == log_file.EXIT
    assert log_file.kind(b"") == log_file.kind(b"\x08") == 0


@pytest.mark.parametrize(
    ("values", "passed_over"),
    [
        ({"_runtime": 4, "_wandb.runtime": 4}, True),
        ({"_timestamp": 1.795e9, "_step": 3}, True),
        ({"_step": 3, "loss": 1}, False),
        ({"loss": 1, "_step": 3}, False),
        ({"loss._step": 3}, False),
        ({"_step": "text"}, False),
        ({"_" * 200: 1, "x" * 200: 1}, False),
    ],
)
def test_only_wandbs_own_clock_is_passed_over(values: dict[str, Any], passed_over: bool) -> None:
    (payload,) = updates(("summary", values, []))
    record = Record.FromString(payload)
    record.num = 70_000
    assert bool(decode.CLOCK.fullmatch(record.SerializeToString())) is passed_over
    assert log_file.kind(record.SerializeToString()) == log_file.SUMMARY


@given(st.dictionaries(st.from_regex(r"[ -~]{1,200}", fullmatch=True), st.floats(), min_size=1))
def test_no_key_of_ours_is_ever_passed_over(values: dict[str, float]) -> None:
    record = Record(num=5)
    for key, value in values.items():
        record.summary.update.add(key=key, value_json=repr(value))
    if decode.CLOCK.fullmatch(record.SerializeToString()):
        assert all(key.startswith("_") for key in values)


def write(folder: Path, payloads: list[bytes], name: str = "r") -> Path:
    path = folder / f"run-{name}.wandb"
    path.write_bytes(frames.frame(payloads))
    return path


def updates(*steps: tuple[str, dict[str, Any], list[str]]) -> list[bytes]:
    """Records of (kind, updates by dotted key, removed keys)."""
    found = []
    for kind, values, removed in steps:
        record = Record()
        part = getattr(record, kind)
        for key, value in values.items():
            part.update.add(nested_key=key.split("."), value_json=json.dumps(value))
        for key in removed:
            part.remove.add(nested_key=key.split("."))
        found.append(record.SerializeToString())
    return found


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        ([("summary", {"a": 1}, []), ("summary", {"a": 2, "b": 3}, [])], {"a": 2, "b": 3}),
        ([("summary", {"a.b": 1}, []), ("summary", {"a.c": 2}, [])], {"a": {"b": 1, "c": 2}}),
        ([("summary", {"a.b": 1}, []), ("summary", {"a": {"d": 4}}, [])], {"a": {"d": 4}}),
        ([("summary", {"a": {"d": 4}}, []), ("summary", {"a.b": 1}, [])], {"a": {"d": 4, "b": 1}}),
        ([("summary", {"a": 1, "b": 2}, []), ("summary", {}, ["a"])], {"b": 2}),
        ([("summary", {"a": 1}, []), ("summary", {}, ["a"]), ("summary", {"a": 5}, [])], {"a": 5}),
        ([("summary", {"a": 1}, []), ("summary", {"a.b": 2}, [])], {"a": {"b": 2}}),
    ],
)
def test_updates_fold_to_the_last_state(tmp_path: Path, steps: Any, wanted: Any) -> None:
    assert wandb_file.read_run(write(tmp_path, updates(*steps))).summary == wanted
    config = updates(*(("config", values, removed) for _, values, removed in steps))
    assert wandb_file.read_run(write(tmp_path, config)).config == wanted


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Any]]:
    """A log of several blocks, and the row with samples that it holds."""
    record = wandb_records.record(1, count=200)
    log = frames.frame(frames.payloads(run_of(record, "s")))
    assert len(log) > 2 * log_file.BLOCK
    return log, flat_row.row(record, samples=True)


def load(path: Path, samples: bool) -> tuple[list[dict[str, Any]], list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = wandb_file.load(path, samples=samples)
    assert all(w.category is SourceWarning for w in caught)
    return rows, [str(w.message) for w in caught]


def check_mutant(path: Path, mutant: bytes, row: dict[str, Any]) -> None:
    """Never an exception; a row is right or absent; what is damaged is said with its file."""
    path.write_bytes(mutant)
    plain = {k: v for k, v in row.items() if not k.startswith("sample_")}
    for samples, wanted in ((False, plain), (True, row)):
        rows, told = load(path, samples)
        assert rows in ([], [wanted])
        assert all(str(path) in text for text in told)
        assert rows == [wanted] or told


@pytest.mark.parametrize("seed", range(2))
def test_truncated_logs_give_what_precedes(tmp_path: Path, whole: Any, seed: int) -> None:
    log, row = whole
    draw = random.Random(seed)
    for _ in range(MUTANTS // 2):
        mutant = log[: draw.randrange(len(log))]
        check_mutant(tmp_path / "run-t.wandb", mutant, row)
        assert load(tmp_path / "run-t.wandb", samples=False)[1], "a cut log is never silent"


@pytest.mark.parametrize("seed", range(2))
def test_flipped_bits_never_give_a_wrong_number(tmp_path: Path, whole: Any, seed: int) -> None:
    log, row = whole
    draw = random.Random(seed)
    for _ in range(MUTANTS // 2):
        mutant = bytearray(log)
        mutant[draw.randrange(len(log))] ^= 1 << draw.randrange(8)
        check_mutant(tmp_path / "run-f.wandb", bytes(mutant), row)


def test_early_damage_loses_less_than_everything(tmp_path: Path, whole: Any) -> None:
    """The summary is written first, so a log cut in its history still gives the whole row."""
    log, row = whole
    path = tmp_path / "run-c.wandb"
    path.write_bytes(log[: len(log) // 2])
    rows, told = load(path, samples=False)
    assert rows[0]["median_duration_ms"] == row["median_duration_ms"]
    assert "ends within a record" in told[0]
    rows, told = load(path, samples=True)
    assert rows == []
    assert any("of its 201 samples" in text for text in told)


def test_what_is_no_run_of_ours_is_named(tmp_path: Path) -> None:
    write(tmp_path, updates(("config", {"lr": 0.1}, []), ("summary", {"loss": 1}, [])), "other")
    (tmp_path / "run-text.wandb").write_text("hello")
    (tmp_path / "run-empty.wandb").write_bytes(b"")
    rows, told = load(tmp_path, samples=False)
    assert rows == []
    for name, text in (
        ("other", "not a run of this project"),
        ("text", "first bytes"),
        ("empty", ""),
    ):
        assert any(f"run-{name}.wandb" in line and text in line for line in told)


def test_no_run_at_all_is_an_error_with_the_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=str(tmp_path)):
        wandb_file.load(tmp_path)


@given(
    st.sampled_from(["measured", "wrong", "failed", "interrupted"]), st.integers(0, 8), st.data()
)
def test_config_and_summary_rebuild_any_row(outcome: str, index: int, data: st.DataObject) -> None:
    """Also after a server has sorted the keys of dicts and dropped the empty ones."""
    from analysis.sources.wandb_rows import row_of

    record = wandb_records.record(index, outcome=outcome)
    leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    nested = st.recursive(leaf, lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(), s))
    record.environment = data.draw(st.dictionaries(st.text(), nested, max_size=4))
    record.notes = data.draw(st.lists(st.text(), max_size=2))
    run = run_of(record, "s")
    stored = [
        json.loads(json.dumps(_lossy(part), sort_keys=True)) for part in (run.config, run.summary)
    ]
    row = row_of(*stored)
    assert json.dumps(row) == json.dumps(flat_row.row(record))


def _lossy(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {k: _lossy(v) for k, v in value.items() if not (isinstance(v, dict) and not v)}
