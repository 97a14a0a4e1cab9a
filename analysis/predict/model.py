"""A cell's predicted time: phases, total, interval, and its distance from the measured cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from analysis import numbers
from analysis.predict import features, roofline
from analysis.predict.features import Key
from analysis.predict.hardware import HardwareModel
from moe import cost
from moe.cost.whole_memory import MemoryUse
from moe.spec import Cell

MEMORY_SHARE = 0.9  # of a rank's memory that the layer may take
UNFITTED_FACTOR = 2.0  # interval of a prediction from data sheets alone: divided and multiplied by
WIDER_PER_DOUBLING = 1.15  # interval's growth per doubling beyond what was measured
TIMES_AS_LONG = 2.0  # from which a ratio is not given in percent
LEAST_SHOWN = 0.005  # of a time; less is no difference
DENSE = "dense"  # the kernel that computes all experts on all tokens
FITTED, MEASURED_HERE = "fitted", "measured here"  # instead of a profile
MEASURED, INTERPOLATED, EXTRAPOLATED = "measured", "interpolated", "extrapolated"


@dataclass(frozen=True)
class Coefficients:
    """By (phase, term), else by ("", term); `spread` is the interval's factor around the estimate.

    `ranges` are the axes' values that were fitted: {axis: (low, high)}, `seen` the strategies.
    """

    values: Mapping[Key, float]
    spread: float = UNFITTED_FACTOR
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    seen: frozenset[tuple[str, str]] = frozenset()
    cells: int = 0
    error: float = math.nan  # median absolute relative error of cells left out while fitting
    roofline: bool = False  # times by `roofline.phases_s`; else sums

    def of(self, key: Key) -> float:
        """The coefficient of (phase, term), else of the term in every phase, else 0."""
        return self.values.get(key, self.values.get(("", key[1]), 0.0))


@dataclass(frozen=True)
class Prediction:
    """Times in ms; `reason` names the axes on which the cell lies outside of the fitted cells."""

    cell: Cell
    skew: float
    phases_ms: dict[str, float]
    total_ms: float
    low_ms: float
    high_ms: float
    memory: MemoryUse
    status: str
    reason: str = ""
    software: str = FITTED  # the profile, or where the time is from instead

    @property
    def memory_bytes(self) -> float:
        """Of a rank."""
        return self.memory.total

    @property
    def fits(self) -> bool:
        return self.memory.fits


def longer(ratio: float) -> str:
    """What a ratio of times means: "50% longer", "as long", "12.5 times as long"."""
    if ratio >= TIMES_AS_LONG:
        return f"{numbers.short(ratio)} times as long"
    return f"{ratio - 1:.0%} longer" if ratio >= 1 + LEAST_SHOWN else "as long"


def of_machine(machine: HardwareModel) -> Coefficients:
    """Coefficients of the cluster's software profile (`hardware.with_profile`)."""
    return Coefficients(roofline.coefficients(machine), roofline=True)


def phases_s(terms: Mapping[Key, float], coefficients: Coefficients) -> dict[str, float]:
    """Seconds of every phase; `terms` are those of `features.terms`."""
    if coefficients.roofline:
        return roofline.phases_s({key: coefficients.of(key) * v for key, v in terms.items()})
    times: dict[str, float] = {}
    for key, value in terms.items():
        times[key[0]] = times.get(key[0], 0.0) + coefficients.of(key) * value
    return times


def overlapped_s(phases: Mapping[str, float], chunks: int) -> float:
    """Dispatch, experts and combine of `chunks` pieces in a pipeline: the first piece passes all
    three, then the slowest of them sets the pace."""
    stages = [phases.get(name, 0.0) for name in ("dispatch", "experts", "combine")]
    others = sum(phases.values()) - sum(stages)
    return others + sum(stages) / chunks + max(stages) * (chunks - 1) / chunks


def kernels(cell: Cell, machine: HardwareModel) -> tuple[str, ...]:
    """The kernels among which the fastest counts: the cell's own, or those that `auto` may choose.
    Without a profile those that are not dense are alike; a profile has the cell's or its own."""
    asked = cell.strategy.kernel
    known = (DENSE, "") if machine.profile is None else tuple(machine.profile.kernels)
    if asked == "auto":
        return known
    return (asked,) if asked in known else tuple(name for name in known if name != DENSE)


def time_s(
    cell: Cell, machine: HardwareModel, coefficients: Coefficients, skew: float = 1.0
) -> tuple[dict[str, float], float]:
    """(seconds by phase, total seconds) with the kernel that is predicted to be faster."""
    best: tuple[dict[str, float], float] | None = None
    for kernel in kernels(cell, machine):
        step = features.busiest(cell, skew, kernel == DENSE, kernel)
        phases = phases_s(features.terms(step, machine), coefficients)
        total = overlapped_s(phases, cell.strategy.overlap)
        if best is None or total < best[1]:
            best = phases, total
    assert best is not None
    return best


def predict(
    cell: Cell, machine: HardwareModel, coefficients: Coefficients, skew: float = 1.0
) -> Prediction:
    """The cell's time by the model, with the interval widened beyond the fitted cells."""
    phases, total = time_s(cell, machine, coefficients, skew)
    outside, doublings = beyond(cell, coefficients, skew)
    factor = coefficients.spread * WIDER_PER_DOUBLING**doublings
    step = features.busiest(cell, skew)
    memory = MemoryUse(
        {"layer": cost.peak_bytes(cell, step.load, 0)}, MEMORY_SHARE * machine.memory_bytes
    )
    return Prediction(
        cell, step.skew, {name: 1e3 * value for name, value in phases.items()}, 1e3 * total,
        1e3 * total / factor, 1e3 * total * factor, memory,
        EXTRAPOLATED if outside else INTERPOLATED, "; ".join(outside),
        machine.profile.name if machine.profile else FITTED,
    )  # fmt: skip


def axes(cell: Cell, skew: float = 1.0) -> dict[str, float]:
    """The axes by which a cell lies inside or outside of the fitted cells."""
    layer = cell.layer
    return {
        "world_size": cell.placement.world_size,
        "batch_size": cell.workload.batch_size,
        "topk": layer.topk,
        "num_experts": layer.num_experts,
        "dim": layer.dim,
        "hidden": layer.hidden,
        "skew": round(skew, 2),
    }


def beyond(cell: Cell, coefficients: Coefficients, skew: float) -> tuple[list[str], float]:
    """Texts of the axes outside of the fitted cells, and the sum of the doublings beyond them."""
    if not coefficients.cells:
        return ["no records of this cluster"], 0.0
    outside, doublings = [], 0.0
    for axis, value in axes(cell, skew).items():
        low, high = coefficients.ranges[axis]
        if low <= value <= high:
            continue
        edge = low if value < low else high
        doublings += abs(math.log2(value / edge))
        outside.append(f"{axis} {value:g} (measured {low:g} to {high:g})")
    kind = (cell.strategy.name, cell.strategy.dispatcher)
    if kind not in coefficients.seen:
        doublings += 1
        outside.append(f"{'/'.join(kind)} not measured")
    return outside, doublings
