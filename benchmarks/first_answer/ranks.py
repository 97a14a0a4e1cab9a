"""Ranks forked from one process, beside ranks that import torch each by itself."""

from __future__ import annotations

import dataclasses
import json
import socket
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from analysis.stats.verdict import compare
from benchmarks.first_answer import turns
from benchmarks.first_answer.exchanges import median_ms
from benchmarks.speed.store import markdown
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec
from runners.launch.local import LaunchProcess
from runners.launch.local import start as start_ranks
from runners.plan import Job, LaunchPlan, Measure
from runners.records import record
from runners.sweep.progress import Progress
from runners.sweep.settings import Settings
from runners.sweep.sweep import Sweep

WAYS = {"forked": False, "anew": True}
RANKS, MANY = 8, 32
LIMIT_S = 300.0
LAUNCHES = 40
TURNS = 60  # of each launch of a pair
LAYER = LayerSpec(64, 256, 64, 8, 2, 2, "relu", "none")
CELLS = {
    name: Cell(LAYER, StrategySpec(name), WorkloadSpec(64), RankLayout(2)) for name in ("tp", "dp")
}
MEASURE = Measure(samples=12, samples_max=12, anchors=0, phases=0, calibrate=False)


def start(times: int) -> None:
    """Times from the launcher's first step until the last rank has met all others."""
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
    """Memory of all ranks and their agent; shared pages are divided among processes (PSS)."""
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
            placement=RankLayout(number), cells=[], labels=[], waves=[], resident=[],
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
    jobs = [Job(cell, measure) for cell in CELLS.values()]
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


def in_turns(_: int) -> None:
    """Runs LAUNCHES launches in pairs, one of each way, which alternate on the same cores, so that
    other load on the machine affects both alike."""
    times_ms: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for number in range(LAUNCHES // 2):
        for way, medians in _pair_in_turns(number).items():
            times_ms[way].append(medians)
    rows = []
    for index, name in enumerate(CELLS):
        by_way = {way: [medians[index] for medians in times_ms[way]] for way in WAYS}
        rows.append([name, *_difference(by_way, paired=True)])
    print(markdown(("cell", "forked, ms", "anew, ms", "ratio [95%]", "shown"), rows), flush=True)


def _pair_in_turns(number: int) -> dict[str, list[float]]:
    """{way: [median over turns of each cell, in ms]} of one pair of launches."""
    order = list(WAYS)[:: 1 if number % 2 else -1]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        launches = {way: Launch(Path(folder) / way, WAYS[way], stack) for way in order}
        taken: dict[str, list[list[float]]] = {way: [] for way in WAYS}
        for turn in range(TURNS):
            for way in order[:: 1 if turn % 2 else -1]:
                taken[way].append(launches[way].turn_ms())
    return {
        way: [statistics.median(times) for times in zip(*turns, strict=True)]
        for way, turns in taken.items()
    }


class Launch:
    """Ranks of benchmarks.first_answer.turns, which end with `stack`."""

    def __init__(self, folder: Path, anew: bool, stack: ExitStack) -> None:
        plan = LaunchPlan(
            launch=0, launch_dir=str(folder), measure=MEASURE, placement=CELLS["tp"].placement,
            cells=list(CELLS.values()), labels=[], waves=[], resident=[],
        )  # fmt: skip
        folder.mkdir()
        with socket.socket(socket.AF_UNIX) as server:
            server.settimeout(LIMIT_S)
            server.bind(str(folder / turns.SOCKET))
            server.listen()
            started = start_ranks(plan, worker="benchmarks.first_answer.turns", anew=anew)
            stack.callback(started.end)
            connection, _ = server.accept()
        stack.enter_context(connection)
        connection.settimeout(LIMIT_S)
        self.connection, self.answers = connection, connection.makefile()

    def turn_ms(self) -> list[float]:
        self.connection.sendall(b".")
        return list(json.loads(self.answers.readline()))


def anew_of(launch: int) -> bool:
    """Whether a launch starts its ranks anew; each way comes first in half of the pairs."""
    return launch % 4 in (1, 2)


def _in_turn(plan: LaunchPlan) -> LaunchProcess:
    return start_ranks(plan, anew=anew_of(plan.launch))


def _difference(times_ms: dict[str, list[float]], paired: bool = False) -> list[str]:
    a, b = times_ms["forked"], times_ms["anew"]
    verdict = compare(a, b, paired=paired, basis="launches", launches=min(len(a), len(b)))
    assert verdict is not None
    return [
        f"{statistics.median(a):.3f} ({len(a)})",
        f"{statistics.median(b):.3f} ({len(b)})",
        f"{verdict.ratio:.3f} [{verdict.low:.3f}, {verdict.high:.3f}]",
        verdict.word,
    ]
