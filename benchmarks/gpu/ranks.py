"""2 and 4 ranks on the one GPU: exchanges go over gloo, staged through the host.

For the check only: nothing is timed.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.forms import MODES, PLACES, Form
from benchmarks.gpu.rows import Part
from runners.host import project_paths
from runners.host.network import free_port

WORLD_SIZES = (2, 4)
SHARES = {2: 0.4, 4: 1.0}  # of the part's time that is left when they begin
WORKER = "benchmarks.gpu.rank_worker"
GRACE_S = 3.0  # to end after the deadline, by themselves and by SIGTERM
STRIDE = 3  # a dry run takes every third form
STILL_S = 30.0  # without a row: longer than to start 4 ranks on a GPU


def forms(tiny: bool) -> list[Form]:
    """Every strategy, dispatcher and mode; in a dry run every third."""
    every = [
        Form(replace(strategy, kernel="grouped"), tokens, "bfloat16", mode)
        for mode, (strategy, tokens) in itertools.product(MODES, PLACES)
    ]
    return every[:: STRIDE if tiny else 1]


def run(part: Part) -> None:
    count = len(forms(part.tiny))
    for world_size in WORLD_SIZES:
        end_s = time.monotonic() + part.left_s() * SHARES[world_size]
        first = 0
        while first < count:
            seconds = end_s - time.monotonic() - GRACE_S
            if seconds <= 0:
                part.add(cut=True, world_size=world_size, forms_left=count - first)
                break
            first = one_launch(part, world_size, (first, count), seconds)


def one_launch(part: Part, world_size: int, span: tuple[int, int], seconds: float) -> int:
    """Starts ranks for the forms numbered `span[0]` up to `span[1]` and reports their rows. Returns
    the number of the form to go on with: where ranks fail or stand still, the one after theirs."""
    report = part.folder / f"ranks-{world_size}-from-{span[0]}.jsonl"
    launch = Launch(world_size, report, span, seconds, part.tiny)
    launch.start()
    try:
        while launch.running():
            _add(part, launch)
            time.sleep(0.05)
    finally:
        launch.end()
    _add(part, launch)
    if launch.failure and not launch.last_row_failed and launch.following < span[1]:
        form = forms(part.tiny)[launch.following]
        part.add(world_size=world_size, **form.labels(), ok=False, error=launch.failure)
        return launch.following + 1
    return launch.following


def _add(part: Part, launch: Launch) -> None:
    for row in launch.new_rows():
        part.add(world_size=launch.world_size, **row)


@dataclass
class Launch:
    """Processes of one group of ranks; ends only these."""

    world_size: int
    report: Path  # rank 0 writes a row for each form
    span: tuple[int, int]
    seconds: float  # until it is to end by itself
    tiny: bool
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    deadline_s: float = 0.0
    progress_s: float = 0.0  # when the last row came
    reported: int = 0  # rows
    last_row_failed: bool = False
    failure: str = ""  # of a rank, or that all stood still

    @property
    def following(self) -> int:
        """The number of the first form without a row."""
        return self.span[0] + self.reported

    def start(self) -> None:
        self.report.write_text("", "utf-8")
        end_s = time.monotonic() + self.seconds
        arguments = (self.report, *self.span, end_s, "cpu" if self.tiny else "cuda")
        command = [sys.executable, "-m", WORKER, *map(str, arguments)]
        common = {
            **os.environ,
            **project_paths.module_variables(os.environ),
            "WORLD_SIZE": str(self.world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port("127.0.0.1")),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }
        self.deadline_s = end_s + GRACE_S
        self.progress_s = time.monotonic()
        for rank in range(self.world_size):
            with self._log(rank).open("wb") as log:
                self.processes.append(subprocess.Popen(
                    command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                ))  # fmt: skip

    def _log(self, rank: int) -> Path:
        return self.report.with_suffix(f".rank{rank}.log")

    def running(self) -> bool:
        """Whether to wait on: a rank runs, none has failed, they report, and there is time."""
        codes = [process.poll() for process in self.processes]
        failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
        if failed:
            rank = failed[0]
            self.failure = f"rank {rank} ended with {codes[rank]}: {last_line(self._log(rank))}"
        elif time.monotonic() > self.progress_s + STILL_S:
            self.failure = f"no row for {STILL_S:.0f} s"
        in_time = time.monotonic() < self.deadline_s
        return None in codes and not self.failure and in_time

    def end(self) -> None:
        """Ends the ranks that still run, by their ids."""
        for stop in (subprocess.Popen.terminate, subprocess.Popen.kill):
            left = [process for process in self.processes if process.poll() is None]
            for process in left:
                stop(process)
            until = time.monotonic() + GRACE_S / 2
            while time.monotonic() < until and any(one.poll() is None for one in left):
                time.sleep(0.02)

    def new_rows(self) -> list[dict[str, Any]]:
        """Rows of rank 0 since the last call; the last line may still be written."""
        lines = self.report.read_text("utf-8").split("\n")[:-1]
        fresh = [json.loads(line) for line in lines[self.reported :]]
        if fresh:
            self.progress_s, self.last_row_failed = time.monotonic(), "error" in fresh[-1]
        self.reported = len(lines)
        return fresh


def last_line(log: Path) -> str:
    """The last line of a log that is not empty."""
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
