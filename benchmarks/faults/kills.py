"""The launcher killed (-9) at random moments of a sweep and resumed each time, until it is done.

    python -m benchmarks.faults.kills [--kills 50] [--cells 24]

Sweeps follow each other until there were that many kills. Prints what the sweeps had at their
end: the same set of cells, each measured exactly once. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.faults.restart_loop import Sweeping

LIMIT_S = 300.0
LONGEST_S = 14.0  # from a launcher's start to its death


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.kills", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--seed", default=str(time.time_ns()))
    options = parser.parse_args()
    kills = sweeps = 0
    found: list[str] = []
    while kills < options.kills:
        sweeps += 1
        seed = f"{options.seed}:{sweeps}"
        done, complaints = sweep(options.cells // 3, options.kills - kills, seed)
        kills += done
        found += complaints
    print(
        f"{kills} kills in {sweeps} sweeps of {options.cells // 3 * 3} cells: "
        + ("every cell measured exactly once, earlier records unchanged, no process left"
           if not found else f"{len(found)} complaints")
    )  # fmt: skip
    print("\n".join(found), file=sys.stderr)
    return int(bool(found))


def sweep(seeds: int, kills: int, seed: str) -> tuple[int, list[str]]:
    """(kills, complaints) of one sweep that is killed at most so often."""
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    options = {"seeds": seeds, "measure": {"wave_cells": 3}}
    one, killed = Sweeping(folder / "sweep", options, seed), 0

    def strike(sweeping: Sweeping) -> None:
        nonlocal killed
        assert sweeping.process is not None
        if killed < kills and sweeping.pause(sweeping.dice.uniform(0, LONGEST_S)):
            killed += 1
            sweeping.kill(sweeping.process.pid)

    end = one.once(strike, {}, LIMIT_S)
    while not end and one.starts < kills + 5:
        end = one.once(strike, {}, LIMIT_S)
    found = [*one.found, *one.account()]
    if end.get("measured") != len(one.wanted):
        found.append(f"ended with {end}")
    if not found:
        shutil.rmtree(folder)
    return killed, found


if __name__ == "__main__":
    sys.exit(main())
