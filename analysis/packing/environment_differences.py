"""In what two environments differ, in the order in which it could explain a difference of times.

The card comes first, then the processor, cores, memory and clocks, drivers, torch, libraries,
threads, the engine, the kernel chosen, the routing, the code, and at last variables: what changes a
time most comes before what changes it least.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis import numbers
from analysis.data.cell_summary import load_of, summaries
from analysis.data.frame import plain
from analysis.stats.summarize import summarize
from runners.host import gpu_monitor

NOT_RECORDED, NOT_SET, NO_LIMIT = "not recorded", "not set", "no limit"
CLOCK_TOLERANCE = 0.02  # of two clocks that are called the same
# What a launch sets for its ranks, so that the command line need not have it.
SET_FOR_RANKS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GLOO_SOCKET_IFNAME",
                 "TORCH_NCCL_ASYNC_ERROR_HANDLING")  # fmt: skip
MOST_CELLS = 3  # whose kernels are named one by one

Row = Mapping[str, Any]  # an attempt: `environment`, and the columns of a frame


@dataclass(frozen=True)
class Difference:
    """One fact that is not the same on both sides, in words."""

    what: str
    there: str
    here: str

    def line(self) -> str:
        return f"{self.what}: {self.there} there against {self.here} here"


@dataclass(frozen=True)
class Fact:
    """`value` gives text or a number of one attempt, None where it does not have it. A fact that is
    `of_ranks` is known only where ranks have run. Numbers within `tolerance` are the same."""

    what: str
    value: Callable[[Row], Any]
    of_ranks: bool = False
    tolerance: float = 0.0
    unit: str = ""


def _at(*path: str | int, absent: str | None = None) -> Callable[[Row], Any]:
    """The value at a path in the environment; `absent` where it is there and null."""

    def value(row: Row) -> Any:
        found: Any = row["environment"]
        for step in path:
            try:
                found = found[step]
            except (KeyError, IndexError, TypeError):
                return None
        return absent if found is None else found

    return value


def _cards(row: Row) -> str | None:
    gpus = row["environment"].get("gpus")
    if gpus is None:
        return None
    counts = Counter(str(gpu.get("name")) for gpu in gpus)
    return ", ".join(f"{n} x {name}" for name, n in counts.items()) or "none"


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


def _changes(row: Row) -> str | None:
    git = row["environment"].get("git") or {}
    if not git.get("sha"):
        return None
    return f"changes {git['dirty']}" if git.get("dirty") else "as committed"


def _commit(row: Row) -> str | None:
    sha = (row["environment"].get("git") or {}).get("sha")
    return str(sha)[:10] if sha else None


FACTS = (
    Fact("GPU", _cards),
    Fact("GPU memory", _of_cards("memory_total", " MiB")),
    Fact("processor", _at("cpu_model")),
    Fact("cores", _at("cores")),
    Fact("quota of cores", _at("cpu_quota", absent=NO_LIMIT)),
    Fact("NUMA nodes", _at("numa_nodes")),
    Fact("last-level cache", _cache),
    Fact("memory", _memory),
    Fact("governor of the clock", _at("governor")),
    Fact("clock of a core", _at("before", "clock_mhz"), tolerance=CLOCK_TOLERANCE, unit=" MHz"),
    Fact("highest clock of the GPU", _of_cards("clocks_max_sm", " MHz")),
    Fact("clock of the GPU", _card_clock, True, CLOCK_TOLERANCE, " MHz"),
    Fact("power limit of the GPU", _power_limit),
    Fact("throttling of the GPU", _throttling, True),
    Fact("driver", _of_cards("driver_version")),
    Fact("CUDA", _at("versions", "cuda")),
    Fact("NCCL", _at("versions", "nccl")),
    Fact("torch", _at("versions", "torch")),
    Fact("Python", _at("versions", "python")),
    *(Fact(name, _at("versions", name)) for name in ("mpi4py", "triton", "transformers")),
    Fact("system", _at("system")),
    Fact("threads", _threads, True),
    Fact("pinned to cores", _pinned, True),
    Fact("backend", _column("backend"), True),
    Fact("device", _column("device"), True),
    Fact("network", _at("network"), True),
    Fact("nodes", _column("nodes"), True),
)
KERNEL = "kernel"
LATER = (
    Fact("routing", _routing, True),
    Fact("commit", _commit),
    Fact("code", _changes),
    Fact("version of the project", _at("versions", "project")),
)


def of_environments(there: Sequence[Row], here: Mapping[str, Any]) -> list[Difference]:
    """Of attempts against what this machine would record before any rank runs."""
    rows: list[Row] = [{"environment": here}]
    known = [fact for fact in (*FACTS, *LATER) if not fact.of_ranks]
    ours = _texts_of_variables(rows, SET_FOR_RANKS)
    theirs = _texts_of_variables(there, SET_FOR_RANKS)
    return [*_differing(known, there, rows), *_variables(theirs, ours)]


def of_sweeps(there: pd.DataFrame, here: pd.DataFrame) -> list[Difference]:
    """Of two frames, each with what its ranks recorded."""
    a, b = rows_of(there), rows_of(here)
    return [
        *_differing(FACTS, a, b),
        *kernels(there, here),
        *_differing(LATER, a, b),
        *_variables(_texts_of_variables(a), _texts_of_variables(b)),
    ]


def rows_of(frame: pd.DataFrame) -> list[Row]:
    """The attempts of a frame."""
    rows = ({str(k): v for k, v in row.items()} for row in frame.to_dict("records"))
    return [{**row, "environment": row["environment"] or {}} for row in rows]


def _differing(
    facts: Iterable[Fact], there: Sequence[Row], here: Sequence[Row]
) -> list[Difference]:
    found = []
    for fact in facts:
        a, b = (_known(fact, rows) for rows in (there, here))
        if (a or b) and not _same(fact, a, b):
            found.append(Difference(fact.what, _words(fact, a), _words(fact, b)))
    return found


def _known(fact: Fact, rows: Sequence[Row]) -> list[Any]:
    """The distinct values of the attempts."""
    values = (fact.value(row) for row in rows)
    return list(dict.fromkeys(value for value in values if value not in (None, "")))


def _same(fact: Fact, a: list[Any], b: list[Any]) -> bool:
    if fact.tolerance and a and b:
        x, y = (statistics.median(map(float, values)) for values in (a, b))
        return abs(x - y) <= fact.tolerance * max(x, y)
    return set(map(str, a)) == set(map(str, b))


def _words(fact: Fact, values: list[Any]) -> str:
    if not values:
        return NOT_RECORDED
    if fact.tolerance:
        return f"{statistics.median(map(float, values)):.0f}{fact.unit}"
    return " / ".join(map(str, values))


def _texts_of_variables(rows: Sequence[Row], left_out: Sequence[str] = ()) -> dict[str, list[str]]:
    """Values of every variable over all attempts."""
    texts: dict[str, list[str]] = {}
    for row in rows:
        for name, value in (row["environment"].get("variables") or {}).items():
            if name not in left_out and str(value) not in texts.setdefault(name, []):
                texts[name].append(str(value))
    return texts


def _variables(there: Mapping[str, list[str]], here: Mapping[str, list[str]]) -> list[Difference]:
    words = {
        name: [" / ".join(sorted(side.get(name, []))) or NOT_SET for side in (there, here)]
        for name in sorted({*there, *here})
    }
    return [Difference(f"variable {name}", a, b) for name, (a, b) in words.items() if a != b]


def kernels(there: pd.DataFrame, here: pd.DataFrame) -> list[Difference]:
    """Kernels that were chosen otherwise for a cell; of many such cells the first few, and how many
    more there are."""
    ours = {cell.cell_id: cell for cell in summaries(summarize(here))}
    differing = [
        Difference(f"{KERNEL} of {cell.strategy} {cell.cell_id}", cell.kernel_ran, other.kernel_ran)
        for cell in summaries(summarize(there))
        if (other := ours.get(cell.cell_id))
        and cell.kernel_ran and other.kernel_ran
        and cell.kernel_ran != other.kernel_ran
    ]  # fmt: skip
    if len(differing) <= MOST_CELLS:
        return differing
    rest = differing[MOST_CELLS:]
    more = Difference(
        f"{KERNEL} of {len(rest)} more cells",
        "/".join(dict.fromkeys(one.there for one in rest)),
        "/".join(dict.fromkeys(one.here for one in rest)),
    )
    return [*differing[:MOST_CELLS], more]


def relation(there: Sequence[Row], here: Sequence[Row]) -> str:
    """One line: whether both are of one machine, and of the same code."""
    machines = [{str(row["environment"].get("host") or "") for row in side}
                for side in (there, here)]  # fmt: skip
    codes = [{(_commit(row), _changes(row)) for row in side} for side in (there, here)]
    machine = "machines that their records do not tell apart"
    if all(side and "" not in side for side in machines):
        machine = "one machine" if machines[0] == machines[1] else "different machines"
    code = "code that is not recorded"
    if all((None, None) not in side for side in codes):
        same = codes[0] == codes[1] and len(codes[0]) == 1
        code = "the same commit" if same else "different code"
    return f"There and here are {machine}, with {code}."
