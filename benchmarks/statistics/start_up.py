"""What a block costs at its start must not be in the time of a step, nor in a verdict.

    python -m benchmarks.statistics.start_up [--series 200] [--comparisons 400]

The real engine under a fake clock. First the time of a step where every block begins with 0.5 ms
and its first two steps take 30% longer: how far the mean of the measured medians is from the
truth, beside the mean of the long block, which has the start in it. Then two cells in five
launches each, whose starts differ by 0.5 ms: how often the verdict is right where the second
takes 5% longer, and how often one is called faster where they are alike.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections import Counter

import pandas as pd

from analysis.stats.pairing import Series, compare
from analysis.stats.verdict import MIN_LAUNCHES
from benchmarks.statistics.simulated import START, SimulatedEngine, StartUp
from runners.plan import Measure
from runners.rank.engine import Sample

STEPS_MS = (0.05, 0.5, 5.0, 50.0)
PLANTED = 0.05
NOISE = 0.03  # of a block, beside what all blocks of a round share
LAUNCHES = Measure(samples=10, samples_max=200, precision=0.02, wall_limit_s=10.0, anchors=0)


def bias(step_ms: float, series: int) -> dict[str, float]:
    """Relative bias of the median time of a step, and of the mean of the long block."""
    medians, means = [], []
    for seed in range(series):
        generator = random.Random(seed)
        measure = Measure(samples=20, samples_max=20, anchors=0, precision=0.0)
        engine = SimulatedEngine(measure, generator, lambda g: g.lognormvariate(0.0, 0.03))
        cell = engine.cell(0, step_ms, START, lambda g: g.lognormvariate(0.0, 0.02))
        taken: list[Sample] = []
        engine.emit = taken.append
        engine.run([cell], str(seed))
        medians.append(statistics.median(cell.rounds_ms))
        long = [(s.end_ns - s.start_ns) / 1e6 / s.steps for s in taken if s.kind == "long"]
        means.append(statistics.median(long))
    return {
        "step_ms": step_ms,
        "bias": statistics.fmean(medians) / step_ms - 1,
        "bias_of_block_mean": statistics.fmean(means) / step_ms - 1,
    }


def comparison(planted: float, seed: int) -> str:
    """The verdict on the second of two cells, whose blocks start 0.5 ms later: five launches."""
    generator = random.Random(f"{planted}:{seed}")
    rows: tuple[list[dict[str, object]], ...] = ([], [])
    for launch in range(MIN_LAUNCHES):
        engine = SimulatedEngine(LAUNCHES, generator, lambda g: g.lognormvariate(0.0, 0.1))
        cells = []
        for index, (step_ms, start) in enumerate(
            ((1.0, StartUp(0.1)), (1.0 + planted, StartUp(0.6)))
        ):
            own = generator.lognormvariate(0.0, 0.005)  # as two labels of one cell differ
            cells.append(
                engine.cell(index, step_ms * own, start, lambda g: g.lognormvariate(0.0, NOISE))
            )
        engine.run(cells, str(launch))
        for label, cell in zip(rows, cells, strict=True):
            label.append({
                "host": "h", "sweep": "s", "launch": launch, "wave": 0,
                "median_duration_ms": statistics.median(cell.rounds_ms),
                "round_numbers": list(range(len(cell.rounds_ms))),
                "round_medians_ms": cell.rounds_ms,
            })  # fmt: skip
    first, second = (Series(pd.DataFrame(label)) for label in rows)
    found = compare(second, first)
    assert found is not None
    return found.word


def verdicts(planted: float, comparisons: int) -> dict[str, object]:
    words = Counter(comparison(planted, seed) for seed in range(comparisons))
    shares = {word: count / comparisons for word, count in sorted(words.items())}
    return {"planted": planted, "comparisons": comparisons, **shares}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--series", type=int, default=200)
    parser.add_argument("--comparisons", type=int, default=400)
    arguments = parser.parse_args()
    for step_ms in STEPS_MS:
        print(json.dumps(bias(step_ms, arguments.series)), flush=True)
    for planted in (PLANTED, 0.0):
        print(json.dumps(verdicts(planted, arguments.comparisons)), flush=True)


if __name__ == "__main__":
    main()
