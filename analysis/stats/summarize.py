"""Attempts of one cell put together: one row per cell, whose interval says what it covers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.data.frame import hashable, plain
from analysis.data.schema import CONFIG
from analysis.stats.verdict import MIN_LAUNCHES, factor, logs, paired_interval, t_quantile
from runners.records import stats
from runners.records.stats import CONFIDENCE

COPIED = (
    *(*CONFIG, "metric", "key", "label", "model"),
    *("host", "cpu_model", "gpu_model", "cores", "memory_total_bytes"),
)
# Details that do not differ between attempts of one cell, or of which the newest will do.
DETAILS = (
    *("kernel_ran", "skew_lambda", "expert_skew_lambda", "rank_slots", "expert_slots"),
    *(
        "phase_ms",
        "phase_total_ms",
        "phase_per_rank_ms",
        "traffic",
        "sent_bytes_max",
        "busbw_bytes_max",
    ),
    *("sent_bytes_total", "sent_bytes_by_collective", "peak_bytes_max", "weights_bytes_max"),
    "step_bytes_max",
    *("calibration", "floor_ms", "stop_rule", "error_message", "error_log"),
    *("gate_error", "gate_detail", "notes", "drift"),
)
NO_TIME = (
    "noise hides the step: its median is not above zero; use longer blocks "
    "(measure.block_ms) or a quieter machine"
)
# Worst first: a cell that was wrong once has no time anywhere.
SEVERITY = ("wrong", "measured", "failed", "interrupted")
USED = (
    *("median_duration_ms", "median_low_ms", "median_high_ms", "avg_duration_ms"),
    *("std_duration_ms", "num_samples", "num_rounds", "batch_size"),
    *("latency_ms", "latency_low_ms", "latency_high_ms", "start_ms"),
)
FIGURES = (
    *("median_ms", "low_ms", "high_ms", "mean_ms", "mean_low_ms", "mean_high_ms"),
    *("latency_ms", "latency_low_ms", "latency_high_ms", "start_ms"),
)


def summarize(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per cell, host and metric: config, details, figures over its launches, flags of all.

    Columns beside those copied: load (the workload with its parameter), outcome, attempts (ids),
    sweeps, launches (measured), rounds, median_ms with low_ms and high_ms, mean_ms with
    mean_low_ms and mean_high_ms, latency_ms with its ends, start_ms, throughput with
    throughput_low and throughput_high (tokens per second), basis, flags, index (rows of the frame).
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    names = zip(frame["cell_id"], frame["host"], frame["metric"], strict=True)
    for position, name in enumerate(names):
        groups.setdefault(tuple(map(str, name)), []).append(position)
    rows = [_cell(frame.iloc[positions], positions) for positions in groups.values()]
    return pd.DataFrame(rows)


def _cell(attempts: pd.DataFrame, positions: list[int]) -> dict[str, Any]:
    outcomes = [str(o) for o in attempts["outcome"]]
    outcome = min(outcomes, key=lambda o: SEVERITY.index(o) if o in SEVERITY else 99)
    timed = attempts[attempts["median_duration_ms"].notna()]
    measured = timed[timed["median_duration_ms"] > 0]
    if outcome == "measured" and measured.empty:
        # Without a time: the gate has not agreed, or noise hides the step.
        outcome = "wrong" if timed.empty else "failed"
    used = measured if outcome == "measured" else attempts
    newest = used.iloc[-1]
    flags = list(dict.fromkeys(flag for row in used["flags"] for flag in row))
    if outcome == "measured" and len(measured) < len(attempts):
        flags.append("some_attempts_failed")
    return {
        "cell_id": str(newest["cell_id"]),
        "outcome": outcome,
        **{name: plain(newest[name]) for name in (*COPIED, *DETAILS)},
        **({"error_message": NO_TIME} if outcome == "failed" and not timed.empty else {}),
        "load": load_of(newest),
        "attempts": [str(a) for a in attempts["attempt_id"]],
        "sweeps": list(dict.fromkeys(str(s) for s in attempts["sweep"])),
        "launches": len(measured) if outcome == "measured" else 0,
        "flags": flags,
        "index": positions,
        **_figures(measured if outcome == "measured" else measured.iloc[:0]),
    }


def load_of(row: Mapping[str, Any] | pd.Series[Any]) -> str:
    """The workload in words: "learned", "zipf 1.2", "hot_rank 0.5 of ep 4", "trace 1a2b3c4d"."""
    words = [str(row["workload"])]
    parameter, ranks = plain(row["workload_parameter"]), plain(row["workload_nominal_ep"])
    words += [f"{parameter:g}"] if parameter else []
    words += [f"of ep {ranks}"] if ranks else []
    words += [str(row["trace_sha256"])[:8]] if row["trace_sha256"] else []
    return " ".join(words)


def _figures(measured: pd.DataFrame) -> dict[str, Any]:
    """Median and mean with intervals; basis tells what the intervals cover."""
    if measured.empty:
        names = (*FIGURES, "throughput", "throughput_low", "throughput_high")
        return {**dict.fromkeys(names, math.nan), "rounds": 0, "basis": ""}
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
    """Of one launch with its interval; of several their median and all that they span. With what
    a block costs beside its steps."""
    known = [[plain(a[name]) for a in attempts] for name in
             ("latency_ms", "latency_low_ms", "latency_high_ms", "start_ms")]  # fmt: skip
    middle, low, high, start = ([v for v in values if v is not None] for values in known)
    return {
        "latency_ms": statistics.median(middle) if middle else math.nan,
        "latency_low_ms": min([*low, *middle]) if low else math.nan,
        "latency_high_ms": max([*high, *middle]) if high else math.nan,
        "start_ms": statistics.median(start) if start else math.nan,
    }


def _over(batch: int, seconds: float) -> float:
    """A mean's interval may reach down to zero with few wild samples: no upper bound then."""
    return batch / seconds if not seconds <= 0 else math.nan


def _one_launch(attempt: dict[str, Any]) -> dict[str, Any]:
    """Order statistics for the median; for the mean Student's t over the samples."""
    mean, deviation, count = (
        plain(attempt[n]) for n in ("avg_duration_ms", "std_duration_ms", "num_samples")
    )
    half = math.nan
    if mean <= 0:  # of few wild samples: no average, though there is a median
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
    """From five launches Student's t on the logarithms of their medians; else all they span."""
    values: dict[str, float] = {}
    names = (("median", "median_duration_ms"), ("mean", "avg_duration_ms"))
    for short, name in names:
        each = [float(a[name]) for a in attempts if a[name] > 0]
        prefix = "" if short == "median" else "mean_"
        if not each:
            center = low = high = math.nan
        elif len(each) >= MIN_LAUNCHES:
            found = paired_interval(logs(each), CONFIDENCE)
            assert found is not None
            center, low, high = (factor(x) for x in (found.center, found.low, found.high))
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


def identity(cell: pd.Series[Any] | dict[str, Any], names: tuple[str, ...]) -> tuple[Any, ...]:
    """The cell's values of these columns, comparable."""
    return tuple(hashable(cell[name]) for name in names)
