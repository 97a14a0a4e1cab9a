"""How often the interval of the median covers the truth, with the stop rule deciding when to end.

    python -m benchmarks.statistics.coverage [--series 2000]

Drives the real engine under a fake clock, where every block begins with 0.5 ms and its first two
steps take 30% longer, with series whose true median is known, and prints the share of stated
intervals that contain it, per distribution and stop rule.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import Counter
from dataclasses import dataclass

from benchmarks.statistics.simulated import START, Draw, SimulatedEngine
from runners.plan import Measure
from runners.records.stats import median_interval

STEP_MS = 5.0
SAMPLES = Measure().samples


@dataclass(frozen=True)
class Series:
    """`draw` gives one round's effect, `noise` a block's own; `median` of their product."""

    draw: Draw
    median: float
    noise: Draw = lambda generator: 1.0


def bimodal(generator: random.Random) -> float:
    """Two modes 30% apart, the lower one in 60% of rounds; its median is solved below."""
    return generator.gauss(1.0, 0.03) if generator.random() < 0.6 else generator.gauss(1.3, 0.03)


def bimodal_median() -> float:
    """Where 0.6*Phi((x-1)/0.03) + 0.4*Phi((x-1.3)/0.03) is one half, by bisection."""
    low, high = 0.5, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        phi = [0.5 * (1 + math.erf((middle - m) / 0.03 / math.sqrt(2))) for m in (1.0, 1.3)]
        low, high = (middle, high) if 0.6 * phi[0] + 0.4 * phi[1] < 0.5 else (low, middle)
    return low


SERIES = {
    "normal": Series(lambda g: g.gauss(1.0, 0.05), 1.0),
    "log-normal": Series(lambda g: g.lognormvariate(0.0, 0.2), 1.0),
    "bimodal": Series(bimodal, bimodal_median()),
    "correlated": Series(lambda g: g.lognormvariate(0.0, 0.1), 1.0, lambda g: g.gauss(1.0, 0.02)),
}


def one(series: Series, seed: int, measure: Measure) -> tuple[bool, str, int]:
    """(interval covers the truth, stop rule, rounds) of one simulated wave."""
    engine = SimulatedEngine(measure, random.Random(seed), series.draw)
    cell = engine.cell(0, STEP_MS, START, series.noise)
    rule = engine.run([cell], str(seed))
    interval = median_interval(cell.rounds_ms)
    assert interval is not None
    truth = series.median * STEP_MS
    return interval.low <= truth <= interval.high, rule, len(cell.rounds_ms)


def simulate(name: str, count: int, precision: float, seed: int = 0) -> dict[str, object]:
    per_round = 3 if name == "correlated" else 1
    measure = Measure(
        precision=precision, samples=SAMPLES * per_round, samples_max=40 * per_round,
        per_round=per_round, anchors=0, wall_limit_s=1e9,
    )  # fmt: skip
    found = [one(SERIES[name], seed * 1_000_003 + n, measure) for n in range(count)]
    return {
        "series": name,
        "precision": precision,
        "count": count,
        "coverage": sum(covered for covered, _, _ in found) / count,
        "rules": dict(Counter(rule for _, rule, _ in found)),
        "mean_rounds": sum(rounds for _, _, rounds in found) / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=2000)
    arguments = parser.parse_args()
    for name in SERIES:
        for precision in (0.01, 0.03, 0.10):
            print(json.dumps(simulate(name, arguments.series, precision)))


if __name__ == "__main__":
    main()
