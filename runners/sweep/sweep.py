"""The sweep: groups of jobs into launches, launches into records. Torch-free, no Hydra."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runners.host import environment, project_paths
from runners.host.timeout import call_with_timeout
from runners.launch.local import Started, start
from runners.plan import Job, LaunchPlan, engine_and_ranks, groups, kernel_key, unique
from runners.records import calibrations, record, stats
from runners.records.record import Record
from runners.sweep import resume
from runners.sweep.launch import Launch, StopSweep
from runners.sweep.progress import Progress
from runners.sweep.recover import recover
from runners.track.client import run_tracker

READ_BY_PEOPLE = 200  # cells in a plan; a longer one is written without indentation, at once
BULK_S = 600.0  # for reading or writing something of every cell
BLAMELESS_LAUNCHES = 3  # launches that may fail outside any cell before their group is given up

Start = Callable[[LaunchPlan], Started]


@dataclass(frozen=True)
class Settings:
    """What concerns the sweep as a whole."""

    sweep_dir: Path
    isolation: str = "group"
    on_error: str = "continue"
    tracker: dict[str, Any] = field(default_factory=lambda: {"mode": "disabled"})
    command: str = ""
    pass_env: tuple[str, ...] = ()  # patterns of further variables that ranks inherit
    resume_mode: str = ""  # "" is a new sweep; else what is measured of a folder's cells


@dataclass
class SweepResult:
    """How the sweep ended; `outcomes` has the last outcome of every cell id and launch."""

    sweep_dir: Path
    outcomes: dict[str, str] = field(default_factory=dict)
    failures: list[tuple[str, str, str]] = field(default_factory=list)  # cell, message, log
    warnings: list[str] = field(default_factory=list)
    wall_s: float = 0.0
    timed_s: float = 0.0
    tracked: int = 0
    skipped: int = 0  # impossible cells (on_invalid=skip); they have no record
    sync_command: str = ""
    interrupted: bool = False
    joined: bool = False  # this host only lent its ranks to another's sweep
    broken: bool = False  # files could not be read or written

    def counts(self) -> dict[str, int]:
        found = dict.fromkeys(record.OUTCOMES, 0)
        for outcome in self.outcomes.values():
            found[outcome] += 1
        return found

    @property
    def exit_code(self) -> int:
        good = all(outcome == "measured" for outcome in self.outcomes.values())
        return 130 if self.interrupted else 0 if good and not self.broken else 1


class Sweep:
    """Runs jobs group by group; whatever was measured is written before anything else happens."""

    def __init__(
        self, jobs: list[Job], settings: Settings, progress: Progress, start: Start = start
    ) -> None:
        self.jobs, self.settings, self.progress = unique(jobs), settings, progress
        self.start = start
        self.when_measured: Callable[[], None] = lambda: None  # the last record is on disk
        self.sweep_dir = settings.sweep_dir
        self.result = SweepResult(self.sweep_dir)
        self.launches = 0
        self.kernels: dict[str, str] = {}  # by kernel_key, as the first launch chose
        self.exchanged: dict[tuple[str, int], dict[str, int]] = {}  # as the first launch chose
        self.git = environment.git_state(project_paths.CLONE)
        self.calibration_dir = calibrations.beside(self.sweep_dir)
        here = environment.capture()
        self.fingerprint = environment.fingerprint(here)
        self.version = resume.version_of({**here, "git": self.git})
        self.left = {job.cell_id: job.measure.launches for job in self.jobs}

    def next_launch(self) -> int:
        self.launches += 1
        return self.launches - 1

    def run(self) -> SweepResult:
        began = time.monotonic()
        try:
            if self.settings.resume_mode:
                self._go_on(self.settings.resume_mode)
            call_with_timeout("the sweep's folder", self._write_plan, BULK_S)
            self.progress.begin(sum(self.left.values()))
            for jobs, last in self._launches():
                self._run_group(jobs, last)
        except KeyboardInterrupt:
            self.result.interrupted = True
        except StopSweep as stop:
            self.result.warnings.append(str(stop))
        except OSError as error:
            self.result.broken = True
            self.result.warnings.append(f"{error}; the sweep stops, earlier records are kept")
        for job in self.jobs:
            self.result.outcomes.setdefault(job.cell_id, "interrupted")
        self.progress.end()
        self.result.wall_s = time.monotonic() - began
        return self.result

    def _launches(self) -> Iterator[tuple[list[Job], bool]]:
        """The jobs of every launch that is left, and whether it is the last."""
        found = [
            jobs
            for group in groups(self.jobs, self.settings.isolation)
            for number in range(group.measure.launches)
            if (jobs := [job for job in group.jobs if self.left[job.cell_id] > number])
        ]
        for number, jobs in enumerate(found, start=1):
            yield jobs, number == len(found)

    def _go_on(self, mode: str) -> None:
        """Takes up what the folder has: first records for what a dead launcher left behind."""
        jobs = {job.cell_id: job for job in self.jobs}
        call_with_timeout("the sweep's folder", lambda: self._salvage(jobs), BULK_S)
        past = call_with_timeout(
            "the sweep's folder", lambda: resume.read_past(self.sweep_dir), BULK_S
        )
        self.result.warnings += [f"set aside: {error}" for error in past.damaged]
        self.launches = past.next_launch
        self.progress.say(resume.told(self.jobs, past, self.version))
        self.left = resume.left(self.jobs, past, self.version, mode)
        earlier = [one for attempts in past.records.values() for one in attempts]
        for one in earlier:  # what is measured anew is judged anew
            if mode == "missing" or not self.left.get(one.cell_id):
                self._know(one)
        self.track(earlier)

    def _salvage(self, jobs: Mapping[str, Job]) -> None:
        for found in self._left_behind(jobs):
            record.write(self.sweep_dir, found)

    def _left_behind(self, jobs: Mapping[str, Job]) -> Iterable[Record]:
        return recover(self.sweep_dir, jobs, self.result.warnings.append)

    def _know(self, found: Record) -> None:
        """Kernel and algorithms for later launches, the outcome for the end."""
        if found.kernel:
            self.kernels.setdefault(kernel_key(found.cell), found.kernel["name"])
        if found.exchanged:
            self.exchanged.setdefault(engine_and_ranks(found.cell), found.exchanged)
        known = self.result.outcomes.get(found.cell_id)
        if found.cell_id in self.left:
            self.result.outcomes[found.cell_id] = worst(known, found.outcome)

    def _write_plan(self) -> None:
        cells = {
            job.cell_id: {
                "cell_id": job.cell_id, "cell": record.cell_to_dict(job.cell), **job.request.meta
            }
            for job in self.jobs
        }  # fmt: skip
        before = self._earlier_plan() if self.settings.resume_mode else {}
        for known in before.get("cells", []):
            cells.setdefault(str(known["cell_id"]), known)
        plan = {
            "name": self.sweep_dir.name,
            "command": before.get("command", self.settings.command),
            "resumed": [*before.get("resumed", []), *([self.settings.command] if before else [])],
            "isolation": self.settings.isolation,
            "cells": list(cells.values()),
        }
        for job in self.jobs:
            self._write_config(job)
        indent = 1 if len(cells) < READ_BY_PEOPLE else None
        record.write_atomic(self.sweep_dir / resume.PLAN, record.sealed(plan, indent=indent))

    def _write_config(self, job: Job) -> None:
        """Before the plan, and without waiting for the disk: no plan, nothing to go on with."""
        folder = self.sweep_dir / "cells" / job.cell_id / ".hydra"
        if (folder / "overrides.json").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(record.sealed(job.config), "utf-8")
        overrides = job.request.meta.get("overrides", [])
        (folder / "overrides.json").write_text(json.dumps(overrides), "utf-8")

    def _earlier_plan(self) -> dict[str, Any]:
        """A damaged one is set aside: the cells asked for now, beside resume, take its place."""
        try:
            return resume.read_plan(self.sweep_dir)
        except record.RecordError as error:
            kept = calibrations.set_aside(self.sweep_dir / resume.PLAN)
            self.result.warnings.append(f"{error}; kept as {kept.name}")
            return {}

    def _run_group(self, pending: list[Job], last: bool) -> None:
        """One launch of a group; more when ranks die, each without the cell that was the cause. One
        that the launcher had to end, as no rank said a word, would only cost its limit again."""
        blameless = 0
        while pending:
            launch = Launch(self, pending, last)
            pending = launch.run()
            if launch.blamed is None and pending:
                blameless = 1 if launch.written else blameless + 1
                if blameless >= BLAMELESS_LAUNCHES or launch.silent_s:
                    launch.give_up(pending)
                    return
            if self.settings.on_error == "stop" and self.result.failures:
                raise StopSweep("stopped at the first failed cell (on_error=stop)")

    def save(self, found: Record) -> None:
        """The record first; OSError from a disk that does not keep it ends the sweep."""
        call_with_timeout("the sweep's folder", lambda: record.write(self.sweep_dir, found))
        self._know(found)
        self.result.timed_s += stats.timed_ns(found.samples) / 1e9
        self.progress.cell_done(found)

    def track(self, found: list[Record]) -> None:
        """While the ranks sleep; whatever happens to the tracker costs a warning."""
        ids = [r.attempt_id for r in found if r.outcome != "interrupted"]
        tracker = self.settings.tracker
        done = run_tracker(self.sweep_dir, ids, tracker, float(tracker.get("limit_s", 120)))
        self.result.tracked += done.runs
        self.result.sync_command = done.sync_command or self.result.sync_command
        if done.warning and done.warning not in self.result.warnings:
            self.result.warnings.append(done.warning)


def worst(known: str | None, new: str) -> str:
    """Of several attempts at a cell: measured after interrupted is measured; else the bad one."""
    if known in (None, "interrupted"):
        return new
    return known if known != "measured" else new if new != "interrupted" else known


def point_latest(sweep_dir: Path) -> None:
    """outputs/latest -> this sweep, replaced in one step."""
    link = sweep_dir.parent / project_paths.LATEST
    fresh = sweep_dir.parent / f".{project_paths.LATEST}-{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(sweep_dir.name)
    fresh.replace(link)
