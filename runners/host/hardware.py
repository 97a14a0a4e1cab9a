"""Hardware facts from the kernel's files; None for what is unknown. Stdlib only."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runners.host import control_groups
from runners.host.control_groups import cpu_quota as cpu_quota
from runners.host.files import number, text

GPU_FIELDS = (
    "name",
    "driver_version",
    "memory.total",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks_throttle_reasons.active",
    "temperature.gpu",
    "power.draw",
    "power.limit",
)
NEWER_NAMES = {"clocks_throttle_reasons.active": "clocks_event_reasons.active"}  # of fields


@functools.cache
def launch_affinity() -> tuple[int, ...]:
    """The cores this process was started with; cached, so that later pinning does not change it."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Cores this process may use: its affinity, capped by the container's CPU quota."""
    quota = cpu_quota()
    cores = len(launch_affinity())
    return cores if quota is None else max(1, min(cores, int(quota)))


def parse_cpu_list(text: str) -> list[int]:
    """The kernel's list format: "0-2,8" is [0, 1, 2, 8]."""
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return cpus


def cpu_model() -> str | None:
    for line in (text("/proc/cpuinfo") or "").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or None


def llc_bytes() -> int | None:
    """Size of the largest data cache of the first usable core."""
    sizes = []
    for index in Path(f"/sys/devices/system/cpu/cpu{launch_affinity()[0]}/cache").glob("index*"):
        match = re.fullmatch(r"(\d+)([KMG]?)", text(index / "size") or "")
        if match and text(index / "type") != "Instruction":
            sizes.append(int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]])
    return max(sizes, default=None)


def memory_bytes(root: Path = control_groups.ROOT) -> dict[str, int]:
    """/proc/meminfo in bytes, MemTotal and MemAvailable capped by the control groups; empty where
    it is unreadable."""
    lines = (text(root / "proc/meminfo") or "").splitlines()
    fields = [line.split() for line in lines if line.endswith(" kB")]
    sizes = {field[0].rstrip(":"): int(field[1]) * 1024 for field in fields}
    allowed = {
        "MemTotal": control_groups.memory_limit_bytes(root),
        "MemAvailable": control_groups.memory_room_bytes(root),
    }
    for name, most in allowed.items():
        if most is not None and name in sizes:
            sizes[name] = min(sizes[name], most)
    return sizes


def may_have_gpus(root: Path = Path("/dev")) -> bool:
    """Whether there is a device file of an NVIDIA, AMD or WSL driver."""
    return any(any(root.glob(name)) for name in ("nvidia[0-9]*", "kfd", "dxg"))


def gpus(limit_s: float = 10.0) -> list[dict[str, Any]]:
    """Model, memory, clocks, power and throttling of every GPU by nvidia-smi; without the fields
    that it does not know, and empty where it fails."""
    names, rows = query_gpus(GPU_FIELDS, limit_s)
    keys = [field.replace(".", "_") for field in names]
    return [dict(zip(keys, row, strict=True)) for row in rows]


def query_gpus(
    fields: Sequence[str], limit_s: float = 10.0
) -> tuple[dict[str, str], list[list[str]]]:
    """The name by which nvidia-smi knows each field, without those it does not know, and a row of
    their values for every GPU. Nothing where it fails. One unknown name fails a whole query: then
    each is asked for alone, and then by its newer name."""
    end_s = time.monotonic() + limit_s
    rows = _query(fields, end_s)
    if rows is not None:
        return {field: field for field in fields}, rows
    known = {field: name for field in fields if (name := _known_name(field, end_s))}
    rows = _query([*known.values()], end_s) if known else None
    return (known, rows) if rows else ({}, [])


def _known_name(field: str, end_s: float) -> str | None:
    names = (field, NEWER_NAMES.get(field))
    return next((name for name in names if name and _query([name], end_s) is not None), None)


def _query(names: Sequence[str], end_s: float) -> list[list[str]] | None:
    """Values by GPU and name; None where nvidia-smi is missing, fails, or does not end in time."""
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    limit_s = end_s - time.monotonic()
    if limit_s <= 0:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=limit_s)
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [[value.strip() for value in line.split(",")] for line in done.stdout.splitlines()]
    return [row for row in rows if len(row) == len(names)]


def gpu_links(limit_s: float = 10.0) -> list[list[str]]:
    """Link between GPUs i and j by nvidia-smi (NV18: 18 NVLinks, SYS ...); empty if it fails."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "topo", "-m"], capture_output=True, text=True, check=True,
            timeout=limit_s,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_links(done.stdout)


def parse_links(table: str) -> list[list[str]]:
    """The GPU columns of nvidia-smi's matrix, whose rows begin with GPU0, GPU1 ..."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", table)
    rows = [line.split() for line in plain.splitlines() if re.match(r"GPU\d+\s", line)]
    return [row[1 : len(rows) + 1] for row in rows]


def steal_s() -> float | None:
    """CPU time taken by other guests of the virtual machine's host, in s over all cores."""
    first = (text("/proc/stat") or "").split("\n")[0].split()
    return int(first[8]) / os.sysconf("SC_CLK_TCK") if len(first) > 8 else None


def clock_mhz() -> float | None:
    """Current clock of the first usable core, in MHz."""
    cpu = launch_affinity()[0]
    khz = number(text(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq"))
    if khz:
        return khz / 1000
    match = re.search(r"^cpu MHz\s*:\s*([\d.]+)", text("/proc/cpuinfo") or "", re.MULTILINE)
    return float(match[1]) if match else None


def temperature_c() -> float | None:
    """Temperature of the hottest thermal zone, in degrees Celsius."""
    zones = Path("/sys/class/thermal").glob("thermal_zone*/temp")
    values = [value for zone in zones if (value := number(text(zone))) is not None]
    return max(values) / 1000 if values else None
