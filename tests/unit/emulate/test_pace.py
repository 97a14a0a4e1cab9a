"""Pacing under a fake clock, and the vote on void blocks."""

from __future__ import annotations

import pytest

from benchmarks.emulate.pace import TOO_LATE, Pace


class Clocks:
    """A wall clock that goes on while sleeping, and a CPU clock that does not."""

    def __init__(self) -> None:
        self.wall, self.cpu = 100.0, 5.0

    def compute(self, cpu_s: float, wall_s: float | None = None) -> None:
        self.cpu += cpu_s
        self.wall += cpu_s if wall_s is None else wall_s

    def sleep(self, seconds: float) -> None:
        self.wall += seconds


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
