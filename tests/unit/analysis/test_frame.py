"""Loading: one row per attempt from folders of records, and what happens to damaged ones."""

from __future__ import annotations

import dataclasses
import json
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import analysis
from analysis import sources
from analysis.data import frame, schema
from analysis.data.cell_summary import summaries
from analysis.errors import InputError, SourceError, SourceWarning
from analysis.stats import summarize
from moe.spec import Cell
from runners.records import flat_row, record, sealed
from tests.support import analysis_factory as factory


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return factory.write_all(tmp_path_factory.mktemp("sweeps"), factory.reference_records())


def test_every_row_survives_json_and_has_the_schema_s_columns() -> None:
    for made in (
        factory.measured(factory.cell("ep")),
        factory.unmeasured(factory.cell("tp"), "failed"),
        record.Record(key=record.cell_key(Cell()), cell=Cell()),
    ):
        row = flat_row.row(made)
        assert json.loads(json.dumps(row, allow_nan=False)) == row
        assert list(row) == [column.name for column in schema.columns()]


def test_samples_come_when_asked() -> None:
    row = flat_row.row(factory.measured(factory.cell(), rounds=4), samples=True)
    assert row["sample_kind"] == ["warmup"] * 2 + ["short", "long", "latency"] * 4
    assert row["sample_steps"] == [10, 10] + [10, 40, 1] * 4
    blocks = [ms * n for ms, n in zip(row["sample_ms"], row["sample_steps"], strict=True)]
    pairs = zip(blocks[2::3], blocks[3::3], strict=True)
    assert row["round_medians_ms"] == pytest.approx([(b - a) / 30 for a, b in pairs])
    assert list(row)[-4:] == [column.name for column in schema.SAMPLES]


def test_a_wrong_cell_has_no_figure_in_its_row() -> None:
    made = factory.measured(factory.cell(), gate={"ok": False, "error": 1.0, "tolerance": 1e-4})
    row = flat_row.row(made)
    assert row["median_duration_ms"] is None and row["round_medians_ms"] == []


def test_skew_is_busiest_over_mean() -> None:
    assert flat_row.busiest_over_mean([3, 1, 1, 1]) == 2.0
    assert flat_row.busiest_over_mean([0, 0]) is None


def test_frame_has_schema_order_and_types(sweeps: Path) -> None:
    loaded = analysis.load(sweeps)
    assert list(loaded.columns) == [column.name for column in schema.columns()]
    assert loaded["topk"].dtype == "Int64" and loaded["median_duration_ms"].dtype == "float64"
    assert len(loaded) == len(factory.reference_records())
    one = analysis.load([sweeps / "reference_topk", sweeps / "reference_batch"])
    assert set(one["sweep"]) == {"reference_topk", "reference_batch"}


def test_the_same_attempt_twice_is_kept_once_the_newest() -> None:
    old = flat_row.row(factory.measured(factory.cell(), created="2026-01-01T00:00:00+00:00"))
    new = old | {"created": "2026-02-01T00:00:00+00:00", "median_duration_ms": 7.0}
    for rows in ([old, new], [new, old], [new, old, new]):
        made = frame.to_frame(rows)
        assert made["median_duration_ms"].tolist() == [7.0]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, list[dict[str, Any]]]:
    """A sweep of one whole record, the path of a second to be damaged, and what it held."""
    made = factory.measured(factory.cell(ranks=2), sweep="s", rounds=3)
    path = record.write(tmp_path_factory.mktemp("damaged") / "s", made)
    other = dataclasses.replace(made, launch=1)
    record.write(path.parents[2], other)
    broken = record.record_path(path.parents[2], other)
    return broken, broken.read_bytes(), [flat_row.row(m, samples=True) for m in (made, other)]


def mutants(kind: str, whole: bytes, count: int) -> Iterator[bytes]:
    draw = random.Random(kind)
    for _ in range(count):
        if kind == "truncated":
            yield whole[: draw.randrange(len(whole))]
        else:
            broken = bytearray(whole)
            broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
            yield bytes(broken)


