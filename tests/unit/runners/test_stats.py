"""From samples to figures: worked examples with hand-written expectations."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path

import pytest

import analysis
from analysis.errors import InputError
from analysis.stats import compare
from analysis.stats.summarize import summarize
from moe.spec import Cell
from runners.records import flat_row, record, stats, sweep_folder
from runners.records.record import Record, Samples

DATA = Path(__file__).resolve().parents[2] / "support" / "data"
MS = 10**6


def blocks(*rows: tuple[int, str, int, float]) -> Samples:
    """(round, kind, steps, makespan in ms) on two ranks, the second of which starts last and ends
    first."""
    found = Samples()
    for number, kind, steps, span_ms in rows:
        found.round.append(number)
        found.position.append(0)
        found.kind.append(kind)
        found.steps.append(steps)
        found.start_ns.append([1000, 1001])
        found.end_ns.append([1000 + round(span_ms * MS), 1002])
    return found


def record_of(samples: Samples, **fields: object) -> Record:
    cell = Cell()
    made = Record(record.cell_key(cell), cell, samples=samples, gate={"ok": True})
    return dataclasses.replace(made, **fields)  # type: ignore[arg-type]


# A step takes 2 ms, a block 1 ms beside its steps, and the first step 0.5 ms more than that.
TWO_ROUNDS = blocks(
    (0, "warmup", 2, 99.0),
    (0, "short", 2, 5.5), (0, "long", 5, 11.5), (0, "latency", 1, 3.5),
    (1, "long", 5, 12.5), (1, "short", 2, 5.5), (1, "latency", 1, 3.7),
)  # fmt: skip


def test_the_time_of_a_step_is_the_difference_of_two_blocks_over_that_of_their_steps() -> None:
    assert stats.step_ms(2, 5.0, 5, 11.0) == 2.0
    times = stats.step_times_ms(TWO_ROUNDS)
    assert [number for number, _ in times] == [0, 1]
    assert [ms for _, ms in times] == pytest.approx([2.0, 7 / 3])
    found = stats.headline(record_of(TWO_ROUNDS))
    assert found["median_duration_ms"] == pytest.approx((2 + 7 / 3) / 2)
    assert found["latency_ms"] == pytest.approx(3.6)
    assert found["start_ms"] == pytest.approx(5.5 - 2 * (2 + 7 / 3) / 2)
    assert (found["num_samples"], found["num_rounds"]) == (2, 2)
    assert stats.metric(record_of(TWO_ROUNDS)) == "steady state"


def test_more_than_one_pair_in_a_round_go_together_in_their_order() -> None:
    taken = blocks(
        (0, "long", 5, 10.0), (0, "short", 2, 4.0), (0, "short", 2, 1.0), (0, "long", 5, 10.0),
        (1, "short", 2, 4.0),
    )  # fmt: skip
    assert stats.step_times_ms(taken) == [(0, pytest.approx(2.0)), (0, pytest.approx(3.0))]
    assert stats.round_medians_ms(taken) == {0: pytest.approx(2.5)}


def test_a_block_of_fixed_length_is_its_mean_and_has_no_start_or_latency() -> None:
    fixed = record_of(blocks((0, "fixed", 4, 8.0), (1, "fixed", 4, 12.0)), measure={"block": 4})
    found = stats.headline(fixed)
    assert found["median_duration_ms"] == 2.5
    assert (found["latency_ms"], found["start_ms"]) == (None, None)
    assert stats.metric(fixed) == "fixed block of 4 steps"
    assert stats.metric(record_of(Samples(), measure={"block": 1})) == "fixed block of 1 step"


def test_a_start_that_still_grows_is_flagged_with_its_size() -> None:
    """The short block of 2 steps costs 2 ms more beside its steps than one step alone does; over
    the 8 steps between the lengths that is up to 1 ms of 4 ms: 12.5%."""
    rows = [
        row
        for number in range(6)
        for row in ((number, "short", 2, 12.0), (number, "long", 10, 44.0),
                    (number, "latency", 1, 4.0))
    ]  # fmt: skip
    grows = record_of(blocks(*rows))
    found = stats.start_growth(grows.samples, 4.0)
    assert found is not None and found.low == found.high == pytest.approx(4.0 / 32)
    assert stats.flags(grows) == ["start_grows"]
    settled = [(n, k, s, ms + 4.0 * (k == "latency")) for n, k, s, ms in rows]
    assert stats.flags(record_of(blocks(*settled))) == []


def test_rounds_without_a_ratio_are_left_out() -> None:
    other = blocks((0, "short", 2, 3.0), (0, "long", 5, 9.0), (1, "short", 2, 9.0),
                   (1, "long", 5, 9.0))  # fmt: skip
    assert stats.round_ratios(TWO_ROUNDS, other) == [pytest.approx(1.0)]


def written(path: Path) -> Record:
    return record.read(DATA / path)


def test_a_record_of_every_version_is_read_with_its_own_meaning() -> None:
    """One file of each schema as it was written by its own code, but for the schema 1 that no
    released code reads any more."""
    old, new = written(Path("records/schema-2.json")), written(Path("records/schema-3.json"))
    assert [stats.metric(one) for one in (old, new)] == [stats.BLOCK_MEAN, stats.STEADY]
    raw = json.loads((DATA / "records/schema-2.json").read_text())["samples"]
    spans = [
        (max(end) - min(start)) / steps / MS
        for start, end, steps, warm in zip(raw["start_ns"], raw["end_ns"], raw["steps"],
                                           raw["warmup"], strict=True)
        if not warm
    ]  # fmt: skip
    median = statistics.median(spans)
    assert stats.headline(old)["median_duration_ms"] == pytest.approx(median)
    assert [ms for _, ms in stats.step_times_ms(old.samples)] == pytest.approx(spans)
    assert stats.headline(old)["latency_ms"] is None
    assert stats.headline(new)["latency_ms"] > 0
    assert stats.floor_ms(old) is not None


def test_times_of_two_metrics_are_neither_pooled_nor_compared(tmp_path: Path) -> None:
    """An older sweep of a cell beside a new one: two rows, and `compare` refuses by name."""
    old, new = written(Path("records/schema-2.json")), written(Path("records/schema-3.json"))
    new = dataclasses.replace(new, cell=old.cell, key=old.key, launch=1, sweep=old.sweep)
    cells = summarize(analysis.data.frame.to_frame([flat_row.row(old), flat_row.row(new)]))
    assert sorted(cells["metric"]) == sorted([stats.BLOCK_MEAN, stats.STEADY])
    a, b = (analysis.data.frame.to_frame([flat_row.row(one)]) for one in (old, new))
    with pytest.raises(InputError, match="not the same metric: mean of a block"):
        compare.sweeps(a, b, ("A", "B"), 0.02)


def test_an_older_record_is_stale_when_its_sweep_is_taken_up_again() -> None:
    old = written(Path("records/schema-2.json"))
    here = frozenset([sweep_folder.version_of(old.environment)])
    assert sweep_folder.state([old], here, 1) == "stale"
    assert (
        sweep_folder.state([dataclasses.replace(old, schema=record.SCHEMA)], here, 1) == "measured"
    )


def test_what_schema_3_called_the_seed_is_the_reference() -> None:
    """The same cell under the same key, by its present name."""
    new = written(Path("records/schema-3.json"))
    cell = dataclasses.replace(
        new.cell, strategy=dataclasses.replace(new.cell.strategy, name="peer_reference")
    )
    content = record.to_dict(
        dataclasses.replace(new, cell=cell, key=record.cell_key(cell), meta={"model": "reference"})
    )
    former = json.loads(json.dumps(content))
    former["schema"], former["meta"]["model"] = 3, "seed"
    former["cell"]["strategy"]["name"] = "peer_seed"
    read = record.from_dict(former)
    assert (read.cell, read.key, read.meta) == (cell, content["key"], {"model": "reference"})
    row = flat_row.row(read)
    assert flat_row.cell_of({**row, "strategy": "peer_seed"}) == cell
    present = record.from_dict(json.loads(json.dumps({**content, "schema": record.SCHEMA})))
    assert present == dataclasses.replace(read, schema=record.SCHEMA)
