"""Is a cell the same when it is measured again? The reference prints one cell three times, 2.05x
apart.

    python -m benchmarks.statistics.repeat [--sweeps 3]            # measures, then compares
    python -m benchmarks.statistics.repeat --from outputs/a ...    # compares earlier sweeps

That cell (batch 8, top-k 4, 8 ranks) under simple, tp and ep, in separate sweeps of five launches
each. Prints a line per strategy: median and interval of every sweep, how far the medians lie
apart, and whether all the intervals overlap; then the fastest strategy of every sweep.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import analysis
from analysis.stats.summarize import summarize

ROOT = Path(__file__).resolve().parents[2]

LIMIT_S = 580


def sweep() -> Path:
    """One sweep of five launches; its folder."""
    folder = ROOT / "outputs" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_repeat"
    command = [
        *(sys.executable, str(ROOT / "runners" / "bench.py"), "-m", "strategy=simple,tp,ep"),
        *("strategy.dispatcher=alltoall", "batch_size=8", "topk=4", "world_size=8"),
        *("measure=launches", "measure.samples_max=40"),
        *("measure.phases=0", "measure.calibrate=false", "tracker=none", "report=false"),
        *("name=repeat", f"hydra.sweep.dir={folder}"),
    ]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, timeout=LIMIT_S, check=True)
    return folder


def judge(folders: list[Path]) -> None:
    cells = [summarize(analysis.load([folder])).set_index("strategy") for folder in folders]
    for strategy in cells[0].index:
        found = [
            [round(float(c[name][strategy]), 3) for name in ("median_ms", "low_ms", "high_ms")]
            for c in cells
        ]
        medians = [median for median, _, _ in found]
        told = {
            "strategy": strategy,
            "median_low_high_ms": found,
            "largest_over_smallest": round(max(medians) / min(medians), 3),
            "intervals_overlap": all(
                max(a[1], b[1]) <= min(a[2], b[2]) for a, b in itertools.combinations(found, 2)
            ),
        }
        print(json.dumps(told))
    print(json.dumps({"fastest": [str(c["median_ms"].idxmin()) for c in cells]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=3)
    parser.add_argument("--from", dest="folders", type=Path, nargs="+")
    arguments = parser.parse_args()
    judge(arguments.folders or [sweep() for _ in range(arguments.sweeps)])


if __name__ == "__main__":
    main()
