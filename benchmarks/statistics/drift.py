"""Does a load that comes half-way change which cell looks fastest?

    python -m benchmarks.statistics.drift

Three cells whose order is known, slowest first: one layer with 40%, 20% and no busy work planted.
Half-way through the sweep a background load takes every core. In random rounds it meets all cells
alike; in product order, one cell after the other as launchers usually do it, it meets the last
one most. Prints a line per order: the medians, whether they are in the true order, and whether
the tables say that the machine drifted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import analysis

ROOT = Path(__file__).resolve().parents[2]

PLANTED = (0.4, 0.2, 0.0)
SAMPLES = 30
LIMIT_S = 240
LOAD = "while True: pass"


def sweep(order: str, folder: Path) -> str:
    """Runs the cells, with the load from the middle on; returns what `show` prints."""
    command = [
        *(sys.executable, str(ROOT / "runners" / "bench.py"), "-m", "model=mixtral_8x7b"),
        *("batch_size=64", "world_size=1", "threads=1", "tracker=none", "report=false"),
        f"strategy.slowdown={','.join(map(str, PLANTED))}",
        *(f"measure.order={order}", f"measure.samples={SAMPLES}", f"measure.samples_max={SAMPLES}"),
        *("measure.block_ms=100", "measure.phases=0", "measure.calibrate=false"),
        f"hydra.sweep.dir={folder}",
    ]
    load: list[subprocess.Popen[bytes]] = []
    process = subprocess.Popen(command, cwd=folder.parent, stdout=subprocess.DEVNULL)
    try:
        wait_for_half(folder, process)
        for _ in range(3 * (os.cpu_count() or 1)):
            # a session each: Linux shares cores out between sessions first
            load.append(subprocess.Popen([sys.executable, "-c", LOAD], start_new_session=True))
        if process.wait(timeout=LIMIT_S):
            raise SystemExit(f"{order}: the sweep ended with exit code {process.returncode}")
    finally:
        for one in (*load, process):
            one.kill()
            one.wait()
    show = [sys.executable, "-m", "analysis", "show", str(folder)]
    return subprocess.run(show, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def wait_for_half(folder: Path, process: subprocess.Popen[bytes]) -> None:
    lines = folder / "launches" / "0" / "samples" / "rank0.jsonl"
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        done = lines.read_text().count('"kind":"long"') if lines.exists() else 0
        if done >= len(PLANTED) * SAMPLES / 2:
            return
        time.sleep(0.02)
    raise SystemExit("the sweep did not come to its middle")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        for order in ("random", "product"):
            folder = Path(name) / order
            shown = sweep(order, folder)
            frame = analysis.load([folder]).set_index("slowdown")
            medians = [round(float(frame["median_duration_ms"][p]), 2) for p in PLANTED]
            found = {
                "order": order,
                "planted": PLANTED,
                "median_duration_ms": medians,
                "true_order_kept": medians == sorted(medians, reverse=True),
                "drift": round(float(frame["drift"].max()), 2),
                "banner": "DRIFT" in shown,
            }
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
