"""Order statistics and confidence intervals, for the stop rule and the analysis. Stdlib only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from runners.host import gpu_monitor
from runners.records import cold_proof, emulation
from runners.records.record import Record, Samples

CONFIDENCE = 0.95
DRIFT_THRESHOLD = 0.10  # a larger difference of anchors puts a banner on every table
FLOOR_MULTIPLE = 10.0  # cells whose blocks last fewer floors are flagged
GROWTH_LIMIT = 0.02  # share of a step's time that growing start costs may take, unflagged
STEADY = "steady state"
BLOCK_MEAN = "mean of a block, its start included"  # in records of schema 2
COUNTED = ("short", "long", "fixed")


class Interval(NamedTuple):
    """A confidence interval, in the unit of its values."""

    low: float
    high: float
    confidence: float  # achieved: order statistics reach only some levels


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


def duration_low(low: float) -> float:
    """Lower end of a duration's interval, cut at 0. A true duration is positive, so that the cut
    does not change the interval's confidence."""
    return 0.0 if low < 0 else low  # NaN (no interval) stays NaN


def step_ms(short: int, short_ms: float, long: int, long_ms: float) -> float:
    """Time of a step, in ms: (long_ms - short_ms) / (long - short), of two blocks of `short` and
    `long` steps. What a block costs beside its steps cancels."""
    return (long_ms - short_ms) / (long - short)


def makespans_ms(samples: Samples, kinds: Sequence[str] = COUNTED) -> list[float]:
    """Makespans per step in ms: (last end - first start over the ranks) / steps."""
    return [span / steps for _, steps, span in _blocks(samples, kinds)]


def _blocks(samples: Samples, kinds: Sequence[str]) -> list[tuple[int, int, float]]:
    """(round, steps, makespan in ms) of the samples of these kinds, in the order taken."""
    return [
        (number, steps, (last - first) / 1e6)
        for number, steps, kind, first, last in zip(
            samples.round,
            samples.steps,
            samples.kind,
            map(min, samples.start_ns),
            map(max, samples.end_ns),
            strict=True,
        )
        if kind in kinds
    ]


def step_times_ms(samples: Samples) -> list[tuple[int, float]]:
    """(round, time of a step in ms): the difference of a round's n-th short and n-th long block, or
    the mean of each block of fixed length."""
    fixed = [(number, span / steps) for number, steps, span in _blocks(samples, ("fixed",))]
    shorts: dict[int, list[tuple[int, float]]] = {}
    for number, steps, span in _blocks(samples, ("short",)):
        shorts.setdefault(number, []).append((steps, span))
    times = fixed
    for number, steps, span in _blocks(samples, ("long",)):
        if shorts.get(number):
            times.append((number, step_ms(*shorts[number].pop(0), steps, span)))
    return times


def round_medians_ms(samples: Samples) -> dict[int, float]:
    """Median time of a step by round, in ms; rounds are the unit of the interval."""
    rounds: dict[int, list[float]] = {}
    for number, value in step_times_ms(samples):
        rounds.setdefault(number, []).append(value)
    return {number: statistics.median(rounds[number]) for number in sorted(rounds)}


def round_ratios(a: Samples, b: Samples) -> list[float]:
    """Ratios a / b of the rounds in which both have a positive time of a step."""
    ours, theirs = round_medians_ms(a), round_medians_ms(b)
    common = [n for n in ours if n in theirs and min(ours[n], theirs[n]) > 0]
    return [ours[n] / theirs[n] for n in common]


def metric(record: Record) -> str:
    """Name of what the record's time of a step is. Different metrics are never compared, so that
    an emulated cluster's says which cluster it is."""
    name = STEADY if record.schema > 2 else BLOCK_MEAN
    if steps := record.measure.get("block"):
        name = f"fixed block of {steps} step" + ("s" if steps > 1 else "")
    cluster = emulation.of_environment(record.environment)
    return f"{name}, {cluster.words}" if cluster else name


def floor_ms(record: Record) -> float | None:
    """Median makespan, in ms, of an empty block among the cells' blocks: the barrier's cost."""
    if not record.floor:
        return None
    values = makespans_ms(Samples(**record.floor))
    return statistics.median(values) if values else None


def latency_ms(samples: Samples) -> tuple[float, Interval | None] | None:
    """Median and interval, in ms, of one step between a barrier and the last rank's end."""
    values = makespans_ms(samples, ("latency",))
    return (statistics.median(values), median_interval(values)) if values else None


def start_ms(samples: Samples, step: float) -> float | None:
    """Cost of a block beside its steps, in ms: the median over short blocks of
    makespan - steps * step, with `step` the time of a step in ms."""
    values = [span - steps * step for _, steps, span in _blocks(samples, ("short",))]
    return statistics.median(values) if values else None


def start_growth(samples: Samples, step: float) -> Interval | None:
    """Bound on the start cost that is still in the time of a step, as a fraction, with an interval.

    What a block costs beside its steps should not depend on its length. As long as it levels off,
    its growth from one step to the short block bounds its growth from the short to the long one,
    which, divided by the difference of their steps, is in the time of a step.
    """
    single = {number: span for number, _, span in _blocks(samples, ("latency",))}
    longs = [steps for _, steps, _ in _blocks(samples, ("long",))]
    growths = [
        (span - single[number] - (steps - 1) * step) / ((longs[0] - steps) * step)
        for number, steps, span in _blocks(samples, ("short",))
        if number in single and longs and step > 0
    ]
    return median_interval(growths)


