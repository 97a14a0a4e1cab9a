"""Measured cells as the fit wants them, out of the summarized frame."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from analysis.data.frame import plain
from analysis.predict import hardware
from analysis.predict.fit import Measured
from analysis.predict.hardware import HardwareModel
from moe.cost.load import dispatches
from moe.spec import PEER, Cell
from moe.strategies import degrees, rules_of
from runners.records import flat_row
from runners.records.stats import STEADY


def measured(cells: pd.DataFrame) -> list[Measured]:
    """Those with a time in steady state whose record has a calibration for their number of
    ranks."""
    steady = cells[cells["metric"] == STEADY]
    rows = [{str(k): v for k, v in row.items()} for row in steady.to_dict("records")]
    return [found for row in rows if (found := _one(row)) is not None]


def _one(row: Mapping[str, Any]) -> Measured | None:
    calibration = row["calibration"]
    if row["outcome"] != "measured" or not calibration or not row["median_ms"] > 0:
        return None
    cell = flat_row.cell_of(row)
    left_out = rules_of(cell.strategy.name).single_rank or cell.strategy.name.startswith(PEER)
    if cell.strategy.slowdown or left_out:
        return None
    calibrated = _machine(calibration, cell.placement.world_size)
    if calibrated is None:
        return None
    phases = {str(name): float(ms) / 1e3 for name, ms in (row["phase_ms"] or {}).items()}
    dense = str(row["kernel_ran"]) == "dense"
    median_s, skew = float(row["median_ms"]) / 1e3, skew_of(cell, row)
    return Measured(cell, calibrated, median_s, phases, skew, dense)


def _machine(calibration: Mapping[str, Any], ranks: int) -> HardwareModel | None:
    """None for a calibration that lacks something, or holds something else in its place."""
    try:
        return hardware.of_calibration(calibration, ranks)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def skew_of(cell: Cell, row: Mapping[str, Any]) -> float:
    """Slots of the busiest rank over the mean, where ranks hold different experts: else 1."""
    if degrees(cell).ep == 1 or not (dispatches(cell) or cell.strategy.name == "ep"):
        return 1.0
    found = row.get("skew_lambda")
    return float(found) if found is not None and math.isfinite(found) else 1.0


def machines(cells: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Calibrations by number of ranks."""
    by_ranks = {}
    for row in cells:
        calibration = row["calibration"]
        ranks = calibration.get("ranks") if calibration else None
        if isinstance(ranks, int) and ranks > 0 and _machine(calibration, ranks):
            by_ranks[ranks] = calibration
    return by_ranks


def memory_bytes(cells: Iterable[Mapping[str, Any]]) -> float:
    """Of the machine, for all its ranks; of several machines the smallest, infinite if unknown."""
    sizes = (plain(row["memory_total_bytes"]) for row in cells)
    return min((float(size) for size in sizes if size), default=math.inf)
