"""Pacing under a fake clock, the common start, and the vote on void blocks."""

from __future__ import annotations

import os
from typing import Any

import pytest

from benchmarks.emulate import rank
from benchmarks.emulate.pace import TOO_LATE, Pace
from benchmarks.emulate.start_gate import StartGate
from runners.rank.engine import Sample
from runners.rank.worker import Worker


class Clocks:
    """A wall clock that goes on while sleeping, and a CPU clock that does not."""

    def __init__(self) -> None:
        self.wall, self.cpu, self.overslept = 100.0, 5.0, 0.0

    def compute(self, cpu_s: float, wall_s: float | None = None) -> None:
        self.cpu += cpu_s
        self.wall += cpu_s if wall_s is None else wall_s

    def sleep(self, seconds: float) -> None:
        self.wall += seconds + self.overslept


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def pace(clocks: Clocks) -> Pace:
    return Pace(50.0, lambda: clocks.wall, lambda: clocks.cpu, clocks.sleep)


def test_computing_takes_its_dilated_time(pace: Pace, clocks: Clocks) -> None:
    clocks.compute(0.002)
    pace.settle()
    assert clocks.wall == pytest.approx(100.1)  # 50 x 2 ms
    clocks.compute(0.001)
    pace.settle()
    assert clocks.wall == pytest.approx(100.15)
    assert pace.late_s == 0


def test_waiting_before_a_mark_is_not_dilated(pace: Pace, clocks: Clocks) -> None:
    clocks.compute(0.001, wall_s=3.0)  # a message was awaited
    pace.mark()
    clocks.compute(0.001)
    pace.settle()
    assert clocks.wall == pytest.approx(103.05)


def test_busy_cores_make_a_rank_late(pace: Pace, clocks: Clocks) -> None:
    pace.begin()
    clocks.compute(0.002, wall_s=0.13)  # 0.1 s was due
    pace.settle()
    assert clocks.wall == pytest.approx(100.13)
    assert pace.late_s == pytest.approx(0.03)
    assert pace.was_late(0.03 / TOO_LATE * 0.99) and not pace.was_late(0.03 / TOO_LATE * 1.01)
    pace.begin()
    assert pace.late_s == 0


def test_checks_take_their_own_time(pace: Pace, clocks: Clocks) -> None:
    pace.active = False
    clocks.compute(0.5)
    pace.settle()
    assert clocks.wall == pytest.approx(100.5) and pace.late_s == 0
    pace.active = True
    clocks.compute(0.001)
    pace.settle()
    assert clocks.wall == pytest.approx(100.55)  # from the settle before


def test_waking_up_late_is_late_too(pace: Pace, clocks: Clocks) -> None:
    pace.begin(0.01)  # the start was late already
    clocks.overslept = 0.004
    clocks.compute(0.002)
    pace.settle()  # 90 ms instead of 100 make up for the start
    assert clocks.wall == pytest.approx(100.094)
    assert pace.late_s == pytest.approx(0.004)
    assert pace.latest_s == pytest.approx(0.004)  # nobody notices a start that was made up for


def test_later_computing_makes_up_for_a_late_piece(pace: Pace, clocks: Clocks) -> None:
    pace.begin()
    clocks.compute(0.002, wall_s=0.13)  # 30 ms late
    pace.settle()
    clocks.compute(0.0002)  # 10 ms are due: too few to make up for 30
    pace.settle()
    assert pace.late_s == pytest.approx(0.02 + 0.0002)
    clocks.compute(0.001)
    pace.settle()
    assert clocks.wall == pytest.approx(100.0 + 50 * 0.0032)  # on schedule again
    assert pace.late_s == pytest.approx(0.0, abs=1e-9)
    assert pace.was_late(0.5) and not pace.was_late(0.7)  # 30 ms at most


def test_a_late_start_is_no_lateness_before_anything_is_computed(clocks: Clocks) -> None:
    ranks = object.__new__(rank.EmulatedRanks)
    ranks.pace = Pace(50.0, lambda: clocks.wall, lambda: clocks.cpu, clocks.sleep)
    ranks.gate = type("Gate", (), {"wait": lambda self: 0.02})()  # type: ignore[assignment]
    ranks.barrier()
    ranks.sync()
    clocks.compute(0.002)
    ranks.sync()
    assert clocks.wall == pytest.approx(100.08)  # 100 ms less the 20 of the start
    assert ranks.pace.latest_s == pytest.approx(0.0, abs=1e-9)


def in_two_forks(call: Any) -> list[Any]:
    """What call(rank) returns in two forks."""
    pipes = []
    for number in range(2):
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.write(writing, repr(call(number)).encode())
            os._exit(0)
        os.close(writing)
        pipes.append(reading)
    texts = [os.read(one, 100).decode() for one in pipes]
    for _ in pipes:
        os.wait()
    return texts


def test_one_late_rank_makes_the_block_void_on_all() -> None:
    gate = StartGate(2, limit_s=20)
    votes = in_two_forks(lambda number: [gate.any(number, number == 1), gate.any(number, False)])
    assert votes == ["[True, False]", "[True, False]"]


def test_a_rank_that_does_not_come_is_named_as_such() -> None:
    with pytest.raises(TimeoutError, match=r"did not come to the start within 0\.05 s"):
        StartGate(2, limit_s=0.05).wait()


@pytest.mark.parametrize(("kind", "late", "written"), [
    ("fixed", False, "fixed"), ("fixed", True, "void"), ("long", True, "void"),
    ("warmup", True, "warmup"), ("floor", True, "floor"), ("anchor-first", True, None),
    ("anchor-first", False, "anchor-first"),
])  # fmt: skip
def test_void_is_what_would_be_counted(
    kind: str, late: bool, written: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    emitted: list[Sample] = []
    monkeypatch.setattr(Worker, "emit", lambda worker, sample: emitted.append(sample))
    worker = object.__new__(rank.EmulatedWorker)
    worker.place = type("Place", (), {"rank": 0})()
    own = Pace(50.0)
    own.latest_s = 0.1 if late else 0.0
    monkeypatch.setattr(rank.EmulatedRanks, "pace", own, raising=False)
    monkeypatch.setattr(rank.EmulatedRanks, "gate", StartGate(1, limit_s=5), raising=False)
    worker.emit(Sample(0, kind, 0, 0, 1, 0, 1_000_000_000))
    assert [one.kind for one in emitted] == ([written] if written else [])
