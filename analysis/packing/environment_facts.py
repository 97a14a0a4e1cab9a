"""The facts of an environment that can explain a difference of times, those that can explain most
first: the card and the processor, how cells were interleaved, cores, memory and clocks, drivers,
torch, libraries, threads, the engine; behind the kernel chosen, which is a cell's, the routing and
the code."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from analysis import numbers
from analysis.data.cell_summary import load_of
from analysis.data.frame import plain
from runners.host import gpu_monitor
from runners.packed import texts

ISOLATION, CELLS_IN_WAVE = "isolation", "cells_in_wave"  # columns of `with_schedule`
WAVE_TOLERANCE = 0.1  # of two sizes of waves that are called the same
NO_LIMIT, NO_CARD = "no limit", "none"
CLOCK_TOLERANCE = 0.02  # of two clocks that are called the same
LOAD_SLACK = 0.5  # processes that two loads may differ by

Row = Mapping[str, Any]  # an attempt: `environment`, and the columns of a frame


@dataclass(frozen=True)
class Fact:
    """`value` gives text or a number of one attempt, None where it does not have it. A fact that is
    `of_ranks` is known only where ranks have run, one `of_cards` only where there are GPUs. Numbers
    whose medians are apart by `tolerance` of the larger, or by `slack`, are the same."""

    what: str
    value: Callable[[Row], Any]
    of_ranks: bool = False
    of_cards: bool = False
    tolerance: float = 0.0
    slack: float = 0.0
    unit: str = ""
    of_both: bool = False  # no difference where only one side has it

    @property
    def is_number(self) -> bool:
        return self.tolerance > 0 or self.slack > 0


def _at(*path: str | int, absent: str | None = None) -> Callable[[Row], Any]:
    """The value at a path in the environment; `absent` where it is there and null."""

    def value(row: Row) -> Any:
        part: Any = row["environment"]
        for step in path:
            try:
                part = part[step]
            except (KeyError, IndexError, TypeError):
                return None
        return absent if part is None else part

    return value


def cards(row: Row) -> str | None:
    gpus = row["environment"].get("gpus")
    if gpus is None:
        return None
    counts = Counter(str(gpu.get("name")) for gpu in gpus)
    return ", ".join(f"{n} x {name}" for name, n in counts.items()) or NO_CARD


def _of_cards(name: str, unit: str = "") -> Callable[[Row], Any]:
    """A field of every GPU, where they have one."""

    def value(row: Row) -> str | None:
        gpus = row["environment"].get("gpus") or []
        known = dict.fromkeys(str(gpu[name]) for gpu in gpus if gpu.get(name))
        return ", ".join(f"{text}{unit}" for text in known) or None

    return value


def _memory(row: Row) -> str | None:
    size = row["environment"].get("memory_total_bytes")
    return f"{round(size / 2**30)} GiB" if size else None


def _cache(row: Row) -> str | None:
    size = row["environment"].get("llc_bytes")
    return numbers.bytes_text(size) if size else None


def _in_the_wave(row: Row) -> list[Mapping[str, Any]]:
    """What nvidia-smi said of every GPU while the cell was measured."""
    after = row["environment"].get("after") or []
    return [gpu for rank in after for gpu in (rank or {}).get("gpus") or []]


def _card_clock(row: Row) -> float | None:
    clocks = [gpu["sm_mhz"][1] for gpu in _in_the_wave(row) if gpu.get("sm_mhz")]
    return statistics.median(clocks) if clocks else None


def _power_limit(row: Row) -> str | None:
    limits = dict.fromkeys(gpu.get("power_limit_w") for gpu in _in_the_wave(row))
    words = ", ".join(f"{limit:g} W" for limit in limits if limit)
    return words or _of_cards("power_limit", " W")(row)


def _throttling(row: Row) -> str | None:
    if not _in_the_wave(row):
        return None
    return ", ".join(gpu_monitor.throttling(row["environment"])) or "none"


def _system(row: Row) -> str | None:
    """As a packed file has it, so that it is the same on both sides."""
    system = row["environment"].get("system")
    return texts.system(str(system)) or str(system) if system else None


def _threads(row: Row) -> str | None:
    known = row["environment"].get("threads") or {}
    return ", ".join(f"{name} {n}" for name, n in known.items() if n is not None) or None


def _pinned(row: Row) -> str | None:
    ranks = row["environment"].get("pinned")
    if not ranks:
        return None
    count = sum(cores is not None for cores in ranks)
    return "every rank" if count == len(ranks) else "some ranks" if count else "no rank"


def _column(name: str) -> Callable[[Row], Any]:
    return lambda row: plain(row.get(name))


def _routing(row: Row) -> str | None:
    return load_of(row) if row.get("workload") else None


def changes(row: Row) -> str | None:
    git = row["environment"].get("git") or {}
    if not git.get("sha"):
        return None
    return f"changes {git['dirty']}" if git.get("dirty") else "as committed"


def commit(row: Row) -> str | None:
    sha = (row["environment"].get("git") or {}).get("sha")
    return str(sha)[:10] if sha else None


FIRST = (
    Fact("GPU", cards),
    Fact("GPU memory", _of_cards("memory_total", " MiB"), of_cards=True),
    Fact("processor", _at("cpu_model")),
    Fact("isolation", _column(ISOLATION), of_ranks=True, of_both=True),
    Fact(
        "cells in a wave",
        _column(CELLS_IN_WAVE),
        of_ranks=True,
        tolerance=WAVE_TOLERANCE,
        of_both=True,
    ),
)
MACHINE = (
    Fact("cores", _at("cores")),
    Fact("quota of cores", _at("cpu_quota", absent=NO_LIMIT)),
    Fact("NUMA nodes", _at("numa_nodes")),
    Fact("last-level cache", _cache),
    Fact("memory", _memory),
    Fact("governor of the clock", _at("governor")),
    Fact("clock of a core", _at("before", "clock_mhz"), tolerance=CLOCK_TOLERANCE, unit=" MHz"),
    Fact("load before the launch", _at("before", "load_1m"), slack=LOAD_SLACK, unit=" processes"),
    Fact("highest clock of the GPU", _of_cards("clocks_max_sm", " MHz"), of_cards=True),
    Fact(
        "clock of the GPU",
        _card_clock,
        of_ranks=True,
        of_cards=True,
        tolerance=CLOCK_TOLERANCE,
        unit=" MHz",
    ),
    Fact("power limit of the GPU", _power_limit, of_cards=True),
    Fact("throttling of the GPU", _throttling, of_ranks=True, of_cards=True),
    Fact("driver", _of_cards("driver_version"), of_cards=True),
    Fact("CUDA", _at("versions", "cuda"), of_cards=True),
    Fact("NCCL", _at("versions", "nccl"), of_cards=True),
    Fact("torch", _at("versions", "torch")),
    Fact("Python", _at("versions", "python")),
    *(Fact(name, _at("versions", name)) for name in ("mpi4py", "triton", "transformers")),
    Fact("system", _system),
    Fact("threads", _threads, of_ranks=True),
    Fact("pinned to cores", _pinned, of_ranks=True),
    Fact("backend", _column("backend"), of_ranks=True),
    Fact("device", _column("device"), of_ranks=True),
    Fact("network", _at("network"), of_ranks=True),
    Fact("nodes", _column("nodes"), of_ranks=True),
)
LATER = (
    Fact("routing", _routing, of_ranks=True),
    Fact("commit", commit),
    Fact("code", changes),
    Fact("version of the project", _at("versions", "project")),
)