def anchor_medians_ms(record: Record) -> dict[str, float]:
    """Median, in ms, of the wave's anchor cell by place, where it was taken."""
    medians = {}
    for place in ("first", "middle", "last"):
        values = makespans_ms(Samples(**(record.anchors or {}).get(place, {})))
        if values:
            medians[place] = statistics.median(values)
    return medians


def drift(record: Record) -> float | None:
    """Largest over smallest anchor median, minus 1: how far the machine drifted during the wave.

    0 where the ranges of all anchors overlap: the range of six samples is a 97% interval of the
    median, so that a difference within it is noise.
    """
    makespans = [makespans_ms(Samples(**columns)) for columns in _anchors(record)]
    ranges = sorted((min(values), max(values)) for values in makespans if values)
    if len(ranges) < 2:
        return None
    if max(low for low, _ in ranges) <= min(high for _, high in ranges):
        return 0.0
    medians = [statistics.median(values) for values in makespans if values]
    return max(medians) / min(medians) - 1


def _anchors(record: Record) -> list[dict[str, Any]]:
    anchors = record.anchors or {}
    return [anchors[place] for place in ("first", "middle", "last") if place in anchors]


def timed_ns(samples: Samples) -> int:
    """Wall time, in ns, inside samples of every kind."""
    return sum(map(max, samples.end_ns)) - sum(map(min, samples.start_ns))


def flags(record: Record) -> list[str]:
    """Names of everything that limits what the record can show, in a fixed order."""
    names = []
    place = record.cell.placement
    known = (record.environment.get(name) for name in ("cores", "cpu_quota"))
    cores = min(filter(None, known), default=0)
    local = record.environment.get("local_ranks") or place.world_size
    paced = emulation.of_environment(record.environment) is not None  # by each rank's CPU time
    if place.device == "cpu" and cores and local * place.threads > cores and not paced:
        names.append("oversubscribed")
    if record.cell.layer.topk != record.cell.layer.topk_requested:
        names.append("clamped")
    floor = floor_ms(record)
    blocks = [span for _, _, span in _blocks(record.samples, ("long", "fixed"))]
    if blocks and floor is not None and statistics.median(blocks) < FLOOR_MULTIPLE * floor:
        names.append("under_floor")
    rounds = round_medians_ms(record.samples)
    if rounds:
        growth = start_growth(record.samples, statistics.median(rounds.values()))
        if growth and growth.low > GROWTH_LIMIT:
            names.append("start_grows")
    if record.warmup and not record.warmup.get("steady", True):
        names.append("no_steady_state")
    moved = drift(record)
    if moved is not None and moved > DRIFT_THRESHOLD:
        names.append("drift")
    if gpu_monitor.throttling(record.environment):
        names.append("throttled")
    if any(proof.proven is False for proof in cold_proof.of_record(record)):
        names.append("not_cold")
    if record.stop and record.stop.get("rule") in ("maximum", "wall", "interrupted"):
        names.append(f"stopped_by_{record.stop['rule']}")
    return names


def _deviation(values: Sequence[float], mean: float) -> float:
    """Sample standard deviation; `statistics.stdev` takes a third of loading a record."""
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def headline(record: Record) -> dict[str, Any]:
    """The figures that every reader shows: durations in ms per step, throughput in tokens/s.

    Empty unless the cell was measured and correct. `median_*` come from the medians of rounds;
    `avg_duration_ms` is the mean over all times of a step and
    avg_throughput = batch_size / (avg_duration_ms / 1000), None where noise makes the mean zero or
    negative. Latency, start and its growth are None with a fixed block length.
    """
    values = [value for _, value in step_times_ms(record.samples)]
    if record.outcome != "measured" or not values or not (record.gate or {}).get("ok"):
        return {}
    rounds = list(round_medians_ms(record.samples).values())
    median, interval = statistics.median(rounds), median_interval(rounds)
    mean = statistics.fmean(values)
    latency, latency_interval = latency_ms(record.samples) or (None, None)
    growth = start_growth(record.samples, median)
    return {
        "median_duration_ms": median,
        "median_low_ms": duration_low(interval.low) if interval else None,
        "median_high_ms": interval.high if interval else None,
        "median_confidence": interval.confidence if interval else None,
        "avg_duration_ms": mean,
        "std_duration_ms": _deviation(values, mean) if len(values) > 1 else None,
        "min_duration_ms": min(values),
        "max_duration_ms": max(values),
        "avg_throughput": record.cell.workload.batch_size / (mean / 1000) if mean > 0 else None,
        "num_samples": len(values),
        "num_rounds": len(rounds),
        "latency_ms": latency,
        "latency_low_ms": latency_interval.low if latency_interval else None,
        "latency_high_ms": latency_interval.high if latency_interval else None,
        "start_ms": start_ms(record.samples, median),
        "start_growth_low": growth.low if growth else None,
        "start_growth_high": growth.high if growth else None,
        "floor_ms": floor_ms(record),
    }
