"""`check`: what limits the numbers and what to do next, in pyperf's manner."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.data.facets import series_names
from analysis.stats import straggler
from analysis.stats.verdict import MIN_LAUNCHES
from analysis.text import flag_legend

MIN_SAMPLES = 6
UNSTABLE = 0.10  # half-width of the interval, or spread of the samples, over the middle
SPREAD = 0.50  # how far the extremes may lie from the mean


@dataclass(frozen=True)
class Finding:
    """One kind of trouble, the cells it touches, and the remedy."""

    problem: str
    remedy: str
    cells: tuple[str, ...]

    def line(self) -> str:
        shown = ", ".join(self.cells[:4]) + (" ..." if len(self.cells) > 4 else "")
        return f"{self.problem}: {len(self.cells)} cells ({shown}); next: {self.remedy}"


def findings(frame: pd.DataFrame, cells: pd.DataFrame) -> list[Finding]:
    """Nothing where the numbers may be used as they are."""
    names = dict(zip(cells["cell_id"], series_names(cells), strict=True))
    found: dict[tuple[str, str], list[str]] = {}
    for _, cell in cells.iterrows():
        for problem, remedy in _of_cell(cell, frame):
            text = f"{names[cell['cell_id']]} {cell['cell_id']}"
            found.setdefault((problem, remedy), []).append(text)
    return [Finding(problem, remedy, tuple(ids)) for (problem, remedy), ids in found.items()]


def _of_cell(cell: pd.Series[Any], frame: pd.DataFrame) -> list[tuple[str, str]]:
    if cell["outcome"] != "measured":
        return [(f"no time: {cell['outcome']}", "see python -m analysis status")]
    attempts = frame.iloc[cell["index"]]
    attempts = attempts[attempts["median_duration_ms"].notna()]
    return [
        *_few(cell, attempts),
        *_unstable(cell, attempts),
        *_growing(attempts),
        *_straggling(cell, attempts),
        *_flagged(cell),
    ]


def _few(cell: pd.Series[Any], attempts: pd.DataFrame) -> list[tuple[str, str]]:
    found = []
    if attempts["num_samples"].min() < MIN_SAMPLES:
        found.append((f"fewer than {MIN_SAMPLES} samples", "raise measure.samples"))
    if attempts["median_low_ms"].isna().any():
        found.append(("too few rounds for an interval", "raise measure.samples to 6 or more"))
    if cell["launches"] < MIN_LAUNCHES:
        words = "one launch" if cell["launches"] == 1 else f"only {cell['launches']} launches"
        remedy = f"measure.launches={MIN_LAUNCHES}, so that verdicts hold beyond this launch"
        found.append((words, remedy))
    return found


def _unstable(cell: pd.Series[Any], attempts: pd.DataFrame) -> list[tuple[str, str]]:
    found = []
    half = (cell["high_ms"] - cell["low_ms"]) / 2 / cell["median_ms"]
    if math.isfinite(half) and half > UNSTABLE:
        found.append((
            f"unstable: the interval is wider than {UNSTABLE:.0%} each way",
            "raise measure.samples_max and measure.wall_limit_s, or quieten the machine",
        ))  # fmt: skip
    spread = attempts["std_duration_ms"] / attempts["avg_duration_ms"]
    far = (attempts["max_duration_ms"] / attempts["avg_duration_ms"] - 1) > SPREAD
    if (spread > UNSTABLE).any() or far.any():
        found.append((
            "scattered samples: standard deviation over 10%, or an extreme 50% off the mean",
            "look at python -m analysis plot --name traces; prefer the median to the average",
        ))  # fmt: skip
    return found


def _growing(attempts: pd.DataFrame) -> list[tuple[str, str]]:
    """Short and long block still disagree: how much of the start the time may hold."""
    grown = attempts[[("start_grows" in flags) for flags in attempts["flags"]]]
    if grown.empty:
        return []
    low, high = grown["start_growth_low"].min(), grown["start_growth_high"].max()
    said = f"the start of a block may still be {low:.0%} to {high:.0%} of the time of a step"
    return [(said, flag_legend.MARKS["start_grows"].remedy)]


def _straggling(cell: pd.Series[Any], attempts: pd.DataFrame) -> list[tuple[str, str]]:
    """Only where every rank has a core: else whoever has none at the moment is the straggler."""
    if "oversubscribed" in cell["flags"]:
        return []
    found = [straggler.find(ranks) for ranks in attempts["phase_per_rank_ms"]]
    ranks = {one.rank if one else None for one in found}
    if len(ranks) != 1 or not (first := found[0]):
        return []
    told = f"straggler: rank {first.rank} is busy for longer than the others, most in {first.phase}"
    return [(told, "look at that rank's core, clock and share of the tokens (skew)")]


def _flagged(cell: pd.Series[Any]) -> list[tuple[str, str]]:
    unknown = flag_legend.Mark("", "", "see docs/analysis.md")
    flags = [flag for flag in cell["flags"] if flag != "start_grows"]  # told with its size
    found = [(flag, flag_legend.MARKS.get(flag, unknown)) for flag in flags]
    return [(mark.about or flag, mark.remedy) for flag, mark in found]
