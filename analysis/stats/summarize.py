"""Attempts of one cell put together; `basis` says what the cell's intervals cover."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pandas as pd

from analysis.data.cell_summary import CellSummary, cells_frame, of_attempt
from analysis.data.frame import plain
from analysis.stats.verdict import MIN_LAUNCHES, factor, logs, paired_interval, t_quantile
from runners.records import stats
from runners.records.stats import CONFIDENCE

NO_TIME = (
    "noise hides the step: its median is not above zero; use longer blocks "
    "(measure.block_ms) or a quieter machine"
)
# Worst first: a cell that was wrong once has no time anywhere.
SEVERITY = ("wrong", "measured", "checked", "failed", "interrupted")
LATENCY = ("latency_ms", "latency_low_ms", "latency_high_ms", "start_ms")
USED = (
    *("median_duration_ms", "median_low_ms", "median_high_ms", "avg_duration_ms"),
    *("std_duration_ms", "num_samples", "num_rounds", "batch_size"),
    *LATENCY,
)


def summarize(frame: pd.DataFrame) -> pd.DataFrame:
    """The attempts of `analysis.load` put together: `cells_frame` of one summary per cell, host and
    metric. Its figures are over the launches that were measured; flags are those of all of them.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    names = zip(frame["cell_id"], frame["host"], frame["metric"], strict=True)
    for position, name in enumerate(names):
        groups.setdefault(tuple(map(str, name)), []).append(position)
    return cells_frame(_summary(frame.iloc[group], group) for group in groups.values())


def _summary(attempts: pd.DataFrame, positions: list[int]) -> CellSummary:
    """Details are the newest attempt's: they do not differ, or the newest will do."""
    outcomes = [str(o) for o in attempts["outcome"]]
    outcome = min(outcomes, key=lambda o: SEVERITY.index(o) if o in SEVERITY else 99)
    timed = attempts[attempts["median_duration_ms"].notna()]
    measured = timed[timed["median_duration_ms"] > 0]
    if outcome == "measured" and measured.empty:
        # Without a time: the gate has not agreed, or noise hides the step.
        outcome = "wrong" if timed.empty else "failed"
    used = measured if outcome == "measured" else attempts
    newest = {str(name): plain(value) for name, value in used.iloc[-1].items()}
    flags = list(dict.fromkeys(flag for row in used["flags"] for flag in row))
    if outcome == "measured" and len(measured) < len(attempts):
        flags.append("some_attempts_failed")
    return of_attempt(newest, {
        "outcome": outcome,
        **({"error_message": NO_TIME} if outcome == "failed" and not timed.empty else {}),
        "attempts": [str(a) for a in attempts["attempt_id"]],
        "sweeps": list(dict.fromkeys(str(s) for s in attempts["sweep"])),
        "launches": len(measured) if outcome == "measured" else 0,
        "flags": flags,
        "index": positions,
        **_figures(measured if outcome == "measured" else measured.iloc[:0]),
    })  # fmt: skip


def _figures(measured: pd.DataFrame) -> dict[str, Any]:
    """Fields of CellSummary: median and mean with intervals, and what the intervals cover."""
    if measured.empty:
        return dict.fromkeys(LATENCY, math.nan)
    attempts = [
        {str(k): v for k, v in row.items()} for row in measured[list(USED)].to_dict("records")
    ]
    figures = _one_launch(attempts[0]) if len(attempts) == 1 else _many_launches(attempts)
    batch = int(attempts[0]["batch_size"])
    return {
        **figures,
        **_latency(attempts),
        "throughput": _over(batch, figures["mean_ms"] / 1000),
        "throughput_low": _over(batch, figures["mean_high_ms"] / 1000),
        "throughput_high": _over(batch, figures["mean_low_ms"] / 1000),
        "rounds": sum(int(a["num_rounds"]) for a in attempts),
    }


def _latency(attempts: list[dict[str, Any]]) -> dict[str, float]:
    """Latency and start in ms: of one launch with its interval; of several launches the median, and
    the span of all intervals."""
    known = [[plain(a[name]) for a in attempts] for name in LATENCY]
    middle, low, high, start = ([v for v in values if v is not None] for values in known)
    return {
        "latency_ms": statistics.median(middle) if middle else math.nan,
        "latency_low_ms": min([*low, *middle]) if low else math.nan,
        "latency_high_ms": max([*high, *middle]) if high else math.nan,
        "start_ms": statistics.median(start) if start else math.nan,
    }


def _over(batch: int, seconds: float) -> float:
    """Tokens per second; nan where few scattered samples give a mean's interval down to zero."""
    return batch / seconds if not seconds <= 0 else math.nan


def _one_launch(attempt: dict[str, Any]) -> dict[str, Any]:
    """Order statistics for the median; for the mean Student's t over the samples."""
    mean, deviation, count = (
        plain(attempt[n]) for n in ("avg_duration_ms", "std_duration_ms", "num_samples")
    )
    half = math.nan
    if mean <= 0:  # few scattered samples: no average, though there is a median
        mean = math.nan
    if deviation is not None and count > 1:
        half = t_quantile((1 + CONFIDENCE) / 2, count - 1) * deviation / math.sqrt(count)
    return {
        "median_ms": float(attempt["median_duration_ms"]),
        "low_ms": float(attempt["median_low_ms"]),
        "high_ms": float(attempt["median_high_ms"]),
        "mean_ms": float(mean),
        "mean_low_ms": stats.duration_low(mean - half),
        "mean_high_ms": mean + half,
        "basis": "one launch",
    }


def _many_launches(attempts: list[dict[str, Any]]) -> dict[str, Any]:
    """From MIN_LAUNCHES on Student's t on the logarithms of their medians; else their span."""
    values: dict[str, float] = {}
    names = (("median", "median_duration_ms"), ("mean", "avg_duration_ms"))
    for short, name in names:
        each = [float(a[name]) for a in attempts if a[name] > 0]
        prefix = "" if short == "median" else "mean_"
        if not each:
            center = low = high = math.nan
        elif len(each) >= MIN_LAUNCHES:
            estimate = paired_interval(logs(each), CONFIDENCE)
            assert estimate is not None
            ends = (estimate.center, estimate.low, estimate.high)
            center, low, high = (factor(x) for x in ends)
        else:
            center, low, high = statistics.median(each), *_span(attempts, each, short)
        values |= {f"{short}_ms": center, f"{prefix}low_ms": low, f"{prefix}high_ms": high}
    basis = "launches" if len(attempts) >= MIN_LAUNCHES else f"span of {len(attempts)} launches"
    return {**values, "basis": basis}


def _span(attempts: list[dict[str, Any]], each: list[float], short: str) -> tuple[float, float]:
    if short == "mean":
        return min(each), max(each)
    lows = [plain(a["median_low_ms"]) for a in attempts]
    highs = [plain(a["median_high_ms"]) for a in attempts]
    known_low, known_high = ([v for v in ends if v is not None] for ends in (lows, highs))
    return min([*each, *known_low]), max([*each, *known_high])
