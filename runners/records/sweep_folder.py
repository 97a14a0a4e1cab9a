"""Contents of a sweep's folder: its plan, all attempts at every cell, their state. Torch-free.

Every attempt is kept, under its launch's number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from runners.host import environment
from runners.records import emulation, record
from runners.records.record import Record
from runners.records.sealed import RecordError, read_sealed

PLAN = "plan.json"
MISSING_EMULATED = "the missing cells with python -m benchmarks.emulate"
REFUSED = "refused.json"  # cells that cannot run (on_invalid=skip)
Version = tuple[Any, ...]
Versions = frozenset[Version]  # of one machine, or of the nodes of a cluster


@dataclass
class Past:
    """Records by cell id, in order of launch, and errors of damaged files."""

    records: dict[str, list[Record]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    next_launch: int = 0


class CellState(NamedTuple):
    """A planned cell, its state, and its newest log."""

    cell_id: str
    strategy: str
    state: str
    log: str


def read_plan(folder: Path) -> dict[str, Any]:
    """plan.json; raises OSError and RecordError, a ValueError."""
    return read_sealed(folder / PLAN)


def is_emulated(folder: Path) -> bool:
    """Whether the plan is of an emulated cluster; False for one that cannot be read."""
    try:
        return emulation.KEY in read_plan(folder)
    except (OSError, ValueError):
        return False


def read_refused(folder: Path) -> list[tuple[str, str]]:
    """(overrides, reason) of every refused cell; empty where there is no such file that can be
    read."""
    try:
        cells = read_sealed(folder / REFUSED)["refused"]
        return [(str(cell["overrides"]), str(cell["reason"])) for cell in cells]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def config_path(folder: Path, cell_id: str) -> Path:
    """Path of a cell's resolved config."""
    return folder / "cells" / cell_id / ".hydra" / "config.json"


def read_config(folder: Path, cell_id: str) -> dict[str, Any]:
    """The resolved config of a planned cell; raises OSError and RecordError."""
    return read_sealed(config_path(folder, cell_id))


def read_past(folder: Path) -> Past:
    """All attempts, without their figures. Damaged records are listed and left in place; their
    cells count as missing."""
    past = Past()
    numbers = [int(p.name) for p in folder.glob("launches/*") if p.name.isdigit()]
    for path in record.paths(folder):
        try:
            attempt = record.read(path)
        except RecordError as error:
            past.damaged.append(str(error))
            number = path.stem.removeprefix("record-")
            numbers += [int(number)] if number.isdigit() else []
            continue
        past.records.setdefault(attempt.cell_id, []).append(_without_figures(attempt))
        numbers.append(attempt.launch)
    for attempts in past.records.values():
        attempts.sort(key=lambda one: one.launch)
    past.next_launch = max(numbers, default=-1) + 1
    return past


def _without_figures(attempt: Record) -> Record:
    """Drops samples and measured figures to save memory: a sweep may have tens of thousands."""
    attempt.samples = record.Samples()
    attempt.floor = attempt.anchors = attempt.phases = attempt.calibration = None
    return attempt


def is_current(one: Record, versions: Versions) -> bool:
    """Whether this code on one of these machines would measure the same: same meaning of a time,
    and same version."""
    return one.schema in record.COMPARABLE and version_of(one.environment) in versions


def version_of(environment: Mapping[str, Any]) -> Version:
    """What must be equal for attempts at a cell to be pooled: code, libraries, machine."""
    git, versions = environment.get("git") or {}, environment.get("versions") or {}
    machine = (environment.get("host"), environment.get("cpu_model"), environment.get("cores"))
    code = git.get("sha") or versions.get("project")
    return (code, git.get("dirty"), versions.get("torch"), *machine)


def versions_here(clone: Path | None) -> Versions:
    """Version of this machine and of the clone's code; None: of the installed package."""
    return frozenset([version_of({**environment.capture(), "git": environment.git_state(clone)})])


def cells(folder: Path, versions: Versions) -> list[CellState]:
    """State of every planned cell; raises OSError or ValueError for a damaged plan."""
    past = read_past(folder)
    states = []
    for planned in read_plan(folder)["cells"]:
        cell_id = str(planned["cell_id"])
        attempts = past.records.get(cell_id, [])
        status = state(attempts, versions, _launches(folder, cell_id))
        log = next((str(one.error["log"]) for one in reversed(attempts) if one.error), "")
        if not log and attempts:
            log = f"launches/{attempts[-1].launch}/logs"
        name = str(planned["cell"]["strategy"]["name"])
        states.append(CellState(cell_id, name, status, str(folder / log) if log else ""))
    return states


def _launches(folder: Path, cell_id: str) -> int:
    """Planned launches of a cell; 1 where its config cannot be read."""
    try:
        config = read_config(folder, cell_id)
        return int(config["measure"]["launches"])
    except (OSError, ValueError, KeyError, TypeError):
        return 1


def state(attempts: Sequence[Record], versions: Versions, launches: int) -> str:
    """missing | failed | wrong | stale | measured | checked, by the newest attempts."""
    ended = [one for one in attempts if one.outcome != "interrupted"]
    if not ended:
        return "missing"
    good = [one for one in ended if one.outcome in record.GOOD]
    if not good:
        return ended[-1].outcome
    done = good[-1].outcome
    current = [one for one in good if is_current(one, versions)]
    if len(current) < len(good):
        return done if len(current) >= launches else "stale"
    return done if len(good) >= launches else "missing"
