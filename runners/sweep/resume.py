"""Resuming a sweep's folder: what is left to measure, and the folder's lock. Torch-free.

A cell's key does not depend on the order of a config's fields, so that it has the same id again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from runners.config.resolution import Composed
from runners.config.schema import up_to_date
from runners.errors import ConfigError
from runners.host.project_paths import LATEST
from runners.plan import Job
from runners.records.record import GOOD
from runners.records.sweep_folder import (
    MISSING_EMULATED,
    PLAN,
    Past,
    Versions,
    is_current,
    is_emulated,
    read_config,
    read_plan,
    state,
)

LOCK = ".lock"


def folder_of(resume: str, outputs: Path) -> Path:
    """The folder of resume=DIR or resume=latest; raises ConfigError where it holds no plan, or that
    of an emulated cluster, whose cells would be measured in real time."""
    folder = outputs / LATEST if resume == LATEST else Path(resume)
    try:
        exists = (folder / PLAN).is_file()
    except OSError:  # name too long, or no permission
        exists = False
    if not exists:
        raise ConfigError(
            f"resume={resume}: {folder} holds no plan.json; allowed are the folder of a sweep and "
            f"{LATEST}; see `python -m analysis status`"
        )
    if is_emulated(folder):
        raise ConfigError(
            f"resume={resume}: {folder} has times of an emulated cluster; allowed are sweeps of "
            f"real ranks; measure {MISSING_EMULATED}"
        )
    return folder.resolve()


def configs_of(folder: Path) -> list[Composed]:
    """Config and overrides of every cell of the folder's plan; raises ConfigError."""
    try:
        configs = [
            Composed(up_to_date(read_config(folder, str(cell["cell_id"]))), list(cell["overrides"]))
            for cell in read_plan(folder)["cells"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"resume={folder}: its plan cannot be read ({error}); "
            "give the overrides of the sweep again beside resume"
        ) from error
    if not configs:
        raise ConfigError(f"resume={folder}: its plan has no cells; start a new sweep")
    return configs


def launches_left(jobs: Sequence[Job], past: Past, versions: Versions, mode: str) -> dict[str, int]:
    """Launches still to make of every cell, by its id."""
    wanted_by_cell = {}
    for job in jobs:
        attempts = past.records.get(job.cell_id, [])
        launches = job.measure.launches
        status = state(attempts, versions, launches)
        done = [one for one in attempts if one.outcome in GOOD]
        current = [one for one in done if is_current(one, versions)]
        redone = {"failed": ("failed", "wrong"), "stale": ("stale",)}.get(mode, ())
        if mode == "force" or status in redone:
            wanted_by_cell[job.cell_id] = launches - (len(current) if status == "stale" else 0)
        elif status == "missing":
            wanted_by_cell[job.cell_id] = launches - len(done)
        else:
            wanted_by_cell[job.cell_id] = 0
    return wanted_by_cell


def summary_line(jobs: Sequence[Job], past: Past, versions: Versions) -> str:
    """One line with the number of cells in each state."""
    counts: dict[str, int] = {}
    for job in jobs:
        status = state(past.records.get(job.cell_id, []), versions, job.measure.launches)
        counts[status] = counts.get(status, 0) + 1
    words = [f"{n} {status}" for status, n in sorted(counts.items())]
    hint = "; stale: measured by other code, versions or machine, resume_mode=stale measures anew"
    return f"resuming: {', '.join(words)}{hint if 'stale' in counts else ''}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder for one sweep at a time; the kernel releases the lock of a dead process.

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
        with contextlib.suppress(OSError):  # a full disk: the lock works without the process id
            os.truncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
