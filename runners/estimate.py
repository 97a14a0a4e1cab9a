"""Order statistics and intervals: stdlib only, shared by the stop rule and the analysis."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from runners.record import Record, Samples

CONFIDENCE = 0.95
DRIFT_THRESHOLD = 0.10  # anchors further apart than this put a banner on every table
FLOOR_MULTIPLE = 10.0  # cells under this many floors are flagged


class Interval(NamedTuple):
    low: float
    high: float
    confidence: float  # achieved; order statistics cannot hit a level exactly


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Distribution-free interval of the median from order statistics, or None with too few values.

    [x_(d), x_(n+1-d)] covers the median with 1 - 2*P(Bin(n, 1/2) < d); the largest d that still
    reaches the confidence is taken (David & Nagaraja, Order Statistics, section 7.1).
    """
    count = len(values)
    depth, tail, cumulative = 0, 0.0, 0.0
    for d in range(1, count // 2 + 1):
        cumulative += math.comb(count, d - 1) / 2**count
        if 1 - 2 * cumulative < confidence:
            break
        depth, tail = d, cumulative
    if depth == 0:
        return None
    ordered = sorted(values)
    return Interval(ordered[depth - 1], ordered[count - depth], 1 - 2 * tail)


def makespans_ms(samples: Samples, warmup: bool = False) -> list[float]:
    """Per sample: (last end - first start over the ranks) / steps, in ms; warm-up left out."""
    return [
        (last - first) / steps / 1e6
        for first, last, steps, warm in zip(
            map(min, samples.start_ns),
            map(max, samples.end_ns),
            samples.steps,
            samples.warmup,
            strict=True,
        )
        if warm == warmup
    ]


def round_medians_ms(samples: Samples) -> list[float]:
    """The median makespan of each round, in round order: the unit of the interval."""
    rounds: dict[int, list[float]] = {}
    timed = [r for r, warm in zip(samples.round, samples.warmup, strict=True) if not warm]
    for number, value in zip(timed, makespans_ms(samples), strict=True):
        rounds.setdefault(number, []).append(value)
    return [statistics.median(rounds[number]) for number in sorted(rounds)]


def floor_ms(record: Record) -> float | None:
    """Median makespan of an empty block: the resolution of the clock on these ranks."""
    if not record.floor:
        return None
    values = makespans_ms(Samples(**record.floor))
    return statistics.median(values) if values else None


def anchor_medians_ms(record: Record) -> dict[str, float]:
    """Median of the wave's anchor cell, first, middle and last, as far as they were taken."""
    found = {}
    for place in ("first", "middle", "last"):
        values = makespans_ms(Samples(**(record.anchors or {}).get(place, {})))
        if values:
            found[place] = statistics.median(values)
    return found


def drift(record: Record) -> float | None:
    """Largest over smallest anchor median, minus 1: how far the machine moved during the wave.

    0 where the anchors' samples overlap everywhere: with six samples their range is a 97% interval
    of the median, so a difference within it is noise.
    """
    taken = [makespans_ms(Samples(**found)) for found in _anchors(record)]
    ranges = sorted((min(values), max(values)) for values in taken if values)
    if len(ranges) < 2:
        return None
    if max(low for low, _ in ranges) <= min(high for _, high in ranges):
        return 0.0
    medians = [statistics.median(values) for values in taken if values]
    return max(medians) / min(medians) - 1


def _anchors(record: Record) -> list[dict[str, Any]]:
    found = record.anchors or {}
    return [found[place] for place in ("first", "middle", "last") if place in found]


def timed_ns(samples: Samples) -> int:
    """Wall time spent inside samples, warm-up included."""
    return sum(map(max, samples.end_ns)) - sum(map(min, samples.start_ns))


def flags(record: Record) -> list[str]:
    """Everything that limits what the record may be used to claim, in a fixed order."""
    found = []
    place = record.cell.placement
    cores = record.environment.get("cores") or 0
    local = record.environment.get("local_ranks") or place.world_size
    if place.device == "cpu" and cores and local * place.threads > cores:
        found.append("oversubscribed")
    if record.cell.layer.topk != record.cell.layer.topk_requested:
        found.append("clamped")
    floor = floor_ms(record)
    values = makespans_ms(record.samples)
    if values and floor is not None:
        block = statistics.median(values) * statistics.median(record.samples.steps)
        if block < FLOOR_MULTIPLE * floor:
            found.append("under_floor")
    if record.warmup and not record.warmup.get("steady", True):
        found.append("no_steady_state")
    moved = drift(record)
    if moved is not None and moved > DRIFT_THRESHOLD:
        found.append("drift")
    if record.stop and record.stop.get("rule") in ("maximum", "wall", "interrupted"):
        found.append(f"stopped_by_{record.stop['rule']}")
    return found


def _deviation(values: Sequence[float], mean: float) -> float:
    """Sample standard deviation; `statistics.stdev` takes a third of loading a record."""
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def headline(record: Record) -> dict[str, Any]:
    """The figures every reader shows: durations in ms per step, throughput in tokens per second.

    Empty unless the record is of a correct, measured cell. `median_*` come from the medians of
    rounds; `avg_duration_ms` is the mean over samples and
    avg_throughput = batch_size / (avg_duration_ms / 1000).
    """
    values = makespans_ms(record.samples)
    if record.outcome != "measured" or not values or not (record.gate or {}).get("ok"):
        return {}
    rounds = round_medians_ms(record.samples)
    interval = median_interval(rounds)
    mean = statistics.fmean(values)
    return {
        "median_duration_ms": statistics.median(rounds),
        "median_low_ms": interval.low if interval else None,
        "median_high_ms": interval.high if interval else None,
        "median_confidence": interval.confidence if interval else None,
        "avg_duration_ms": mean,
        "std_duration_ms": _deviation(values, mean) if len(values) > 1 else None,
        "min_duration_ms": min(values),
        "max_duration_ms": max(values),
        "avg_throughput": record.cell.workload.batch_size / (mean / 1000),
        "num_samples": len(values),
        "num_rounds": len(rounds),
        "floor_ms": floor_ms(record),
    }
