"""One sweep, started again and again until it is done: what kills and soak have in common."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.faults import aftermath, launcher
from benchmarks.faults.trial import ROOT
from runners.records import sweep_folder

Hand = Callable[["Sweeping"], None]


class Sweeping:
    """A sweep of 3 * seeds cells on two ranks in a folder, and the launchers that work on it."""

    def __init__(self, folder: Path, options: dict[str, Any], seed: str) -> None:
        self.folder, self.options = folder, options
        self.dice = random.Random(seed)
        self.wanted = {job.cell_id for job in launcher.jobs(options)}
        self.mark = uuid.uuid4().hex
        self.starts = 0
        self.found: list[str] = []
        self.process: subprocess.Popen[str] | None = None

    def once(self, hand: Hand, plant: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """One launcher, new or going on; {} where it was killed."""
        before = aftermath.contents(self.folder)
        mode = "missing" if (self.folder / sweep_folder.PLAN).exists() else ""
        self.starts += 1
        words = [str(self.folder), json.dumps({**self.options, "mode": mode})]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults.launcher", *words],
            env={**os.environ, aftermath.MARK: self.mark, "PYTHON_MOE_PLANT": json.dumps(plant)},
            cwd=ROOT, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.limit = time.monotonic() + limit_s
        hand(self)
        out, err = self._end(limit_s)
        self.found += aftermath.changed(before)
        self.found += [f"process {pid} is alive" for pid in aftermath.orphans(self.mark)]
        if "Traceback" in err:
            self.found.append(err[-1500:])
        return aftermath.told(out)

    def _end(self, limit_s: float) -> tuple[str, str]:
        assert self.process is not None
        try:
            return self.process.communicate(timeout=max(1.0, self.limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.found.append(f"a launcher was alive after {limit_s:g} s")
            self.process.kill()
            return self.process.communicate()

    def running(self) -> bool:
        assert self.process is not None
        return self.process.poll() is None and time.monotonic() < self.limit

    def pause(self, seconds: float) -> bool:
        """Whether the launcher still runs after that long."""
        until = time.monotonic() + seconds
        while self.running() and time.monotonic() < until:
            time.sleep(0.05)
        return self.running()

    def kill(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def account(self) -> list[str]:
        """Cells that have not ended or ended twice, samples without a record, torn records."""
        records, torn = aftermath.read_records(self.folder)
        ended = {one.cell_id for one in records if one.outcome != "interrupted"}
        missing = [f"{cell} has not ended" for cell in sorted(self.wanted - ended)]
        strange = [f"{cell} was not asked for" for cell in sorted(ended - self.wanted)]
        twice = aftermath.measured_once(records)
        return [*torn, *missing, *strange, *twice, *aftermath.unrecorded(self.folder, records)]
