"""What a launch is doing, in words. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from runners.plan import LaunchPlan, Measure
from runners.sweep.titles import title

STARTING = ("start", "environment")  # stages
CALIBRATING = ("calibrate", "settle")


@dataclass(frozen=True)
class RankStage:
    """What rank 0's lines said last; `rounds` and `medians_ms` are of `wave`."""

    cell: int = -1
    stage: str = "start"
    wave: int = 0
    rounds: int = 0  # done
    medians_ms: Mapping[int, float] = field(default_factory=dict)  # of the rounds so far, by cell


def wave_of(plan: LaunchPlan, at: RankStage) -> int | None:
    """The wave that is being prepared, timed or checked; None where the stage is of no cell."""
    return next((n for n, wave in enumerate(plan.waves) if at.cell in wave), None)


def rounds_done(plan: LaunchPlan, at: RankStage) -> int:
    """Rounds of the current wave; what the lines said last may be of the wave before."""
    return at.rounds if at.wave == wave_of(plan, at) else 0


def activity(plan: LaunchPlan, at: RankStage) -> str:
    """What the ranks are doing now."""
    place = plan.placement
    ranks = f"{place.world_size} rank{'s' if place.world_size > 1 else ''}"
    name = title(plan.cells[at.cell], plan.labels[at.cell]) if at.cell >= 0 else ""
    if at.stage in STARTING:
        return f"starting {ranks} on {place.backend}"
    if at.stage == "calibrate":
        limit_s = plan.measure.calibration_limit_s
        return f"calibrating, once for {ranks} on {place.backend}, at most {limit_s:g} s"
    if at.stage == "round":
        return _with_wave(plan, at, round_text(plan.measure, rounds_done(plan, at)))
    return {
        "settle": "waiting for steady times",
        "floor": "timing the empty block",
        "gate": f"checking the output of {name}",
        "warm-up": f"warming up {name}",
        "phases": f"timing the parts of {name}",
        "check": f"checking {name} again, on other tokens",
    }.get(at.stage, f"{at.stage} {name}".strip())


def round_text(measure: Measure, done: int) -> str:
    """The round that runs after `done` rounds, and how many there will be."""
    least, most = measure.rounds_min, measure.rounds_max
    if measure.order == "product":
        most = least
    number = min(done + 1, most)
    if least == most:
        return f"round {number} of {least}"
    at_least = f", at least {least}" if number < least else ""
    return f"round {number}{at_least}, at most {most}"


def _with_wave(plan: LaunchPlan, at: RankStage, text: str) -> str:
    wave = wave_of(plan, at)
    several = len(plan.waves) > 1 and wave is not None
    return f"{text}, wave {(wave or 0) + 1} of {len(plan.waves)}" if several else text
