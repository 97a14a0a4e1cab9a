"""A long sweep in which everything goes wrong now and then, until every cell has ended.

    python -m benchmarks.faults.soak [--cells 500] [--chance 0.05]

Ranks raise, die, leave, hang, run out of memory and compute NaN by chance; launcher, torchrun and
tracker are killed; with root the sweep lies on a disk that is too small and grows when it is full.
Prints memory, descriptors, processes and shared-memory segments before and after, and a verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.faults import aftermath, launcher
from benchmarks.faults.trial import ROOT
from runners.host.hardware import memory_bytes
from runners.records import record, sweep_folder
from runners.track.client import descendants

LIMIT_S = 1800.0
SMALL_KIB, STEP_KIB = 512, 1024
GROWTH = 1.3  # of a launcher's memory over the first one's: more would be a leak

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
        records, torn = record.read_all(self.folder)
        ended = {one.cell_id for one in records if one.outcome != "interrupted"}
        missing = [f"{cell} has not ended" for cell in sorted(self.wanted - ended)]
        strange = [f"{cell} was not asked for" for cell in sorted(ended - self.wanted)]
        twice = aftermath.measured_once(records)
        return [*torn, *missing, *strange, *twice, *aftermath.unrecorded(self.folder, records)]


class Disk:
    """A small disk for the sweep alone; without root an ordinary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.own = folder, os.geteuid() == 0
        self.kib, self.full = SMALL_KIB, 0
        folder.mkdir()
        if self.own:
            self._mount("")

    def _mount(self, remount: str) -> None:
        words = ["mount", "-t", "tmpfs", "-o", f"{remount}size={self.kib}k", "tmpfs"]
        subprocess.run([*words, str(self.folder)], check=True)

    def grow(self) -> None:
        self.full += 1
        self.kib += STEP_KIB * self.full
        if self.own:
            self._mount("remount,")

    def close(self) -> None:
        if self.own:
            subprocess.run(["umount", "-l", str(self.folder)], check=False)


class Watch:
    """Peak memory and descriptors by launcher, and how many processes of each kind were killed."""

    def __init__(self, chance: float) -> None:
        self.chance = chance
        self.killed: Counter[str] = Counter()
        self.peaks: list[tuple[int, int]] = []  # KiB resident and descriptors, by launcher

    def hand(self, one: Sweeping) -> None:
        peak = (0, 0)
        while one.pause(1.0):
            assert one.process is not None
            peak = max(peak, usage(one.process.pid))
            if one.dice.random() < self.chance / 4:
                self._kill(one)
        self.peaks.append(peak)

    def _kill(self, one: Sweeping) -> None:
        assert one.process is not None
        victim = one.dice.choice(["launcher", "runners.launch.torchrun_agent", "runners.track"])
        pids = descendants(one.process.pid) if victim != "launcher" else [one.process.pid]
        for pid in pids:
            if victim == "launcher" or victim.encode() in command(pid):
                one.kill(pid)
                self.killed[victim] += 1
                return


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def usage(pid: int) -> tuple[int, int]:
    """KiB resident and open descriptors of a process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        resident = int(status.split("VmRSS:")[1].split()[0])
        return resident, len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except (OSError, IndexError):
        return 0, 0


def system(mark: str) -> dict[str, int]:
    return {
        "available_mib": memory_bytes().get("MemAvailable", 0) >> 20,
        "descriptors_all": int(Path("/proc/sys/fs/file-nr").read_text().split()[0]),
        "descriptors_own": len(list(Path("/proc/self/fd").iterdir())),
        "processes_of_it": len(aftermath.marked(mark)),
        "shared_memory": len(list(Path("/dev/shm").iterdir())),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.soak", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--cells", type=int, default=500)
    parser.add_argument("--chance", type=float, default=0.05)
    parser.add_argument("--seed", default=str(time.time_ns()))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    disk = Disk(folder / "disk")
    try:
        found = soak(disk, options)
    finally:
        disk.close()
    if not found:
        shutil.rmtree(folder, ignore_errors=True)
    return int(bool(found))


def soak(disk: Disk, options: argparse.Namespace) -> list[str]:
    began = time.monotonic()
    measure = {"wave_cells": 16, "cell_limit_s": 5.0}
    tracker = {"mode": "offline", "project": "soak", "limit_s": 60}
    asked = {"seeds": -(-options.cells // 3), "measure": measure, "tracker": tracker}
    one = Sweeping(disk.folder / "sweep", asked, options.seed)
    watch, before = Watch(options.chance), system(one.mark)
    plant = {"kind": "random", "chance": options.chance, "seed": options.seed}
    while True:
        end = one.once(watch.hand, plant, LIMIT_S)
        if "o space left" in " ".join(end.get("said", [])):
            disk.grow()
        elif end and not end.get("interrupted"):
            break
        if one.starts > options.cells:
            one.found.append("it does not come to an end")
            break
    found = [*one.found, *one.account(), *leaks(watch.peaks)]
    told(one, end, watch, disk, before, time.monotonic() - began)
    print(f"verdict: {found or 'nothing lost, left or growing'}", flush=True)
    return found


def leaks(peaks: list[tuple[int, int]]) -> list[str]:
    """A later launcher that takes much more than the first, which has had as many cells. Those that
    were killed before they could be looked at do not count."""
    seen = [peak for peak in peaks if peak[0]] or [(0, 0)]
    first, most = seen[0], max(seen)
    return [f"a launcher grew from {first} to {most}"] if most[0] > GROWTH * first[0] else []


def told(
    one: Sweeping,
    end: dict[str, Any],
    watch: Watch,
    disk: Disk,
    before: dict[str, int],
    took_s: float,
) -> None:
    records, _ = record.read_all(one.folder)
    outcomes = Counter(attempt.outcome for attempt in records)
    print(f"{len(one.wanted)} cells in {took_s:.0f} s, {one.starts} launchers; records: "
          f"{dict(outcomes)}; at the end: {end}")  # fmt: skip
    print(f"killed: {dict(watch.killed)}; disk full {disk.full} times")
    resident = [peak[0] >> 10 for peak in watch.peaks if peak[0]]
    print(f"launchers' memory, MiB: {resident}")
    after = system(one.mark)
    for name, value in before.items():
        print(f"{name}: {value} before, {after[name]} after")


if __name__ == "__main__":
    sys.exit(main())
