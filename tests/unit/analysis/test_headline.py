"""The verdict in short, and workloads that are told with their parameter."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import analysis
from analysis import cli
from analysis.data.cell_summary import CellSummary, summaries
from analysis.data.frame import to_frame
from analysis.stats import compare, summarize, verdict
from analysis.text import insights, tables
from runners.records import flat_row
from runners.records.record import Record
from tests.support import analysis_factory as factory


def table(found: list[tables.Table], start: str) -> tables.Table:
    return next(t for t in found if t.title.startswith(start))


def test_workloads_are_told_with_their_parameter(tmp_path: Path) -> None:
    """Kinds and parameters are one axis; of one kind alone the parameter is, as a number."""
    loads = [("learned", 0.0), ("zipf", 0.6), ("zipf", 1.2)]
    records = [
        factory.measured(factory.cell(s, workload=w, batch=64), noise=0.01)
        for s in ("tp", "ep") for w in loads
    ]  # fmt: skip
    frame = analysis.load(factory.write_all(tmp_path, records))
    summarized = summarize.summarize(frame)
    assert table(tables.sweep_tables(summarized), "Duration (ms) by workload").rows == [
        "learned", "zipf 0.6", "zipf 1.2",
    ]  # fmt: skip
    workload = next(
        paragraph for paragraph in insights.headline_and_insights(frame, summarized)[1]
        if paragraph.title.startswith("Workload")
    )  # fmt: skip
    (ep,) = [c.text for c in workload.claims if c.text.startswith("ep ")]
    assert "times as long with zipf 1.2 as with learned routing" in ep
    zipf = summarized[summarized["workload"] == "zipf"].reset_index(drop=True)
    assert [t.corner for t in tables.sweep_tables(zipf)] == ["workload parameter"]
    found = compare.column(frame, "workload", 0.02)
    assert {c.names for c in found} >= {("workload=learned", "workload=zipf 0.6")}


def test_in_short_counts_settings(tmp_path: Path) -> None:
    """tp at batch 8, ep at 16 and 32, equal at 64: nothing is claimed there."""
    wanted = {8: (1.0, 2.0), 16: (2.0, 1.0), 32: (4.0, 1.0), 64: (3.0, 3.0)}
    records = []
    for batch, times in wanted.items():
        for name, ms in zip(("tp", "ep"), times, strict=True):
            of = factory.cell(name, batch=batch)
            records.append(factory.measured(of, scale=ms / factory.truth_ms(of), noise=0.01))
    frame = analysis.load(factory.write_all(tmp_path, records))
    short, _ = insights.headline_and_insights(frame, summarize.summarize(frame))
    text = short.claims[0].text
    assert re.match(r"tp is fastest at batch size 8, 2\.0 times ahead of ep; ", text)
    assert re.search(r"; ep is fastest at batch size 16 and 32, 2\.0 to [34]\.\d times ahead", text)
    assert "; tp and ep are fastest at batch size 64 and " in text
    assert len(short.claims[0].cells) == 8


def test_one_setting_has_no_place_to_name(tmp_path: Path) -> None:
    """Where only the strategy differs there is nothing to be "at"."""
    for forms in (("tp", "dp"), ("simple", "fsdp", "ep")):
        folder = tmp_path / forms[0]
        records = [factory.measured(factory.cell(form), noise=0.01) for form in forms]
        frame = analysis.load(factory.write_all(folder, records))
        short, _ = insights.headline_and_insights(frame, summarize.summarize(frame))
        (claim,) = short.claims
        assert re.fullmatch(r"\w+ is fastest, [\d.]+ times ahead of \w+", claim.text)


def launches(medians: dict[int, list[float]]) -> list[Record]:
    """A cell with these times of a step in the rounds of each launch: a long block that was
    disturbed less than the short one gives one below zero."""
    found = []
    for launch, values in medians.items():
        made = factory.measured(factory.cell("ep"), launch=launch, rounds=len(values))
        taken = made.samples
        for number, value in enumerate(values):
            short, long = (
                next(i for i, (r, k) in enumerate(zip(taken.round, taken.kind, strict=True))
                     if (r, k) == (number, kind)) for kind in ("short", "long")
            )  # fmt: skip
            span = max(taken.end_ns[short]) - min(taken.start_ns[short])
            start = min(taken.start_ns[long])
            ranks = len(taken.start_ns[long])
            taken.start_ns[long] = [start] * ranks
            taken.end_ns[long] = [start + max(1, round(span + 30e6 * value))] * ranks
        found.append(made)
    return found


def summarized(tmp_path: Path, medians: dict[int, list[float]]) -> CellSummary:
    frame = analysis.load(factory.write_all(tmp_path, launches(medians)))
    (cell,) = summaries(summarize.summarize(frame))
    return cell


def test_no_interval_of_a_duration_reaches_below_zero(tmp_path: Path) -> None:
    """The mean of 1, 1, 1, 40 and its deviation 19.5: 10.75 +- 3.182 x 19.5 / 2."""
    cell = summarized(tmp_path, {0: [1.0, 1.0, 1.0, 40.0]})
    assert cell.mean_ms == pytest.approx(10.75, rel=1e-3)
    assert cell.mean_low_ms == 0.0
    assert cell.mean_high_ms == pytest.approx(10.75 + 3.1824 * 19.5 / 2, rel=1e-3)
    assert math.isnan(cell.throughput_high)
    text = tables.entry(cell, tables.MEAN).text
    assert text.startswith("10.7 [0.0, 41.8]") or text.startswith("10.8 [0.0, 41.8]")


@given(st.lists(st.floats(-0.2, 100.0), min_size=2, max_size=9))
@settings(max_examples=60)
def test_intervals_of_any_rounds(values: list[float]) -> None:
    (made,) = launches({0: values})
    (cell,) = summaries(summarize.summarize(to_frame([flat_row.row(made)])))
    if cell.outcome == "failed":
        assert "noise hides the step" in cell.error_message
        return
    for low in (cell.low_ms, cell.mean_low_ms, cell.latency_low_ms):
        assert math.isnan(low) or low >= 0
    assert cell.median_ms > 0
    assert math.isnan(cell.mean_ms) or cell.mean_ms > 0  # no average where noise takes it below 0


def test_intervals_above_zero_are_as_they_were(tmp_path: Path) -> None:
    cell = summarized(tmp_path, {0: [2.0, 3.0, 4.0]})
    half = 4.30265 * 1.0 / math.sqrt(3)
    assert cell.mean_low_ms == pytest.approx(3.0 - half, rel=1e-3)
    assert cell.mean_high_ms == pytest.approx(3.0 + half, rel=1e-3)


def test_a_launch_that_noise_hides_has_no_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of five launches one: the others are shown, with a mark. All of one: no number at all."""
    quiet, hidden = [1.0, 1.1, 1.2], [-0.05, -0.05, 1.0]
    cell = summarized(tmp_path / "5", {**dict.fromkeys(range(4), quiet), 4: hidden})
    assert (cell.outcome, cell.launches) == ("measured", 4)
    assert "some_attempts_failed" in cell.flags
    cell = summarized(tmp_path / "1", {0: hidden})
    assert cell.outcome == "failed" and math.isnan(cell.median_ms)
    for verb in ("show", "check", "status"):
        assert cli.main([verb, str(tmp_path / "5")]) in (0, 1)
        assert cli.main([verb, str(tmp_path / "1")]) in (0, 1)
    assert "noise hides the step" in capsys.readouterr().out


def test_an_interval_too_wide_for_a_float_is_no_traceback() -> None:
    """Two rounds a thousandfold apart, and a hundred comparisons that hold together."""
    found = verdict.compare(
        [1.0, 1.0], [1.0, 1000.0], paired=True, basis="rounds", launches=1, comparisons=100
    )
    assert found is not None
    assert found.word == verdict.UNDECIDED
    assert found.inverted().inverted().high == pytest.approx(found.high)


def test_an_average_that_is_not_above_zero_is_left_out_and_the_median_stays() -> None:
    attempt = {"median_duration_ms": 0.3, "median_low_ms": 0.2, "median_high_ms": 0.4,
               "avg_duration_ms": -0.1, "std_duration_ms": 2.0, "num_samples": 9}  # fmt: skip
    one = summarize._one_launch(attempt)
    assert one["median_ms"] == 0.3
    many = summarize._many_launches([attempt] * 5)
    assert many["median_ms"] == pytest.approx(0.3)
    for figures in (one, many):
        assert all(math.isnan(figures[n]) for n in ("mean_ms", "mean_low_ms", "mean_high_ms"))
