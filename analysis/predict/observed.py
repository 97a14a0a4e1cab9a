"""Measured cells as the fit takes them, and what records say of their machine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from analysis.data.cell_summary import CellSummary
from analysis.predict import hardware
from analysis.predict.fit import Measured
from analysis.predict.hardware import HardwareModel
from moe.cost.load import dispatches
from moe.spec import PEER
from moe.strategies import degrees, rules_of
from runners.records.stats import STEADY


def measured(cells: Iterable[CellSummary]) -> list[Measured]:
    """Those with a time in steady state whose record has a calibration for their number of ranks,
    but for serial, peers and planted slow-downs."""
    return [known for cell in cells if (known := of_cell(cell)) is not None]


def of_cell(summary: CellSummary) -> Measured | None:
    """The cell for the fit; None for one that `measured` leaves out."""
    strategy = summary.cell.strategy
    left_out = (
        rules_of(strategy.name).single_rank or strategy.name.startswith(PEER) or strategy.slowdown
    )
    if summary.metric != STEADY or not summary.measured or not summary.calibration or left_out:
        return None
    calibrated = machine(summary.calibration, summary.world_size)
    if calibrated is None:
        return None
    phases_s = {name: float(ms) / 1e3 for name, ms in summary.phase_ms.items()}
    dense = summary.kernel_ran == "dense"
    median_s, skew = summary.median_ms / 1e3, skew_of(summary)
    return Measured(summary.cell, calibrated, median_s, phases_s, skew, dense)


def machine(calibration: Mapping[str, Any], ranks: int) -> HardwareModel | None:
    """None for a calibration in which a value is missing or of another type."""
    try:
        return hardware.of_calibration(calibration, ranks)
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
        if isinstance(ranks, int) and ranks > 0 and machine(summary.calibration, ranks):
            by_ranks[ranks] = summary.calibration
    return by_ranks


def memory_bytes(cells: Iterable[CellSummary]) -> float:
    """Of the machine, for all its ranks; of several machines the smallest, infinite if unknown."""
    sizes = (summary.memory_total_bytes for summary in cells)
    return min((float(size) for size in sizes if size), default=math.inf)
