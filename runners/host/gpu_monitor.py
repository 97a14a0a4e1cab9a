"""Clocks, power, temperature and throttling of the GPUs while a wave runs. Stdlib only.

A reading at a wave's end would show an idle GPU. So nvidia-smi runs beside the launch, one process
for a node, and writes a line for every GPU each `PERIOD_MS` to a file in the launch's folder; as a
wave ends its lines become one dict per GPU (`summary`), which reaches the wave's records as
`environment.after[].gpus`:

    gpu                  nvidia-smi's index
    readings             how many
    sm_mhz               [least, median, largest] clock of the multiprocessors
    temperature_max_c, power_max_w, power_limit_w
    reasons              all reasons for a lower clock that were seen, as NVML's bit mask
    harmful              readings with a reason of HARMFUL

None for what the driver does not tell. Where there is no nvidia-smi, nothing is started.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.host.hardware import launch_affinity, query_gpus

PERIOD_MS = 500
END_S = 2.0  # for nvidia-smi to end by itself
REASONS = "clocks_throttle_reasons.active"
FIELDS = ("index", "clocks.sm", "temperature.gpu", "power.draw", "power.limit", REASONS)
# Bits of nvmlClocksEventReasons that mean a clock below what the work asks for. The others are
# harmless: idle, clocks that were set, sync boost, display.
HARMFUL = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
THROTTLED_SHARE = 0.01  # of a wave's readings of a GPU, above which its records are flagged

Readings = Callable[[], dict[str, Any]]


class GpuMonitor:
    """A running nvidia-smi and the file it writes."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path, fields: Sequence[str]) -> None:
        self.process, self.path, self.fields = process, path, fields
        self.offset = 0

    def new_rows(self) -> list[list[str]]:
        """Rows that were written since the last call, whole lines only."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                content = file.read()
        except OSError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self.offset += len(whole)
        lines = whole.decode("utf-8", "replace").splitlines()
        rows = [[value.strip() for value in line.split(",")] for line in lines]
        return [row for row in rows if len(row) == len(self.fields)]

    def summary(self) -> list[dict[str, Any]]:
        """The readings since the last call, by GPU."""
        return summarize(dict(zip(self.fields, row, strict=True)) for row in self.new_rows())

    def end(self) -> None:
        """Ends nvidia-smi; more than once does no harm."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)
            return
        self.process.kill()
        self.process.wait()


def start(path: Path, ids: Sequence[str] = ()) -> GpuMonitor | None:
    """Starts nvidia-smi on the GPUs `ids` (all where there are none), writing to `path`; None where
    it is missing or fails. It runs on any core of the launch, and ends with this process."""
    names, _ = query_gpus(FIELDS)
    if "index" not in names:
        return None
    command = [
        *(sys.executable, "-m", "runners.host.isolation"),
        *("nvidia-smi", f"--query-gpu={','.join(names.values())}"),
        *("--format=csv,noheader,nounits", f"--loop-ms={PERIOD_MS}", f"--filename={path}"),
    ]
    command += [f"--id={','.join(ids)}"] if ids else []
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "MOE_LAUNCHER_PID": str(os.getpid())},  # it dies with this process
    )
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # otherwise it would run on this rank's own core
            os.sched_setaffinity(process.pid, launch_affinity())
    return GpuMonitor(process, path, list(names))


@contextlib.contextmanager
def watching(path: Path, ids: Sequence[str] = ()) -> Iterator[Readings]:
    """As `start`, until the block ends. Yields a function of {"gpus": summary of the readings since
    its last call}, of {} where nothing was started."""
    monitor = start(path, ids)
    try:
        yield lambda: {"gpus": monitor.summary()} if monitor else {}
    finally:
        if monitor:
            monitor.end()


def summarize(readings: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """One dict per GPU, as at the top, of readings by field."""
    by_gpu: dict[int, list[Mapping[str, str]]] = {}
    for reading in readings:
        index = _number(reading.get("index"))
        if index is not None:
            by_gpu.setdefault(int(index), []).append(reading)
    return [_of_gpu(gpu, by_gpu[gpu]) for gpu in sorted(by_gpu)]


def _of_gpu(gpu: int, readings: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    numbers = {
        name: [value for one in readings if (value := _number(one.get(name))) is not None]
        for name in FIELDS
    }
    masks = [mask for one in readings if (mask := _mask(one.get(REASONS))) is not None]
    clocks = numbers["clocks.sm"]
    return {
        "gpu": gpu,
        "readings": len(readings),
        "sm_mhz": [min(clocks), statistics.median(clocks), max(clocks)] if clocks else None,
        "temperature_max_c": max(numbers["temperature.gpu"], default=None),
        "power_max_w": max(numbers["power.draw"], default=None),
        "power_limit_w": max(numbers["power.limit"], default=None),
        "reasons": _all_of(masks) if masks else None,
        "harmful": sum(1 for mask in masks if mask & _all_of(HARMFUL)),
    }


def throttling(environment: Mapping[str, Any]) -> list[str]:
    """In words, why GPUs were slower than the work asked for, of those with more than
    THROTTLED_SHARE harmful readings in the wave; nothing where there was none, or no reading."""
    masks = [
        int(gpu.get("reasons") or 0)
        for rank in environment.get("after") or []
        for gpu in (rank or {}).get("gpus") or []
        if gpu["harmful"] > THROTTLED_SHARE * gpu["readings"]
    ]
    return [words for bit, words in HARMFUL.items() if _all_of(masks) & bit]


def _all_of(masks: Iterable[int]) -> int:
    """Every bit that is set in some mask."""
    together = 0
    for mask in masks:
        together |= mask
    return together


def _number(text: str | None) -> float | None:
    """A finite number; None for what nvidia-smi has no number for ("[N/A]")."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _mask(text: str | None) -> int | None:
    """A bit mask in hexadecimal."""
    try:
        return int(text or "", 16)
    except ValueError:
        return None
