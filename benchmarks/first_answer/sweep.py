"""`make bench` as a user runs it, in this clone."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from benchmarks.speed.store import markdown
from runners.records.calibrations import FOLDER

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 600
WALL_S, FIRST_WALL_S, SHARE = 25.0, 32.0, 0.4


def once() -> tuple[float, float]:
    """(seconds to the last line, seconds inside samples)."""
    began = time.monotonic()
    done = subprocess.run(
        ["make", "--silent", "bench"], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S
    )
    wall_s = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"make bench: exit code {done.returncode}")
    said = json.loads(done.stdout.splitlines()[-1])
    return wall_s, float(said["timed_s"])


def bench(times: int) -> None:
    """The first time, without a calibration of this machine, and then with it."""
    first, later = [], []
    for _ in range(times):
        shutil.rmtree(FOLDER, ignore_errors=True)
        first.append(once())
        later.append(once())
    rows = [
        [name, *_row(found), limit_s]
        for name, found, limit_s in (
            ("first time", first, FIRST_WALL_S),
            ("later", later, WALL_S),
        )
    ]
    head = ("make bench", "seconds, median", "all", "in samples", "at most, seconds")
    print(markdown(head, rows))
    print(f"asked of later ones: {SHARE:.0%} in samples", flush=True)


def _row(found: list[tuple[float, float]]) -> list[str]:
    walls = [wall for wall, _ in found]
    share = statistics.median(timed / wall for wall, timed in found)
    every = ", ".join(f"{wall:.1f}" for wall in walls)
    return [f"{statistics.median(walls):.1f}", every, f"{share:.0%}"]
