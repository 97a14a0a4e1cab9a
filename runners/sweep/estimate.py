"""How long a sweep will take: before anything is measured, and again as its parts end. Torch-free.

The parts of a launch have expected durations (runners/sweep/parts.py). What parts took, over what
was expected, scales those of their kind that are still ahead.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from runners.plan import LaunchPlan
from runners.sweep.activity import CALIBRATING, STARTING, RankStage, rounds_done, wave_of
from runners.sweep.parts import ROUND_BLOCKS, LaunchWork, Part, all_parts, parts

PRIOR_S = 3.0  # the constants count as much as parts of this duration that were as expected
LATE = 1.5  # what takes this many times as long as expected, and GRACE_S, is late
GRACE_S = 3.0


def duration(seconds: float) -> str:
    """Rounded up to what an estimate is good for; never 0."""
    if seconds <= 10:
        return f"{max(1, math.ceil(seconds))} s"
    if seconds <= 90:
        return f"{5 * math.ceil(seconds / 5)} s"
    if seconds <= 90 * 60:
        return f"{math.ceil(seconds / 60)} min"
    return f"{math.ceil(seconds / 360) / 10:g} h"


class Span(NamedTuple):
    """Expected duration, and the largest where steps are short, in s."""

    expected_s: float
    most_s: float

    def __str__(self) -> str:
        return f"about {duration(self.expected_s)}, perhaps {duration(self.most_s)}"


@dataclass(frozen=True)
class Outlook:
    """When the sweep should end, as of the latest news; never changed, so that any thread may read
    it."""

    part_ends: float  # of the current part, on the estimate's clock
    after_s: float  # all parts after it
    late_at: float  # from then on it takes longer than expected

    def text(self, now: float) -> str:
        left_s = max(0.0, self.part_ends - now) + self.after_s
        if now <= self.late_at:
            return f"about {duration(left_s)} left"
        return "longer than expected" + (f", about {duration(left_s)} left" if left_s > 1 else "")


class Estimate:
    """The time that planned launches take, from now on. Launches that are made again, after ranks
    have died, come on top."""

    def __init__(
        self,
        launches: Sequence[LaunchWork],
        tracked: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.launches, self.tracked, self.clock = launches, tracked, clock
        self.took: dict[str, tuple[float, float]] = {}  # by kind: time that parts took; expected
        self.began = clock()
        self._begin(launches)
        ahead = [*self.chain, *self.later]
        self.whole = Span(sum(p.expected_s for p in ahead), sum(p.most_s for p in ahead))

    def begin_launch(self, plan: LaunchPlan, later: int) -> None:
        """A launch begins, before the last `later` of those planned."""
        if self.chain and self.chain[0].kind == "finish":
            self._leave()
        planned = self.launches[len(self.launches) - later :]
        self._begin([LaunchWork.of_plan(plan), *planned])

    def _begin(self, launches: Sequence[LaunchWork]) -> None:
        chain = all_parts(launches, self.tracked)
        own = len(parts(launches[0], self.tracked)) if launches else 0
        self.chain, self.later = chain[:own], chain[own:]  # this launch's current part and on; rest
        self._enter()

    def update(self, plan: LaunchPlan, at: RankStage) -> None:
        """Takes over what the ranks do now."""
        if not self.chain:
            return
        here = _place(plan, at, self.chain[0])
        places = [(part.kind, part.wave) for part in self.chain]
        if here in places and here != places[0]:
            self._leave()
            self.chain = self.chain[places.index(here) :]
            self._enter()
        elif here == places[0]:
            self._refine(plan, at)

    def outlook(self) -> Outlook:
        ahead = [*self.chain[1:], *self.later]
        return Outlook(
            part_ends=self.part_began + self.part_s,
            after_s=sum(part.expected_s * self._scale(part.kind) for part in ahead),
            late_at=GRACE_S
            + min(self.part_began + LATE * self.part_s, self.began + LATE * self.whole.expected_s),
        )

    def _enter(self) -> None:
        self.part_began, self.done = self.clock(), 0
        part = self.chain[0] if self.chain else None
        self.part_s = part.expected_s * self._scale(part.kind) if part else 0.0

    def _leave(self) -> None:
        part = self.chain[0]
        took_s, expected_s = self.took.get(part.kind, (0.0, 0.0))
        now = self.clock()
        self.took[part.kind] = (took_s + now - self.part_began, expected_s + part.expected_s)

    def _scale(self, kind: str) -> float:
        took_s, expected_s = self.took.get(kind, (0.0, 0.0))
        return (took_s + PRIOR_S) / (expected_s + PRIOR_S)

    def _refine(self, plan: LaunchPlan, at: RankStage) -> None:
        """The current part's duration, each time a cell is prepared or a round ends."""
        part, elapsed_s = self.chain[0], self.clock() - self.part_began
        wave = plan.waves[part.wave]
        if part.kind == "prepare":
            done = wave.index(at.cell) if at.cell in wave else 0
            if done > self.done:
                self.done, self.part_s = done, elapsed_s / done * len(wave)
        elif part.kind == "rounds":
            done = rounds_done(plan, at)
            if done > self.done:
                self.done = done
                expected_s = part.expected_s * self._scale("rounds")
                work = LaunchWork.of_plan(plan)
                self.part_s = elapsed_s + rounds_left_s(
                    work, len(wave), done, elapsed_s, expected_s
                )


def rounds_left_s(
    work: LaunchWork, cells: int, done: int, elapsed_s: float, expected_s: float
) -> float:
    """Time left for a wave's rounds and last anchors, `done` of which took `elapsed_s` with the
    anchors among them; `expected_s` was expected for all."""
    measure = work.measure
    least, most = measure.rounds_min, measure.rounds_max
    anchors_s = measure.anchors * work.block_s * (1 if done <= -(-least // 2) else 2)
    round_s = max(elapsed_s - anchors_s, elapsed_s / 2) / done
    block_s = max(work.block_s, round_s / (cells * measure.per_round * ROUND_BLOCKS))
    left_s = max(0, least - done) * round_s
    if measure.order == "random" and done < most:
        limit_s = max(expected_s - elapsed_s, round_s)  # the round that has begun is made
        left_s = max(left_s, min(limit_s, (most - done) * round_s))
    return left_s + measure.anchors * block_s


def _place(plan: LaunchPlan, at: RankStage, current: Part) -> tuple[str, int]:
    """Kind and wave of the part to which a stage belongs; a stage of no cell, between waves, to the
    current one."""
    wave = wave_of(plan, at)
    if wave is not None:
        return {"round": "rounds", "check": "finish"}.get(at.stage, "prepare"), wave
    if at.stage in STARTING:
        return "start", 0
    return ("calibrate", 0) if at.stage in CALIBRATING else (current.kind, current.wave)
