"""From the frame to comparisons: which launches and rounds of two cells belong together."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

import pandas as pd

from analysis.data.cell_summary import CellSummary
from analysis.stats import verdict
from analysis.stats.verdict import MIN_LAUNCHES, NOISE_THRESHOLD, Verdict
from runners.records.stats import CONFIDENCE

COLUMNS = ["host", "sweep", "launch", "wave", "median_duration_ms", "round_numbers",
           "round_medians_ms"]  # fmt: skip
Unit = tuple[str, str, int]  # host, sweep, launch


class Series:
    """Measured attempts of one cell by launch. Rounds and launches without a time above
    zero, in which noise hid the step, are left out."""

    def __init__(self, attempts: pd.DataFrame) -> None:
        self.medians: dict[Unit, float] = {}
        self.rounds: dict[Unit, dict[tuple[int, int], float]] = {}
        for row in attempts[COLUMNS].itertuples():
            median = float(row.median_duration_ms)  # type: ignore[arg-type]
            if not median > 0:  # or nan
                continue
            unit = (str(row.host), str(row.sweep), int(row.launch))  # type: ignore[arg-type]
            numbers: Iterable[Any] = row.round_numbers  # type: ignore[assignment]
            values: Iterable[Any] = row.round_medians_ms  # type: ignore[assignment]
            keys = [(int(row.wave), int(n)) for n in numbers]  # type: ignore[arg-type]
            self.medians[unit] = median
            self.rounds[unit] = {
                key: value for key, value in zip(keys, values, strict=True) if value > 0
            }

    def all_rounds(self) -> list[float]:
        """Times of all rounds of all launches."""
        return [value for rounds in self.rounds.values() for value in rounds.values()]


def series(frame: pd.DataFrame, summary: CellSummary) -> Series:
    """The attempts behind a cell; none where it was not measured."""
    return Series(frame.iloc[summary.index if summary.measured else []])


def compare(
    a: Series,
    b: Series,
    *,
    comparisons: int = 1,
    threshold: float = NOISE_THRESHOLD,
    confidence: float = CONFIDENCE,
) -> Verdict | None:
    """A against B on the best data both have: launches before rounds, paired before unpaired."""
    for x, y, paired, basis, count in _candidates(a, b):
        result = verdict.compare(
            x, y, paired=paired, basis=basis, launches=count, comparisons=comparisons,
            threshold=threshold, confidence=confidence,
        )  # fmt: skip
        if result is not None:
            return result
    return None


def _candidates(a: Series, b: Series) -> Iterable[tuple[list[float], list[float], bool, str, int]]:
    shared = [unit for unit in a.medians if unit in b.medians]
    if len(shared) >= MIN_LAUNCHES:
        ratios = [_ratio(a, b, unit) for unit in shared]
        yield ratios, [1.0] * len(ratios), True, "launches", len(ratios)
    if min(len(a.medians), len(b.medians)) >= MIN_LAUNCHES:
        fewest = min(len(a.medians), len(b.medians))
        yield list(a.medians.values()), list(b.medians.values()), False, "launches", fewest
    both = [
        (unit, number) for unit in shared for number in a.rounds[unit] if number in b.rounds[unit]
    ]
    if len(both) > 1:
        x = [a.rounds[u][n] for u, n in both]
        y = [b.rounds[u][n] for u, n in both]
        yield x, y, True, "rounds", len({unit for unit, _ in both})
    launches = len(set(a.medians) | set(b.medians))
    yield a.all_rounds(), b.all_rounds(), False, "rounds", launches


def _ratio(a: Series, b: Series, unit: Unit) -> float:
    """A over B in one launch: the median of the ratios in shared rounds, where a disturbance hits
    both; without shared rounds the ratio of the medians."""
    both = [number for number in a.rounds[unit] if number in b.rounds[unit]]
    if not both:
        return a.medians[unit] / b.medians[unit]
    return statistics.median(a.rounds[unit][n] / b.rounds[unit][n] for n in both)
