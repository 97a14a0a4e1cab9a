"""Injects faults into small sweeps of three cells on two ranks, and judges what is left.

    python -m benchmarks.faults [--fault NAME ...] [--times 20] [--table]

Prints a row per fault: how often it was injected; records lost or torn, launchers alive past the
limit, processes left over, outcomes other than the stated one. Of n trials without an event, the
chance of one lies below 3/n at 95% (rule of three). Exit code 1 if anything was found.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks.faults import trial
from benchmarks.faults.catalogue import FAULTS, Fault
from benchmarks.faults.trial import Verdict


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--fault", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", default=str(time.time_ns()))
    parser.add_argument("--folder", type=Path, help="where sweeps lie; what failed stays there")
    options = parser.parse_args()
    print(
        "| fault | stated outcome | times | lost or torn | hung | orphans | wrong state | at most |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    found = 0
    for name in options.fault:
        found += one_row(FAULTS[name], name, options)
    return int(found > 0)


def one_row(fault: Fault, name: str, options: argparse.Namespace) -> int:
    if fault.root and os.geteuid() != 0:
        print(f"| {fault.what} | {fault.outcome} | 0 (needs root) | | | | | |", flush=True)
        return 0
    seeds = [f"{options.seed}:{name}:{number}" for number in range(options.times)]
    verdicts = [trial.run(fault, seed, options.folder) for seed in seeds]
    counts = [
        sum(bool(getattr(v, kind)) for v in verdicts)
        for kind in vars(Verdict())
        if kind != "seconds"
    ]
    bound = "-" if any(counts) else f"{min(1.0, 3 / len(verdicts)):.0%}"
    cells = [fault.what, fault.outcome, len(verdicts), *counts, bound]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
    for seed, verdict in zip(seeds, verdicts, strict=True):
        for text in verdict.all():
            print(f"{seed}: {text}", file=sys.stderr, flush=True)
    return sum(counts)


if __name__ == "__main__":
    sys.exit(main())
