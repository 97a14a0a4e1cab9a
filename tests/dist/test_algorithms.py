"""Which collectives are exchanged, that they compute the same, and that all ranks agree on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe.parallel import algorithms
from moe.parallel.algorithms import CHOSEN, EXCHANGE, LIBRARY, SIZES_BYTES, choose
from moe.parallel.comm import add_in_order
from moe.spec import Cell, RankLayout
from runners.plan import Job, Measure
from runners.records.record import Record
from runners.sweep.launch import Launch
from runners.sweep.progress import Progress
from runners.sweep.settings import Settings
from runners.sweep.sweep import Sweep
from tests.support.ranks import run_ranks

SMALLEST, *_, LARGEST = sorted(SIZES_BYTES)


def test_the_table_limits_what_a_rank_receives() -> None:
    assert algorithms.table(8) == {"all_reduce": 64 << 10, "all_gather": 64 << 10}
    for ranks, size, expected in ((8, 65536, EXCHANGE), (8, 65537, LIBRARY), (2, 65537, EXCHANGE)):
        assert algorithms.algorithm("all_reduce", size, ranks, backend="gloo") == expected
    assert algorithms.algorithm("all_reduce", 4, 8, backend="nccl") == LIBRARY
    assert algorithms.algorithm("all_to_all", 4, 8, backend="gloo") == ""


def test_a_calibration_decides_up_to_where_the_exchange_is_faster() -> None:
    ring, exchange = 4.0, {1 << 10: 1.0, 16 << 10: 2.0, 64 << 10: 5.0, 256 << 10: 9.0}
    times = {"all_gather": {size: (ring, seconds) for size, seconds in exchange.items()}}
    assert choose(times, 8) == {"all_reduce": 64 << 10, "all_gather": 16 << 10}
    one_odd = {**times["all_gather"], 1 << 10: (4.0, 4.4)}  # noise at one size
    assert choose({"all_gather": one_odd}, 8)["all_gather"] == 16 << 10
    never = dict.fromkeys(SIZES_BYTES, (1.0, 2.0))
    assert choose({"all_reduce": never}, 8)["all_reduce"] == 0


def test_a_size_that_was_not_timed_goes_by_the_table() -> None:
    assert choose({}, 8) == algorithms.table(8)
    assert choose({"all_reduce": {1 << 10: (2.0, 1.0)}}, 8)["all_reduce"] == 64 << 10
    assert choose({"all_reduce": {64 << 10: (1.0, 2.0)}}, 8)["all_reduce"] == 16 << 10


TIMES = st.tuples(st.floats(1e-4, 1.0), st.floats(1e-4, 1.0))


@given(st.dictionaries(st.sampled_from(SIZES_BYTES), TIMES))
def test_no_other_limit_would_be_faster(times: dict[int, tuple[float, float]]) -> None:
    limit = choose({"all_reduce": times}, 4)["all_reduce"]
    if len(times) < len(SIZES_BYTES):
        return

    def slowness(limit: int) -> float:
        return sum(both[size <= limit] / min(both) for size, both in times.items())

    assert slowness(limit) == min(map(slowness, (0, *SIZES_BYTES)))
    assert limit <= LARGEST < 1 << 20


def test_a_sum_is_taken_member_by_member() -> None:
    parts = torch.tensor([[1e8], [1.0], [-1e8]])
    assert add_in_order(parts).item() == 0.0  # (1e8 + 1) - 1e8; another order gives 1
    assert add_in_order(parts[[0, 2, 1]]).item() == 1.0
    small = torch.full((9, 1), 2.0**-9, dtype=torch.bfloat16)
    small[0] = 1.0
    assert add_in_order(small).item() == 1.0 + 2**-6  # bfloat16 alone would stay at 1


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    answer = run_ranks("algorithm_ranks", 3)
    assert isinstance(answer, dict)
    return answer


@pytest.mark.dist
def test_both_algorithms_compute_the_same_on_all_ranks(found: dict[str, Any]) -> None:
    assert len(found["differences"]) == 2 * 4 * 3  # collectives, sizes, dtypes
    assert {case: worst for case, worst in found["differences"].items() if worst > 0.01} == {}
    assert set(found["alike"].values()) == {True}  # an exchanged sum has the same bits everywhere


@pytest.mark.dist
def test_what_is_counted_is_what_the_algorithm_sends(found: dict[str, Any]) -> None:
    size = 4 * 300
    library, exchange = found["counted"]
    assert [row["algorithm"] for row in library] == [LIBRARY] * len(CHOSEN)
    assert [row["algorithm"] for row in exchange] == [EXCHANGE] * len(CHOSEN)
    assert [row["sent_bytes"] for row in library] == [2 * 2 / 3 * size, 2 * size]
    assert [row["sent_bytes"] for row in exchange] == [2 * size, 2 * size]
    assert [row["busbw_bytes"] for row in exchange] == [2 * 2 / 3 * size, 2 * size]  # nccl-tests'


def a_record(world_size: int, exchanged: dict[str, int] | None, launch: int = 0) -> Record:
    job = Job(Cell(placement=RankLayout(world_size)), Measure())
    return Record(key=job.key, cell=job.cell, launch=launch, exchanged=exchanged)


def test_one_choice_holds_for_a_whole_sweep(tmp_path: Path) -> None:
    """The first launch's, whatever a later calibration says; of other numbers of ranks another."""
    jobs = [Job(Cell(placement=RankLayout(ranks)), Measure()) for ranks in (4, 8)]
    sweep = Sweep(jobs, Settings(tmp_path / "s"), Progress())
    first, later = {"all_reduce": 1024, "all_gather": 0}, {"all_reduce": 0, "all_gather": 0}
    assert Launch(sweep.context(), sweep, jobs[:1]).plan.exchanged is None
    sweep.state.add(a_record(4, first))
    sweep.state.add(a_record(4, later, 1))
    sweep.state.add(a_record(4, None, 2))
    assert Launch(sweep.context(), sweep, jobs[:1]).plan.exchanged == first
    assert Launch(sweep.context(), sweep, jobs[1:]).plan.exchanged is None
