"""Ranks forked from one process, beside ranks that import torch each by itself."""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from analysis.verdict import compare
from benchmarks.first_answer.exchanges import median_ms
from benchmarks.speed.store import markdown
from moe.spec import Cell, Layer, Placement, Strategy, Workload
from runners import record
from runners.cell import Request
from runners.launch.start import Started
from runners.launch.start import start as start_ranks
from runners.plan import Job, LaunchPlan, Measure
from runners.progress import Progress
from runners.sweep import Settings, Sweep

WAYS = {"forked": False, "anew": True}
RANKS, MANY = 8, 32
LIMIT_S = 300.0
LAUNCHES = 40
LAYER = Layer(64, 256, 64, 8, 2, 2, "relu", "none")
MEASURE = Measure(samples=12, samples_max=12, anchors=0, phases=0, calibrate=False)


def start(times: int) -> None:
    """From the launcher's first step to the last rank's meeting with all others."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(times):
        for way, anew in WAYS.items():
            seconds[way].append(_meeting(anew, RANKS)["seconds"])
    rows = [
        [way, f"{statistics.median(starts):.2f}", ", ".join(f"{s:.2f}" for s in starts)]
        for way, starts in seconds.items()
    ]
    print(markdown((f"{RANKS} gloo ranks", "seconds, median", "all"), rows), flush=True)


def memory(times: int) -> None:
    """Of all ranks and their agent together, each page divided by those who share it (PSS)."""
    rows = []
    for number in (RANKS, MANY):
        for way, anew in WAYS.items():
            mebibytes = [_meeting(anew, number)["bytes"] / 2**20 for _ in range(times)]
            median = statistics.median(mebibytes)
            rows.append([number, way, f"{median:.0f}", f"{median / number:.0f}"])
    print(markdown(("ranks", "started", "MiB", "MiB a rank"), rows), flush=True)


def _meeting(anew: bool, number: int) -> dict[str, Any]:
    """What benchmarks.first_answer.meeting finds."""
    with tempfile.TemporaryDirectory() as folder:
        plan = LaunchPlan(
            launch=0, launch_dir=f"{folder}/launch", measure=MEASURE,
            placement=Placement(number), cells=[], labels=[], waves=[], resident=[],
        )  # fmt: skip
        began = time.monotonic()
        started = start_ranks(plan, worker="benchmarks.first_answer.meeting", anew=anew)
        while started.running() and time.monotonic() - began < LIMIT_S:
            time.sleep(0.05)
        started.end()
        path = Path(plan.launch_dir) / "met.json"
        if not path.exists():
            raise SystemExit(started.log_path(0).read_text())
        meeting = json.loads(path.read_text())
    return {"seconds": meeting["met_s"] - began, "bytes": meeting["bytes"]}


def alike(_: int) -> None:
    """The same cells in LAUNCHES launches, which differ only in how their ranks were started."""
    measure = dataclasses.replace(MEASURE, launches=LAUNCHES)
    cells = [Cell(LAYER, Strategy(name), Workload(64), Placement(2)) for name in ("tp", "dp")]
    jobs = [Job(Request(cell), measure) for cell in cells]
    with tempfile.TemporaryDirectory() as folder:
        sweep_dir = Path(folder) / "alike"
        Sweep(jobs, Settings(sweep_dir), Progress(), _in_turn).run()
        records = [record.read(path) for path in record.paths(sweep_dir)]
    rows = []
    for job in jobs:
        times_ms: dict[str, list[float]] = {way: [] for way in WAYS}
        for one in records:
            if one.key == job.key:
                way = "anew" if anew_of(one.launch) else "forked"
                times_ms[way].append(median_ms(one.samples))
        rows.append([job.cell.strategy.name, *_difference(times_ms)])
    print(markdown(("cell", "forked, ms", "anew, ms", "ratio [95%]", "shown"), rows), flush=True)


def anew_of(launch: int) -> bool:
    """Each way as often first as second of two neighbours."""
    return launch % 4 in (1, 2)


def _in_turn(plan: LaunchPlan) -> Started:
    return start_ranks(plan, anew=anew_of(plan.launch))


def _difference(times_ms: dict[str, list[float]]) -> list[str]:
    a, b = times_ms["forked"], times_ms["anew"]
    verdict = compare(a, b, paired=False, basis="launches", launches=min(len(a), len(b)))
    assert verdict is not None
    return [
        f"{statistics.median(a):.3f} ({len(a)})",
        f"{statistics.median(b):.3f} ({len(b)})",
        f"{verdict.ratio:.3f} [{verdict.low:.3f}, {verdict.high:.3f}]",
        verdict.word,
    ]
