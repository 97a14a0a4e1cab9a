"""Going on with a sweep folder: what it has of every cell, what is left, and who may write to it.

Keys are the same whatever the order of a config's fields, so a cell is found again by its id. Every
attempt is kept beside those before it, under its launch's number. Torch-free.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from runners.config.fields import ConfigError
from runners.host import environment
from runners.host.project_paths import LATEST
from runners.plan import Job
from runners.records import record as records
from runners.records.record import Record

MODES = ("missing", "failed", "stale", "force")
LOCK = ".lock"
PLAN = "plan.json"
Version = tuple[Any, ...]


@dataclass
class Past:
    """What a folder holds: records by cell id, in order of launch, and files that are none."""

    records: dict[str, list[Record]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    next_launch: int = 0


class CellState(NamedTuple):
    """A planned cell, its state, and the newest log on it."""

    cell_id: str
    strategy: str
    state: str
    log: str


def folder_of(resume: str, outputs: Path) -> Path:
    """The folder that resume=DIR or resume=latest names; raises ConfigError where it is none."""
    folder = outputs / LATEST if resume == LATEST else Path(resume)
    try:
        there = (folder / PLAN).is_file()
    except OSError:  # a name that is too long, a folder that is not ours
        there = False
    if not there:
        raise ConfigError(
            f"resume={resume}: {folder} holds no plan.json; allowed are the folder of a sweep and "
            f"{LATEST}; see `python -m analysis status`"
        )
    return folder.resolve()


def asked_before(folder: Path) -> list[tuple[dict[str, Any], list[str]]]:
    """Config and overrides of every cell of the folder's plan; raises ConfigError."""
    try:
        found = []
        for cell in read_plan(folder)["cells"]:
            kept = folder / "cells" / str(cell["cell_id"]) / ".hydra"
            config = records.read_sealed(kept / "config.json")
            found.append((config, [str(word) for word in cell["overrides"]]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"resume={folder}: its plan cannot be read ({error}); "
            "give the overrides of the sweep again beside resume"
        ) from error
    if not found:
        raise ConfigError(f"resume={folder}: its plan has no cells; start a new sweep")
    return found


def read_plan(folder: Path) -> dict[str, Any]:
    """plan.json; raises OSError and RecordError, a ValueError."""
    return records.read_sealed(folder / PLAN)


def read_past(folder: Path) -> Past:
    """All attempts, without their figures. Damaged records are named and left where they are; their
    cells count as missing."""
    past = Past()
    numbers = [int(p.name) for p in folder.glob("launches/*") if p.name.isdigit()]
    for path in records.paths(folder):
        try:
            found = records.read(path)
        except records.RecordError as error:
            past.damaged.append(str(error))
            number = path.stem.removeprefix("record-")
            numbers += [int(number)] if number.isdigit() else []
            continue
        past.records.setdefault(found.cell_id, []).append(_without_figures(found))
        numbers.append(found.launch)
    for attempts in past.records.values():
        attempts.sort(key=lambda one: one.launch)
    past.next_launch = max(numbers, default=-1) + 1
    return past


def _without_figures(found: Record) -> Record:
    """What says which attempt it was and how it ended: a sweep may have tens of thousands."""
    found.samples = records.Samples()
    found.floor = found.anchors = found.phases = found.calibration = None
    return found


def is_current(one: Record, here: Version) -> bool:
    """Whether this version would have measured the same: its records mean what ours do."""
    return one.schema == records.SCHEMA and version_of(one.environment) == here


def version_of(environment: Mapping[str, Any]) -> Version:
    """What must be alike for two attempts at a cell to be pooled: code, libraries, machine."""
    git, versions = environment.get("git") or {}, environment.get("versions") or {}
    machine = (environment.get("host"), environment.get("cpu_model"), environment.get("cores"))
    code = git.get("sha") or versions.get("project")
    return (code, git.get("dirty"), versions.get("torch"), *machine)


def version_here(clone: Path | None) -> Version:
    """Of this machine and the code of the clone, or that is installed."""
    return version_of({**environment.capture(), "git": environment.git_state(clone)})


def cells(folder: Path, here: Version) -> list[CellState]:
    """Every planned cell of a folder; raises OSError or ValueError for a damaged plan."""
    past = read_past(folder)
    found = []
    for planned in read_plan(folder)["cells"]:
        cell_id = str(planned["cell_id"])
        attempts = past.records.get(cell_id, [])
        known = state(attempts, here, _launches(folder, cell_id))
        log = next((str(one.error["log"]) for one in reversed(attempts) if one.error), "")
        if not log and attempts:
            log = f"launches/{attempts[-1].launch}/logs"
        name = str(planned["cell"]["strategy"]["name"])
        found.append(CellState(cell_id, name, known, str(folder / log) if log else ""))
    return found


def _launches(folder: Path, cell_id: str) -> int:
    """How many launches the cell was to have; one where its config cannot be read."""
    try:
        config = records.read_sealed(folder / "cells" / cell_id / ".hydra" / "config.json")
        return int(config["measure"]["launches"])
    except (OSError, ValueError, KeyError, TypeError):
        return 1


def state(attempts: Sequence[Record], here: Version, launches: int) -> str:
    """missing | failed | wrong | stale | measured, by the newest attempts."""
    ended = [one for one in attempts if one.outcome != "interrupted"]
    if not ended:
        return "missing"
    measured = [one for one in ended if one.outcome == "measured"]
    if not measured:
        return ended[-1].outcome
    current = [one for one in measured if is_current(one, here)]
    if len(current) < len(measured):
        return "measured" if len(current) >= launches else "stale"
    return "measured" if len(measured) >= launches else "missing"


def left(jobs: Sequence[Job], past: Past, here: Version, mode: str) -> dict[str, int]:
    """Launches still to be made of every cell, by its id."""
    found = {}
    for job in jobs:
        attempts = past.records.get(job.cell_id, [])
        wanted = job.measure.launches
        known = state(attempts, here, wanted)
        done = [one for one in attempts if one.outcome == "measured"]
        current = [one for one in done if is_current(one, here)]
        again = {"failed": ("failed", "wrong"), "stale": ("stale",)}.get(mode, ())
        if mode == "force" or known in again:
            found[job.cell_id] = wanted - (len(current) if known == "stale" else 0)
        elif known == "missing":
            found[job.cell_id] = wanted - len(done)
        else:
            found[job.cell_id] = 0
    return found


def told(jobs: Sequence[Job], past: Past, here: Version) -> str:
    """One line: cells by state."""
    counts: dict[str, int] = {}
    for job in jobs:
        known = state(past.records.get(job.cell_id, []), here, job.measure.launches)
        counts[known] = counts.get(known, 0) + 1
    words = [f"{n} {known}" for known, n in sorted(counts.items())]
    hint = "; stale: measured by other code, versions or machine, resume_mode=stale measures anew"
    return f"resuming: {', '.join(words)}{hint if 'stale' in counts else ''}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One sweep at a time per folder, also over a crash: the kernel lets go of a dead one's lock.

    Raises ConfigError naming the process that has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error}; choose another folder") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise ConfigError(
                f"{folder}: process {owner} is measuring into this folder; wait for it, or end it"
            ) from error
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name in it
            os.truncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
