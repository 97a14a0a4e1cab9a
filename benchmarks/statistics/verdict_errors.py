"""How often a verdict's interval misses the truth, on synthetic launches whose ratio is known.

    python -m benchmarks.statistics.verdict_errors [--comparisons 4000]

Two labels are measured in shared rounds of every launch. A launch has a level of its own, a round
a disturbance that meets both, and each label an effect of its own in every launch and in every
round. The analysis judges them as it judges records; the stated level of a miss is 5%.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable

import pandas as pd

from analysis.stats.pairing import Series, compare
from analysis.stats.verdict import MIN_LAUNCHES, NOISE_THRESHOLD

ROUNDS = 25
Draw = Callable[[random.Random], float]
NOISE: dict[str, Draw] = {
    "normal": lambda g: g.gauss(1.0, 0.04),
    "log-normal": lambda g: g.lognormvariate(0.0, 0.1),
    "bimodal": lambda g: g.gauss(1.0, 0.02) if g.random() < 0.6 else g.gauss(1.2, 0.02),
    "outliers": lambda g: g.gauss(1.0, 0.02) * (3.0 if g.random() < 0.05 else 1.0),
}
LAUNCH_EFFECT = 0.01  # standard deviation of a label's own effect in a launch, log scale


def measured(generator: random.Random, noise: Draw, launches: int, ratio: float) -> list[Series]:
    """The two labels, the first `ratio` times as slow."""
    rows: tuple[list[dict[str, object]], ...] = ([], [])
    for launch in range(launches):
        level = generator.lognormvariate(0.0, 0.2)
        shared = [generator.lognormvariate(0.0, 0.1) for _ in range(ROUNDS)]
        for label, factor in zip(rows, (ratio, 1.0), strict=True):
            own = factor * (generator.lognormvariate(0.0, LAUNCH_EFFECT) if launches > 1 else 1.0)
            values = [level * own * disturbed * noise(generator) for disturbed in shared]
            label.append({
                "host": "h", "sweep": "s", "launch": launch, "wave": 0,
                "median_duration_ms": sorted(values)[ROUNDS // 2],
                "round_numbers": list(range(ROUNDS)), "round_medians_ms": values,
            })  # fmt: skip
    return [Series(pd.DataFrame(label)) for label in rows]


def simulate(name: str, launches: int, ratio: float, comparisons: int) -> dict[str, object]:
    generator = random.Random(f"{name}:{launches}:{ratio}")
    missed, words = 0, Counter[str]()
    for _ in range(comparisons):
        a, b = measured(generator, NOISE[name], launches, ratio)
        verdict = compare(a, b)
        assert verdict is not None
        missed += not verdict.low <= ratio <= verdict.high
        words[verdict.word] += 1
    return {
        "noise": name,
        "launches": launches,
        "true_ratio": ratio,
        "comparisons": comparisons,
        "missed": missed / comparisons,
        "words": dict(words),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comparisons", type=int, default=4000)
    count = parser.parse_args().comparisons
    for name in NOISE:
        for launches in (MIN_LAUNCHES, 1):
            for ratio in (1.0, 1 + NOISE_THRESHOLD, 1.05):
                print(json.dumps(simulate(name, launches, ratio, count)), flush=True)


if __name__ == "__main__":
    main()
