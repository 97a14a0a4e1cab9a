"""Measured cells as the fit takes them, and what records say of their machine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from analysis.data.cell_summary import CellSummary
from analysis.predict import emulated, hardware
from analysis.predict.fit import Measured
from analysis.predict.hardware import HardwareModel
from moe.cost.load import dispatches
from moe.spec import PEER
from moe.strategies import degrees, rules_of
from runners.records import emulation
from runners.records.emulation import Emulation
from runners.records.stats import STEADY


def measured(cells: Iterable[CellSummary]) -> list[Measured]:
    """Those with a time whose record has a calibration for their number of ranks, but for serial,
    peers and planted slow-downs. Times are in steady state; of emulated ranks, which an agreed time
    starts, also of blocks of a fixed length, if most of these cells have such."""
    usable = [(cell.metric, known) for cell in cells if (known := of_cell(cell)) is not None]
    most = Counter(metric for metric, _ in usable).most_common(1)
    return [known for metric, known in usable if metric == most[0][0]]


def of_cell(summary: CellSummary) -> Measured | None:
    """The cell for the fit; None for one that `measured` leaves out."""
    strategy = summary.cell.strategy
    left_out = (
        rules_of(strategy.name).single_rank or strategy.name.startswith(PEER) or strategy.slowdown
    )
    cluster = emulation.of_values(summary.emulation)
    if summary.metric != STEADY and not cluster:
        return None
    if not summary.measured or not summary.calibration or left_out:
        return None
    calibrated = machine_of(summary.calibration, summary.world_size, cluster)
    if calibrated is None:
        return None
    phases_s = {name: float(ms) / 1e3 for name, ms in summary.phase_ms.items()}
    dense = summary.kernel_ran == "dense"
    median_s, skew = summary.median_ms / 1e3, skew_of(summary)
    return Measured(summary.cell, calibrated, median_s, phases_s, skew, dense)


def machine_of(
    calibration: Mapping[str, Any], ranks: int, cluster: Emulation | None,
    memory_bytes: float = math.inf,
) -> HardwareModel | None:  # fmt: skip
    """The machine of this many ranks, of the emulated cluster where there is one; `memory_bytes` is
    of all ranks. None for a calibration in which a value is missing or of another type."""
    try:
        if cluster:
            return emulated.machine(cluster, calibration, memory_bytes / ranks)
        return hardware.of_calibration(calibration, ranks, memory_bytes)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def skew_of(summary: CellSummary) -> float:
    """Slots of the busiest rank over the mean, where ranks hold different experts: else 1."""
    cell, skew = summary.cell, summary.skew_lambda
    if degrees(cell).ep == 1 or not (dispatches(cell) or cell.strategy.name == "ep"):
        return 1.0
    return skew if skew is not None and math.isfinite(skew) else 1.0


def calibrations(cells: Iterable[CellSummary]) -> dict[int, Mapping[str, Any]]:
    """Calibrations by the number of ranks they were taken with; unusable ones are left out."""
    by_ranks: dict[int, Mapping[str, Any]] = {}
    for summary in cells:
        ranks = summary.calibration.get("ranks")
        cluster = emulation.of_values(summary.emulation)
        if isinstance(ranks, int) and ranks > 0 and machine_of(summary.calibration, ranks, cluster):
            by_ranks[ranks] = summary.calibration
    return by_ranks


def nearest(calibrated: Iterable[int], ranks: int) -> int:
    """The calibrated number of ranks whose rates count for `ranks` ranks."""
    return min(calibrated, key=lambda n: (abs(n - ranks), n))


def memory_bytes(cells: Iterable[CellSummary]) -> float:
    """Of the machine, for all its ranks; of several machines the smallest, infinite if unknown."""
    sizes = (summary.memory_total_bytes for summary in cells)
    return min((float(size) for size in sizes if size), default=math.inf)
