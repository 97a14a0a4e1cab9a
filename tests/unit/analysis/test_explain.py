"""Planted parts of known size are named, and the parts of every difference add up."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import analysis
from analysis.cli import main
from analysis.predict import explain_command
from analysis.predict.explain_command import Asked
from analysis.stats import parts
from analysis.stats.explain import Explanation
from analysis.stats.parts import State, Work, decompose, split
from analysis.text import explain as words
from moe.spec import Cell
from runners.records.record import Record
from tests.support import analysis_factory as factory

BASE = {"router": 1.0, "permute": 1.0, "dispatch": 4.0, "wait": 0.5, "experts": 8.0,
        "combine": 4.0, "unpermute": 1.0, "other": 0.5}  # fmt: skip
STEP = 19.5  # ms, the sum of the above without waiting
LINK = {"alpha_s": 0.0, "beta_s_per_byte": 1e-9, "error": 0.1, "points": []}
CALIBRATION = {**factory.CALIBRATION, "ranks": 2, "collectives": {"all_to_all": LINK}}


def record(
    of: Cell,
    extra: Sequence[Mapping[str, float]] = ({}, {}),
    *,
    step: float = STEP,
    mebibytes: int = 4,
    slots: Sequence[int] = (64, 64),
    **fields: Any,
) -> Record:
    """Ten rounds of exactly `step` ms, four equal passes of BASE plus `extra` by rank."""
    ranks = [{n: BASE.get(n, 0.0) + more.get(n, 0.0) for n in (*BASE, *more)} for more in extra]
    nanoseconds = [{name: round(1e6 * ms) for name, ms in rank.items()} for rank in ranks]
    phases = {
        "passes": 4,
        "per_rank_ns": nanoseconds,
        "total_ns": [sum(rank.values()) for rank in nanoseconds],
        "per_pass_ns": [nanoseconds] * 4,
    }
    sent = {"sent_bytes": mebibytes << 20, "received_bytes": mebibytes << 20, "busbw_bytes": 0}
    call = {"collective": "all_to_all", "group": "ep", "calls": 2, "algorithm": "", **sent}
    values: dict[str, Any] = {
        "noise": 0.0, "scale": step / factory.truth_ms(of), "calibration": CALIBRATION,
        "phases": phases, "traffic": [[call], [call]],
        "skew": {"expert_slots": [16] * 8, "rank_slots": list(slots)},
        "environment": {**factory.ENVIRONMENT, "local_ranks": 2},
    }  # fmt: skip
    return factory.measured(of, **{**values, **fields})


def cell(batch: int = 64, **changes: Any) -> Cell:
    return factory.cell("ep", dispatcher="alltoall", tokens="sharded", ranks=2, batch=batch,
                        **changes)  # fmt: skip


def explained(tmp_path: Path, a: Record, b: Record) -> Explanation:
    factory.write_all(tmp_path / "a", [dataclasses.replace(a, label="changed")])
    factory.write_all(tmp_path / "b", [dataclasses.replace(b, label="plain")])
    frames = [analysis.load([tmp_path / name]) for name in ("a", "b")]
    return explain_command.answer(Asked(frames, ("a", "b"), "label=changed", "label=plain"))


def of(explanation: Explanation, key: str) -> float:
    (part,) = [part for part in explanation.parts if part.key.startswith(key)]
    assert part.ms is not None
    return part.ms


# The formulas.


def test_a_difference_is_split_into_work_and_rate() -> None:
    # 10 ms for 2 + 3 and 4 ms for 1 + 3: rates 2 and 1, so 1.5 * (2 - 1), and (5 + 4) / 2 * (2 - 1)
    terms, rate = split(10.0, {"x": 2.0, "y": 3.0}, 4.0, {"x": 1.0, "y": 3.0})
    assert terms == {"x": 1.5, "y": 0.0}
    assert rate == pytest.approx(4.5)


def test_phases_that_are_alike_may_share_fixed_costs() -> None:
    # 2 + 2 * 4 and 2 + 2 * 2: one line for both; at a worse rate, with more to do, there is none
    assert split(10.0, {"x": 4.0}, 6.0, {"x": 2.0}, alike=True) == ({"x": 4.0}, 0.0)
    assert split(10.0, {"x": 4.0}, 6.0, {"x": 2.0}) == ({"x": 5.5}, -1.5)
    assert split(12.0, {"x": 4.0}, 4.0, {"x": 2.0}, alike=True) == ({"x": 5.0}, 3.0)


@pytest.mark.parametrize(
    ("a", "b", "terms", "rate"),
    [
        (
            (6.0, {"x": 3.0}),
            (0.0, {}),
            {"x": 6.0},
            0.0,
        ),  # what the other does not send is all bytes
        ((6.0, {"x": 3.0}), (1.0, {}), {"x": 6.0}, -1.0),
        ((0.0, {}), (6.0, {"x": 3.0}), {"x": -6.0}, 0.0),
        ((5.0, {}), (3.0, {}), {}, 2.0),
    ],
)
def test_a_side_that_needs_nothing_has_the_rate_of_the_other(
    a: tuple[float, dict[str, float]],
    b: tuple[float, dict[str, float]],
    terms: dict[str, float],
    rate: float,
) -> None:
    assert split(*a, *b) == (terms, rate)


TIMES = st.floats(0.0, 1e3)
TERMS = st.dictionaries(st.sampled_from(["arithmetic", "reads", "skew", "bytes: x"]),
                        st.floats(1e-3, 1e3), max_size=4)  # fmt: skip
STATES = st.builds(State, *[TIMES] * 8)
WORKS = st.builds(Work, TERMS, TERMS, TERMS, st.floats(1.0, 16.0), TIMES)


@given(STATES, WORKS, STATES, WORKS)
def test_parts_add_up_to_the_difference(a: State, x: Work, b: State, y: Work) -> None:
    assert sum(decompose(a, x, b, y).values()) == pytest.approx(a.step - b.step, abs=1e-6)


@given(STATES, WORKS, STATES, WORKS)
def test_the_other_way_round_every_part_has_the_other_sign(
    a: State, x: Work, b: State, y: Work
) -> None:
    there, back = decompose(a, x, b, y), decompose(b, y, a, x)
    assert there.keys() == back.keys()
    for key, value in there.items():
        assert back[key] == pytest.approx(-value, abs=1e-6)


def test_ranks_that_share_cores_lose_what_the_others_take() -> None:
    # interrupted in its phases, which have 16 ms beside the links, or not: then they have 8
    for experts, total in ((12.0, 20.0), (6.0, 12.0)):
        shared = decompose(State(20.0, total, experts=experts, links=4.0), Work(over=2.0),
                           State(12.0, 12.0, experts=6.0, links=4.0), Work())  # fmt: skip
        assert shared["oversubscription"] == 8.0  # half of 20 - 4
        assert shared["rate"] == shared["waiting"] == shared["unexplained"] == 0.0


def test_counted_waits_are_taken_out_of_the_links() -> None:
    a = State(12.0, 12.0, links=8.0, host=1.0)
    explanation = decompose(a, Work(links={"bytes: x": 2.0}, host_waits_ms=3.0),
                      State(8.0, 8.0, links=5.0), Work(links={"bytes: x": 2.0}))  # fmt: skip
    assert explanation["host"] == 4.0
    assert (explanation["bytes: x"], explanation["link_rate"]) == (0.0, 0.0)


# Planted differences in records.


def test_a_slow_expert_of_one_rank_is_a_rate_in_full(tmp_path: Path) -> None:
    slow = record(cell(), ({"wait": 6.0}, {"experts": 6.0}), step=STEP + 6)
    explanation = explained(tmp_path, slow, record(cell()))
    assert (explanation.largest.key, explanation.largest.ms) == (parts.RATE, pytest.approx(6.0))
    assert of(explanation, parts.UNEXPLAINED) == pytest.approx(0.0, abs=1e-6)
    assert of(explanation, parts.WAITING) == pytest.approx(0.0, abs=1e-6)


def test_doubled_bytes_are_named_by_their_collective(tmp_path: Path) -> None:
    more = {"dispatch": 4.0, "combine": 4.0}
    twice = record(cell(), (more, more), step=STEP + 8, mebibytes=8)
    explanation = explained(tmp_path, twice, record(cell()))
    largest = explanation.largest
    assert (largest.key, largest.ms) == ("bytes: all_to_all (ep)", pytest.approx(8.0))
    assert explanation.largest.about == "8.00 MiB in 2 calls against 4.00 MiB in 2 calls"
    assert of(explanation, parts.LINK_RATE) == pytest.approx(0.0, abs=1e-6)


def test_a_busier_rank_is_skew(tmp_path: Path) -> None:
    # without a calibration only slots count: 96 of them take 1.5 times as long as 64
    skewed = record(cell(), ({"experts": 4.0}, {"experts": -4.0, "wait": 8.0}), step=STEP + 4,
                    slots=(96, 32), calibration=None)  # fmt: skip
    explanation = explained(tmp_path, skewed, record(cell(), calibration=None))
    assert (explanation.largest.key, explanation.largest.ms) == (parts.SKEW, pytest.approx(4.0))
    assert of(explanation, parts.RATE) == pytest.approx(0.0, abs=1e-6)
    assert explanation.largest.about == (
        "busiest rank 1.50 times the mean against busiest rank 1.00 times the mean"
    )


@pytest.mark.parametrize("extra", [({"other": 5.0}, {"other": 5.0}),
                                   ({"wait": 5.0}, {"other": 5.0})])  # fmt: skip
def test_a_wait_of_the_host_is_named_on_one_rank_and_on_all(
    tmp_path: Path, extra: Sequence[Mapping[str, float]]
) -> None:
    explanation = explained(tmp_path, record(cell(), extra, step=STEP + 5), record(cell()))
    assert (explanation.largest.key, explanation.largest.ms) == (parts.HOST, pytest.approx(5.0))


def test_a_rank_that_is_late_elsewhere_is_waited_for(tmp_path: Path) -> None:
    late = record(cell(), ({"wait": 6.0}, {"router": 6.0}), step=STEP + 6)
    explanation = explained(tmp_path, late, record(cell()))
    assert of(explanation, parts.WAITING) == pytest.approx(3.0)
    assert of(explanation, parts.ROUTER) == pytest.approx(3.0)  # the mean of both ranks


def test_what_the_phases_do_not_have_is_not_explained(tmp_path: Path) -> None:
    explanation = explained(tmp_path, record(cell(), step=STEP + 3), record(cell()))
    assert explanation.largest.key == parts.UNEXPLAINED
    assert explanation.parts[-1].ms == pytest.approx(3.0)


def test_equal_rounds_and_passes_leave_no_doubt_and_scattered_ones_do(tmp_path: Path) -> None:
    sure = explained(tmp_path / "x", record(cell(), step=STEP + 3), record(cell()))
    assert sure.total.low == pytest.approx(3.0) == sure.total.high
    noisy = explained(tmp_path / "y", record(cell(), noise=0.1), record(cell(), noise=0.1, seed=1))
    assert noisy.total.low < (noisy.total.ms or 0.0) < noisy.total.high
    assert noisy.basis == "by rounds and passes of one launch"


def test_five_launches_are_drawn_as_launches(tmp_path: Path) -> None:
    for name in ("changed", "plain"):
        of_launches = [
            record(cell(), launch=n, label=name, launch_effect=0.05, seed=ord(name[0]))
            for n in range(5)
        ]
        factory.write_all(tmp_path, of_launches)
    asked = Asked([analysis.load([tmp_path])], ("a",), "label=changed", "label=plain")
    explanation = explain_command.answer(asked)
    assert explanation.basis == "over 5 launches"
    assert explanation.total.high > explanation.total.low


# What the records do not have.


def test_parts_without_records_are_named_and_not_zero(tmp_path: Path) -> None:
    bare = record(cell(), step=STEP + 2, phases=None)
    explanation = explained(tmp_path, bare, record(cell()))
    assert {part.ms for part in explanation.parts[:-1]} == {None}
    assert explanation.parts[-1].ms == pytest.approx(2.0)
    assert any("not in the records" in row and "no phases of ep" in row[-1]
               for row in words.rows(explanation, "text"))  # fmt: skip


def test_without_a_calibration_reads_and_memory_are_not_known(tmp_path: Path) -> None:
    explanation = explained(tmp_path, record(cell(), calibration=None), record(cell()))
    unknown = [part.key for part in explanation.parts if part.ms is None]
    assert unknown == [parts.READS, parts.MEMORY]


def test_records_with_one_pass_have_parts_without_intervals(tmp_path: Path) -> None:
    old = record(cell(), step=STEP + 6)
    assert old.phases is not None
    phases = {k: v for k, v in old.phases.items() if k != "per_pass_ns"}
    explanation = explained(tmp_path, dataclasses.replace(old, phases=phases), record(cell()))
    assert of(explanation, parts.ROUTER) == pytest.approx(0.0)
    assert all(pd.isna(part.low) for part in explanation.parts)


# The verb.


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return factory.write_all(tmp_path, factory.reference_records(calibration=None))


def run(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    code = main(["explain", *options])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_verb_prints_a_sentence_and_parts_that_add_up(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = "strategy=ep,topk=8,tokens=replicated", "strategy=tp,topk=8,tokens=replicated"
    source = str(sweep / "reference_topk")
    code, out, _ = run(capsys, source, "--a", a, "--b", b, "--format", "csv")
    assert code == 0
    start, *rows = [line for line in out.splitlines() if line and not line.startswith("# Parts")]
    assert start.startswith("# ep is ") and " faster than tp (" in start
    assert rows[0] == "part,ms,low,high,share,first against second"
    values = list(pd.read_csv(pd.io.common.StringIO("\n".join(rows)))["ms"])
    known = [float(v) for v in values if v != words.ABSENT]
    assert sum(known[:-1]) == pytest.approx(known[-1], abs=1e-4)
    assert values.count(words.ABSENT) == 2


@pytest.mark.parametrize(("options", "error"), [
    (["--a", "strategy=ep", "--b", "strategy=tp,topk=8"],
     "--a strategy=ep: 3 cells; allowed is one; add what tells it from the others: topk=2 | "),
    (["--a", "strategy=ep,topk=9", "--b", "strategy=tp"],
     "--a strategy=ep,topk=9: no measured cell; present are strategy=ep,serial,simple,tp; "
     "topk=2,4,8"),
    (["--a", "strategy=ep,topk=8", "--b", "ranks=8,strategy=ep,top_k=8"], "the same cell as --a"),
    (["--a", "strategy=ep,topk=8"], "needs two cells; allowed are --a and --b"),
    (["--a", "ep", "--b", "strategy=tp"], "ep is no field=value; allowed are fields"),
    (["--a", "strategi=ep", "--b", "strategy=tp"], "no such column; near are strategy"),
    (["--a", "strategy=ep,topk=8", "--b", "strategy=tp", "--predicted"], "not together with"),
    (["--a", "strategy=ep,topk=8", "--predicted"], "the model has no such cell as ep"),
    (["--a", "strategy=ep,topk=\x1b[31m", "--b", "strategy=tp"], "no measured cell"),
])  # fmt: skip
def test_bad_input_is_refused_in_one_line(
    sweep: Path, capsys: pytest.CaptureFixture[str], options: list[str], error: str
) -> None:
    code, out, err = run(capsys, str(sweep / "reference_topk"), *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert error in err and "\x1b" not in err


def test_one_cell_of_two_sweeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, step in (("before", 20.0), ("after", 26.0)):
        factory.write_all(tmp_path, [record(cell(), step=step, sweep=name)])
    code, out, _ = run(capsys, str(tmp_path / "after"), str(tmp_path / "before"))
    assert code == 0
    assert "after is 6.00 ms [6.00, 6.00] slower than before (26.0 against 20.0 ms)" in out


def test_a_cell_against_the_model_fitted_to_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = [(batch, topk) for batch in (64, 128, 256, 512) for topk in (1, 2, 4)]
    factory.write_all(tmp_path, [record(cell(batch, topk=k), label="x") for batch, k in grid])
    code, out, err = run(capsys, str(tmp_path), "--a", "batch=256,topk=2", "--predicted",
                         "--format", "csv")  # fmt: skip
    assert (code, err) == (0, "")
    assert "fitted to 11 other cells" in out
    rows = [line for line in out.splitlines() if line and line[0] != "#"]
    table = pd.read_csv(pd.io.common.StringIO("\n".join(rows))).set_index("part")["ms"]
    assert table.iloc[:-1].sum() == pytest.approx(table["the difference"], abs=1e-4)
    assert table["waiting for other ranks"] == pytest.approx(0.0)
    assert table["host: waits, and time outside of the phases"] == pytest.approx(0.5)
