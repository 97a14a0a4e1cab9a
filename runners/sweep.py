"""The sweep: groups of jobs into launches, launches into records. Torch-free, no Hydra."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runners import environment, estimate, record
from runners.launch.follow import Launch, StopSweep
from runners.launch.start import Started, start
from runners.plan import Group, Job, LaunchPlan, groups, unique
from runners.progress import Progress
from runners.record import Record
from runners.track_client import run_tracker

BLAMELESS_LAUNCHES = 2  # launches that may fail outside any cell before their group is given up

Start = Callable[[LaunchPlan], Started]


@dataclass(frozen=True)
class Settings:
    """What concerns the sweep as a whole."""

    sweep_dir: Path
    isolation: str = "group"
    on_error: str = "continue"
    tracker: dict[str, Any] = field(default_factory=lambda: {"mode": "disabled"})
    command: str = ""


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
    sync_command: str = ""
    interrupted: bool = False

    def counts(self) -> dict[str, int]:
        found = dict.fromkeys(record.OUTCOMES, 0)
        for outcome in self.outcomes.values():
            found[outcome] += 1
        return found

    @property
    def exit_code(self) -> int:
        good = all(outcome == "measured" for outcome in self.outcomes.values())
        return 130 if self.interrupted else 0 if good else 1


class Sweep:
    """Runs jobs group by group; whatever was measured is written before anything else happens."""

    def __init__(
        self, jobs: list[Job], settings: Settings, progress: Progress, start: Start = start
    ) -> None:
        self.jobs, self.settings, self.progress = unique(jobs), settings, progress
        self.start = start
        self.sweep_dir = settings.sweep_dir
        self.result = SweepResult(self.sweep_dir)
        self.launches = 0
        self.kernels: dict[str, str] = {}  # by kernel_key, as the first launch chose
        self.git = environment.git_state(environment_root())
        self.calibration_dir = self.sweep_dir.resolve().parent / ".calibration"
        self.fingerprint = environment.fingerprint(environment.capture())

    def next_launch(self) -> int:
        self.launches += 1
        return self.launches - 1

    def run(self) -> SweepResult:
        began = time.monotonic()
        self._write_plan()
        todo = groups(self.jobs, self.settings.isolation)
        self.progress.begin(sum(len(g.jobs) * g.measure.launches for g in todo))
        try:
            for group in todo:
                for _ in range(group.measure.launches):
                    self._run_group(group)
        except KeyboardInterrupt:
            self.result.interrupted = True
        except StopSweep as stop:
            self.result.warnings.append(str(stop))
        self.progress.end()
        self.result.wall_s = time.monotonic() - began
        return self.result

    def _write_plan(self) -> None:
        plan = {
            "name": self.sweep_dir.name,
            "command": self.settings.command,
            "isolation": self.settings.isolation,
            "cells": [
                {"cell_id": job.cell_id, "cell": dataclasses.asdict(job.cell), **job.request.meta}
                for job in self.jobs
            ],
        }
        record.write_atomic(self.sweep_dir / "plan.json", json.dumps(plan, indent=1))
        for job in self.jobs:
            folder = self.sweep_dir / "cells" / job.cell_id / ".hydra"
            record.write_atomic(folder / "config.json", json.dumps(job.config, indent=1))
            overrides = job.request.meta.get("overrides", [])
            record.write_atomic(folder / "overrides.json", json.dumps(overrides))

    def _run_group(self, group: Group) -> None:
        """One launch of a group; more when ranks die, each without the cell that was the cause."""
        pending, blameless = list(group.jobs), 0
        while pending:
            launch = Launch(self, pending)
            pending = launch.run()
            if launch.blamed is None and pending:
                blameless += 1
                if blameless >= BLAMELESS_LAUNCHES:
                    launch.give_up(pending)
                    return
            if self.settings.on_error == "stop" and self.result.failures:
                raise StopSweep("stopped at the first failed cell (on_error=stop)")

    def save(self, found: Record) -> None:
        """The record first; a disk that does not keep it ends the sweep, saying so."""
        try:
            record.write(self.sweep_dir, found)
        except OSError as error:
            raise StopSweep(f"a record could not be written, the sweep stops: {error}") from error
        self.result.outcomes[found.cell_id] = worst(
            self.result.outcomes.get(found.cell_id), found.outcome
        )
        self.result.timed_s += estimate.timed_ns(found.samples) / 1e9
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


def environment_root() -> Path:
    return Path(__file__).resolve().parents[1]


def point_latest(sweep_dir: Path) -> None:
    """outputs/latest -> this sweep, replaced in one step."""
    link = sweep_dir.parent / "latest"
    fresh = sweep_dir.parent / f".latest-{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(sweep_dir.name)
    fresh.replace(link)
