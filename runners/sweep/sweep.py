"""The sweep: jobs -> launches -> records. Torch-free, no Hydra."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from moe.spec import RankLayout
from runners.host import environment
from runners.host.timeout import call_with_timeout
from runners.launch.local import Start, start
from runners.launch.remote import NoNodes
from runners.plan import Job, LaunchPlan, groups, waves
from runners.records import calibrations, record, stats
from runners.records.record import Record
from runners.records.sweep_folder import MISSING_EMULATED
from runners.sweep import folder
from runners.sweep.activity import RankStage
from runners.sweep.launch import Launch, LaunchContext, cached_calibration, to_calibrate
from runners.sweep.parts import LaunchWork
from runners.sweep.progress import Progress
from runners.sweep.recover import recover
from runners.sweep.result import SweepResult
from runners.sweep.settings import Settings
from runners.sweep.state import SweepState
from runners.track.client import run_tracker

BULK_S = 600.0  # to read or write files of all cells
MAX_RESTARTS = 3
BLAMELESS_LAUNCHES = 3  # launches that may fail outside any cell before the group's jobs fail


class StopSweep(Exception):
    """Ends the sweep; what was written stays."""


class Sweep:
    """Runs jobs group by group; records are written before anything else happens."""

    def __init__(
        self,
        jobs: list[Job],
        settings: Settings,
        progress: Progress,
        start: Start = start,
        nodes: Sequence[dict[str, Any]] = (),
    ) -> None:
        """`nodes` are facts of the machines that may measure; by default of this one."""
        self.state = SweepState(jobs, settings, nodes)
        self.settings, self.progress, self.start = settings, progress, start
        self.on_measured: Callable[[], None] = lambda: None  # called after the last record
        self.launches = 0
        self.max_restarts, self.restarts = MAX_RESTARTS, 0  # after a node was lost
        self.resume_words = f"resume={settings.sweep_dir}"  # by which a sweep goes on
        if settings.emulated:
            self.resume_words = f"a sweep of {MISSING_EMULATED}"
        self.calibration_dir = calibrations.folder_of(settings.sweep_dir)
        self._fingerprints: dict[str, str] = {}

    @property
    def result(self) -> SweepResult:
        return self.state.result

    def fingerprint(self, device: str) -> str:
        """Of this machine, for the calibrations of launches on that device."""
        if device not in self._fingerprints:
            facts = self.state.facts
            facts = environment.with_gpus(facts) if device.startswith("cuda") else facts
            self._fingerprints[device] = environment.fingerprint(facts)
        return self._fingerprints[device]

    def next_launch(self) -> int:
        self.launches += 1
        return self.launches - 1

    def run(self) -> SweepResult:
        """Runs all launches; interrupts and disk errors end it, and are in the result."""
        began = time.monotonic()
        try:
            self._prepare()
            launches = self._launches()
            for later, jobs in zip(reversed(range(len(launches))), launches, strict=True):
                self._run_group(jobs, later)
        except KeyboardInterrupt:
            self.result.interrupted = True
        except StopSweep as stop:
            self.result.warnings.append(str(stop))
        except NoNodes as error:
            self.result.warnings.append(f"{error}; {self.resume_words} goes on")
        except OSError as error:
            self.result.broken = True
            self.result.warnings.append(f"{error}; the sweep stops, earlier records are kept")
        finally:
            self.progress.end()
        self.state.close()
        self.result.wall_s = time.monotonic() - began
        return self.result

    def _prepare(self) -> None:
        """What comes before the first launch."""
        if self.settings.resume_mode:
            self._resume(self.settings.resume_mode)
        call_with_timeout("the sweep's folder", self.write_plan, BULK_S)
        self._begin_progress(self._launches())

    def write_plan(self) -> None:
        self.result.warnings += folder.write_plan(self.state.jobs, self.settings)

    def _launches(self) -> list[list[Job]]:
        """The jobs of every remaining launch."""
        return [
            jobs
            for group in groups(self.state.jobs, self.settings.isolation)
            for number in range(group.measure.launches)
            if (jobs := [job for job in group.jobs if self.state.left[job.cell_id] > number])
        ]

    def _begin_progress(self, launches: list[list[Job]]) -> None:
        left = self.state.left
        self.progress.begin(
            sum(left.values()),
            [job for job in self.state.jobs if left[job.cell_id]],
            self._work(launches),
            tracked=self.settings.tracker.get("mode") != "disabled",
        )

    def _work(self, launches: list[list[Job]]) -> list[LaunchWork]:
        """What the duration of the launches depends on; the first of ranks that are alike
        calibrates."""
        calibrated: dict[RankLayout, bool] = {}
        work = []
        for jobs in launches:
            measure, place = jobs[0].measure, jobs[0].cell.placement
            if place not in calibrated:
                fingerprint = self.fingerprint(place.device)
                known = cached_calibration(self.calibration_dir, fingerprint, place)
                calibrated[place] = known is not None
            calibrates = to_calibrate(measure, place, {} if calibrated[place] else None)
            calibrated[place] |= calibrates
            cells = tuple(map(len, waves(jobs, measure.wave_cells)))
            work.append(LaunchWork(measure, place, cells, calibrates))
        return work

    def _resume(self, mode: str) -> None:
        """Takes over the folder's records, after recovering those of a dead launcher."""
        jobs = {job.cell_id: job for job in self.state.jobs}
        call_with_timeout("the sweep's folder", lambda: self._recover(jobs), BULK_S)
        past = call_with_timeout("the sweep's folder", self.state.read_past, BULK_S)
        self.launches = past.next_launch
        self.progress.print_line(self.state.resume(past, mode))
        self.track([one for attempts in past.records.values() for one in attempts])

    def _recover(self, jobs: Mapping[str, Job]) -> None:
        for one in self.recovered(jobs):
            record.write(self.settings.sweep_dir, one)

    def recovered(self, jobs: Mapping[str, Job]) -> Iterable[Record]:
        """Records made of what a dead launcher's ranks have written."""
        return recover(self.settings.sweep_dir, jobs, self.result.warnings.append)

    def _run_group(self, pending: list[Job], later: int) -> None:
        """Launches a group, and again when ranks die, each time without the cell that was the
        cause. A launch that was ended for silence is not repeated: it would cost its limit again.
        `later` launches are still to come.
        """
        blameless = 0
        while pending:
            device = pending[0].cell.placement.device
            launch = Launch(self.context(last=not later, device=device), self, pending)
            self.progress.begin_launch(launch.plan, later)
            outcome = launch.run()
            pending = outcome.pending
            give_up = False
            excused = outcome.interrupted or outcome.node_lost
            if outcome.failed_cell is None and pending and not excused:
                blameless = 1 if outcome.recorded else blameless + 1
                give_up = blameless >= BLAMELESS_LAUNCHES or outcome.silent
            if give_up:
                launch.fail_pending()
            self.result.failures += outcome.failures
            if outcome.interrupted:
                raise KeyboardInterrupt
            if outcome.node_lost and pending:
                self._count_restart(outcome.message)
            if give_up:
                return
            if self.settings.on_error == "stop" and self.result.failures:
                raise StopSweep("stopped at the first failed cell (on_error=stop)")

    def _count_restart(self, reason: str) -> None:
        """A lost node fails no cell: the launch is made again, `max_restarts` times at most."""
        self.restarts += 1
        if self.restarts > self.max_restarts:
            raise StopSweep(
                f"{reason}; allowed are {self.max_restarts} new starts of launches after that; "
                f"{self.resume_words} goes on"
            )
        self.progress.print_line(f"{reason}; starting again")

    def context(self, last: bool = False, device: str = "cpu") -> LaunchContext:
        """For the next launch, on that device."""
        return LaunchContext(
            number=self.next_launch(),
            sweep_dir=self.settings.sweep_dir,
            start=self.start,
            calibration_dir=self.calibration_dir,
            fingerprint=self.fingerprint(device),
            git=self.state.git,
            kernels=self.state.kernels,
            exchanged=self.state.exchanged,
            pass_env=self.settings.pass_env,
            last=last,
            interrupted=lambda: self.result.interrupted,
        )

    # The methods of RecordSink.

    def save(self, one: Record) -> None:
        """Writes the record first; OSError from a failing disk ends the sweep."""
        sweep_dir = self.settings.sweep_dir
        self.progress.show_live("writing records")
        call_with_timeout("the sweep's folder", lambda: record.write(sweep_dir, one))
        self.state.add(one)
        self.result.timed_s += stats.timed_ns(one.samples) / 1e9
        self.progress.cell_done(one)

    def track(self, records: list[Record]) -> None:
        """Runs the tracker while the ranks sleep; its failures cost a warning."""
        ids = [one.attempt_id for one in records if one.outcome != "interrupted"]
        tracker = self.settings.tracker
        limit_s = float(tracker.get("limit_s", 120))
        if tracker.get("mode") != "disabled":
            self.progress.show_live("writing W&B runs")
        done = run_tracker(self.settings.sweep_dir, ids, tracker, limit_s)
        self.result.tracked += done.runs
        self.result.sync_command = done.sync_command or self.result.sync_command
        if done.warning and done.warning not in self.result.warnings:
            self.result.warnings.append(done.warning)

    def report(self, plan: LaunchPlan, at: RankStage) -> None:
        self.progress.update(plan, at)

    def all_measured(self) -> None:
        self.progress.end()  # tables may be printed from here on
        self.on_measured()