@pytest.mark.parametrize("kind", ["truncated", "flipped"])
def test_damage_is_named_and_never_a_number(kind: str, damaged: Any) -> None:
    """500 damaged copies: all set aside by name; the whole record beside them is untouched."""
    path, whole, rows = damaged
    for mutant in mutants(kind, whole, 500):
        path.write_bytes(mutant)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = sources.load_rows([path.parents[2]], samples=True)
        assert loaded == rows[:1]
        (told,) = caught
        assert str(path) in str(told.message) and told.category is SourceWarning
    path.write_bytes(whole)
    assert sources.load_rows([path.parents[2]], samples=True) == rows


def test_a_record_laid_out_anew_is_still_whole(tmp_path: Path) -> None:
    """The checksum is of the content: indenting keeps it, changing a figure does not."""
    made = factory.measured(factory.cell())
    path = record.write(tmp_path, made)
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps(content, indent=1))
    assert record.read(path) == made
    content["samples"]["end_ns"][0][0] += 1
    path.write_text(json.dumps(content, indent=1))
    with pytest.raises(sealed.RecordError, match=r"record-0\.json: sha256 does not match"):
        record.read(path)
    del content["sha256"]
    path.write_text(json.dumps(content))
    with pytest.raises(sealed.RecordError, match="no sha256"):
        record.read(path)
    path.write_text(json.dumps({**content, "schema": 1}))
    with pytest.raises(
        sealed.RecordError, match=r"schema 1: this version reads 2, 3 and 4; measure again"
    ):
        record.read(path)


def test_missing_and_empty_sources_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        analysis.load(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="holds no readable attempt"):
        analysis.load(tmp_path)


def test_filters(sweeps: Path) -> None:
    loaded = analysis.load(sweeps)
    kept = frame.filtered(loaded, ["strategy=ep,tp", "ranks=8", "tokens=replicated"])
    assert set(kept["strategy"]) == {"ep", "tp"} and set(kept["world_size"]) == {8}
    for bad in ("strategy", "strtegy=ep", "strategy=unknown"):
        with pytest.raises(InputError, match=r"allowed|near|present"):
            frame.filtered(loaded, [bad])


def test_launches_are_put_together() -> None:
    """One launch: order statistics; two: their span; five: a t-interval of the medians' logs."""
    for count, basis in ((1, "one launch"), (2, "span of 2 launches"), (5, "launches")):
        rows = [
            flat_row.row(factory.measured(factory.cell(), launch=n, launch_effect=0.02))
            for n in range(count)
        ]
        found = summarize.summarize(frame.to_frame(rows)).iloc[0]
        assert found["basis"] == basis and found["launches"] == count
        assert found["low_ms"] < found["median_ms"] < found["high_ms"]
        assert found["throughput"] == pytest.approx(8 / (found["mean_ms"] / 1000))


def test_a_cell_wrong_once_has_no_time() -> None:
    of = factory.cell()
    rows = [
        flat_row.row(factory.measured(of)),
        flat_row.row(factory.unmeasured(of, "wrong", launch=1)),
    ]
    found = summarize.summarize(frame.to_frame(rows)).iloc[0]
    assert found["outcome"] == "wrong" and pd.isna(found["median_ms"])


def test_a_cell_that_failed_once_is_shown_and_flagged() -> None:
    of = factory.cell()
    bad = factory.unmeasured(of, "failed", launch=1)
    rows = [flat_row.row(factory.measured(of)), flat_row.row(bad)]
    found = summarize.summarize(frame.to_frame(rows)).iloc[0]
    assert found["outcome"] == "measured" and "some_attempts_failed" in found["flags"]


def test_a_row_of_cells_and_its_summary_say_the_same() -> None:
    """Of every column, also after rows were chosen; the cell is the one that was measured."""
    of = [factory.cell("ep", topk=k, mode="train") for k in (2, 4)]
    rows = [flat_row.row(factory.measured(one, calibration=factory.CALIBRATION)) for one in of]
    cells = summarize.summarize(frame.to_frame(rows))
    assert {summary.cell for summary in summaries(cells)} == set(of)
    for chosen in (cells, cells.iloc[1:], frame.where(cells, "topk", 2)):
        for row, summary in zip(chosen.to_dict("records"), summaries(chosen), strict=True):
            for name in chosen.columns.drop("summary"):
                assert frame.hashable(row[name]) == frame.hashable(summary.value(name)), name
