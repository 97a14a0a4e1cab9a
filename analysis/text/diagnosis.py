"""`check`: what limits the numbers and what to do next, in pyperf's manner."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from analysis.data.cell_summary import CellSummary, summaries
from analysis.data.series import series_names
from analysis.stats import straggler
from analysis.stats.verdict import MIN_LAUNCHES
from analysis.text import flag_legend
from runners.host import gpu_monitor

MIN_SAMPLES = 6
UNSTABLE = 0.10  # half-width of the interval, or spread of the samples, over the middle
SPREAD = 0.50  # how far the extremes may lie from the mean


@dataclass(frozen=True)
class Finding:
    """One problem, the cells that have it, and the remedy."""

    problem: str
    remedy: str
    cells: tuple[str, ...]

    def line(self) -> str:
        """Text: the problem, how many cells have it, some of them, and the remedy."""
        shown = ", ".join(self.cells[:4]) + (" ..." if len(self.cells) > 4 else "")
        count = f"{len(self.cells)} cell{'s' * (len(self.cells) != 1)}"
        return f"{self.problem}: {count} ({shown}); next: {self.remedy}"


def findings(frame: pd.DataFrame, cells: pd.DataFrame) -> list[Finding]:
    """What limits the numbers; empty where nothing does."""
    names = {s.cell_id: n for s, n in zip(summaries(cells), series_names(cells), strict=True)}
    touched: dict[tuple[str, str], list[str]] = {}
    for cell in summaries(cells):
        for problem, remedy in _of_cell(cell, frame):
            text = f"{names[cell.cell_id]} {cell.cell_id}"
            touched.setdefault((problem, remedy), []).append(text)
    return [Finding(problem, remedy, tuple(ids)) for (problem, remedy), ids in touched.items()]


def host_waits(frame: pd.DataFrame, cells: pd.DataFrame) -> list[str]:
    """One line on how often a step makes the host wait for the GPU, the most of each series' cells;
    none where no cell ran on a GPU."""
    most: dict[str, int] = {}
    for cell, name in zip(summaries(cells), series_names(cells), strict=True):
        for count in frame["host_waits_max"].iloc[cell.index].dropna():
            most[name] = max(most.get(name, 0), int(count))
    if not most:
        return []
    words = ", ".join(f"{name} {count}" for name, count in most.items())
    return [f"waits of the host for the GPU in a step, at most: {words}"]


def _of_cell(cell: CellSummary, frame: pd.DataFrame) -> list[tuple[str, str]]:
    """(problem, remedy) of everything that limits this cell's figures."""
    if cell.checked:
        return []
    if not cell.measured:
        return [(f"no time: {cell.outcome}", "see python -m analysis status")]
    attempts = frame.iloc[cell.index]
    attempts = attempts[attempts["median_duration_ms"].notna()]
    return [
        *_few(cell, attempts),
        *_unstable(cell, attempts),
        *_growing(attempts),
        *_throttled(attempts),
        *_straggling(cell, attempts),
        *_flagged(cell),
    ]


def _few(cell: CellSummary, attempts: pd.DataFrame) -> list[tuple[str, str]]:
    problems = []
    if attempts["num_samples"].min() < MIN_SAMPLES:
        problems.append((f"fewer than {MIN_SAMPLES} samples", "raise measure.samples"))
    if attempts["median_low_ms"].isna().any():
        problems.append(("too few rounds for an interval", "raise measure.samples to 6 or more"))
    if cell.launches < MIN_LAUNCHES:
        words = "one launch" if cell.launches == 1 else f"only {cell.launches} launches"
        remedy = f"measure.launches={MIN_LAUNCHES}, so that verdicts hold beyond this launch"
        problems.append((words, remedy))
    return problems


def _unstable(cell: CellSummary, attempts: pd.DataFrame) -> list[tuple[str, str]]:
    problems = []
    half = (cell.high_ms - cell.low_ms) / 2 / cell.median_ms
    if math.isfinite(half) and half > UNSTABLE:
        problems.append((
            f"unstable: the interval is wider than {UNSTABLE:.0%} each way",
            "raise measure.samples_max and measure.wall_limit_s, or quieten the machine",
        ))  # fmt: skip
    spread = attempts["std_duration_ms"] / attempts["avg_duration_ms"]
    far = (attempts["max_duration_ms"] / attempts["avg_duration_ms"] - 1) > SPREAD
    if (spread > UNSTABLE).any() or far.any():
        problems.append((
            "scattered samples: standard deviation over 10%, or an extreme 50% off the mean",
            "look at python -m analysis plot --name traces; prefer the median to the average",
        ))  # fmt: skip
    return problems


def _growing(attempts: pd.DataFrame) -> list[tuple[str, str]]:
    """How much of a block's start may be in the time, where short and long blocks disagree."""
    grown = attempts[[("start_grows" in flags) for flags in attempts["flags"]]]
    if grown.empty:
        return []
    low, high = grown["start_growth_low"].min(), grown["start_growth_high"].max()
    problem = f"the start of a block may still be {low:.0%} to {high:.0%} of the time of a step"
    return [(problem, flag_legend.MARKS["start_grows"].remedy)]


def _throttled(attempts: pd.DataFrame) -> list[tuple[str, str]]:
    """Why GPUs were throttled in the waves of these attempts."""
    reasons = {reason: None for facts in attempts["environment"]
               for reason in gpu_monitor.throttling(facts or {})}  # fmt: skip
    if not reasons:
        return []
    mark = flag_legend.MARKS["throttled"]
    return [(f"{mark.about}: {', '.join(reasons)}", mark.remedy)]


def _straggling(cell: CellSummary, attempts: pd.DataFrame) -> list[tuple[str, str]]:
    """The rank that all attempts find to be slow. Not looked for where ranks share cores: a rank
    that waits for a core looks slow."""
    if "oversubscribed" in cell.flags:
        return []
    stragglers = [straggler.find(ranks) for ranks in attempts["phase_per_rank_ms"]]
    ranks = {one.rank if one else None for one in stragglers}
    if len(ranks) != 1 or not (first := stragglers[0]):
        return []
    about = f"rank {first.rank} is busy for longer than the others, most in {first.phase}"
    return [
        (f"straggler: {about}", "look at that rank's core, clock and share of the tokens (skew)")
    ]


def _flagged(cell: CellSummary) -> list[tuple[str, str]]:
    unknown = flag_legend.Mark("", "", "see docs/analysis.md")
    explained = ("start_grows", "throttled")  # above, with how much, and why
    flags = [flag for flag in cell.flags if flag not in explained]
    marks = [(flag, flag_legend.MARKS.get(flag, unknown)) for flag in flags]
    return [(mark.about or flag, mark.remedy) for flag, mark in marks]
