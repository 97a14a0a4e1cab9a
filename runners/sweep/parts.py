"""How long the parts of a launch take, computed from the settings of its measurement. Torch-free.

A launch is a chain of parts: start, calibrate, and for each wave prepare, rounds, finish. Each has
an expected and a largest duration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from moe.spec import RankLayout
from runners.plan import LaunchPlan, Measure

START_S = 3.0  # from starting the ranks to their first stage
START_MOST_S = 30.0
SETTLE_S = 2.0  # after a calibration, at most
PREPARE_S = 0.2  # a cell: build, choice of a kernel, check against the reference, phases
PREPARE_MOST_S = 10.0
SIZING_BLOCKS = 2.0  # long blocks that finding the length of blocks takes, for each cell
ROUND_BLOCKS = 1.25  # long blocks in one sample of a cell: the long one and the short one
FIXED_STEP_S = 0.005  # a step, where the number of steps in a block is given, not its time
FINISH_S = 0.1  # a cell: check on other tokens, record
FINISH_MOST_S = 2.0
TRACKER_S = 3.0  # start of the process that writes a wave's W&B runs
TRACKED_S = 0.3  # and one of its runs


@dataclass(frozen=True)
class LaunchWork:
    """What the duration of a launch depends on."""

    measure: Measure
    placement: RankLayout
    wave_cells: tuple[int, ...]  # number of cells, by wave
    calibrates: bool

    @classmethod
    def of_plan(cls, plan: LaunchPlan) -> LaunchWork:
        cells = tuple(map(len, plan.waves))
        return cls(plan.measure, plan.placement, cells, plan.calibrate)

    @property
    def block_s(self) -> float:
        """Duration of a long block."""
        measure, place = self.measure, self.placement
        if measure.block:
            return measure.block * FIXED_STEP_S
        ranks_sleep = place.backend == "gloo" and place.world_size > 1
        return max(measure.block_ms, measure.block_gloo_ms if ranks_sleep else 0.0) / 1e3


class Part(NamedTuple):
    """A part of a launch."""

    kind: str  # start, calibrate, prepare, rounds or finish
    wave: int
    expected_s: float
    most_s: float


def parts(work: LaunchWork, tracked: bool) -> list[Part]:
    """The parts of a launch in order; `tracked` where W&B runs are written."""
    chain = [Part("start", 0, START_S, START_MOST_S)]
    if work.calibrates:
        limit_s = work.measure.calibration_limit_s
        chain.append(Part("calibrate", 0, limit_s, limit_s + SETTLE_S))
    for wave, cells in enumerate(work.wave_cells):
        chain += [
            _prepare(work, wave, cells),
            _rounds(work, wave, cells),
            _finish(wave, cells, tracked),
        ]
    return chain


def _prepare(work: LaunchWork, wave: int, cells: int) -> Part:
    measure, sample_s = work.measure, work.block_s / 4
    expected_s = PREPARE_S + SIZING_BLOCKS * work.block_s + measure.warmup * sample_s
    most_s = PREPARE_MOST_S + max(measure.warmup, measure.warmup_max) * sample_s
    return Part("prepare", wave, cells * expected_s, cells * most_s)


def _rounds(work: LaunchWork, wave: int, cells: int) -> Part:
    """A wave without a fixed number of rounds seldom gets precise before its wall limit."""
    measure, round_s = work.measure, _round_s(work, cells)
    least_s, limit_s = measure.rounds_min * round_s, cells * measure.wall_limit_s
    expected_s = least_s
    if measure.order == "random":
        expected_s = min(max(least_s, limit_s), measure.rounds_max * round_s)
    anchors_s = 3 * measure.anchors * work.block_s
    most_s = max(limit_s, 2 * least_s) + round_s + 2 * anchors_s
    return Part("rounds", wave, expected_s + anchors_s, most_s)


def _round_s(work: LaunchWork, cells: int) -> float:
    return cells * work.measure.per_round * ROUND_BLOCKS * work.block_s


def _finish(wave: int, cells: int, tracked: bool) -> Part:
    tracker_s = TRACKER_S + cells * TRACKED_S if tracked else 0.0
    return Part("finish", wave, cells * FINISH_S + tracker_s, cells * FINISH_MOST_S + 4 * tracker_s)


def all_parts(launches: Sequence[LaunchWork], tracked: bool) -> list[Part]:
    """The parts of several launches. The last one ends with its records: their W&B runs are written
    while tables are made."""
    chain = [part for work in launches for part in parts(work, tracked)]
    if chain:
        chain[-1] = _finish(chain[-1].wave, launches[-1].wave_cells[-1], tracked=False)
    return chain
