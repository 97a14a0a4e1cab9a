"""One launch followed from its plan to its records. Torch-free."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners.config.memory import fits_together
from runners.host.timeout import call_with_timeout
from runners.launch.local import Started
from runners.plan import Job, LaunchPlan, engine_and_ranks, waves
from runners.records import calibrations, record, routing_trace
from runners.records.record import Record
from runners.sweep import failure
from runners.sweep.assemble import Assembler

if TYPE_CHECKING:
    from runners.sweep.sweep import Sweep

POLL_S = 0.2
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STALL_MARGIN_S = 90.0  # beyond a cell's limit, before the launcher itself ends a silent launch


class StopSweep(Exception):
    """Ends the sweep; what was written stays."""


class Launch:
    """One start of a set of ranks, followed until it has ended."""

    def __init__(self, sweep: Sweep, jobs: list[Job], last: bool = False) -> None:
        self.sweep, self.jobs, self.last = sweep, jobs, last
        self.number = sweep.next_launch()
        self.blamed: int | None = None
        self.calibration = self._cached_calibration()
        self.plan = self._plan()
        self.lines = Assembler(self.plan, jobs, sweep.sweep_dir.name)
        self.written: set[int] = set()
        self.silent_s = 0.0  # without a word, when the launcher ended it

    def _cached_calibration(self) -> dict[str, Any] | None:
        place = self.jobs[0].cell.placement
        return calibrations.load_cached(
            self.sweep.calibration_dir,
            self.sweep.fingerprint,
            place.world_size,
            place.threads,
            place.backend,
            place.nodes,
        )

    def _plan(self) -> LaunchPlan:
        measure = self.jobs[0].measure
        split = waves(self.jobs, measure.wave_cells)
        return LaunchPlan(
            launch=self.number,
            launch_dir=str(self.sweep.sweep_dir.resolve() / "launches" / str(self.number)),
            measure=measure,
            placement=self.jobs[0].cell.placement,
            cells=[job.cell for job in self.jobs],
            labels=[job.request.label for job in self.jobs],
            waves=split,
            resident=[fits_together([self.jobs[index] for index in wave]) for wave in split],
            calibrate=measure.calibrate and self.calibration is None,
            kernels=self.sweep.kernels,
            git=self.sweep.git,
            calibration=self.calibration,
            exchanged=self.sweep.exchanged.get(engine_and_ranks(self.jobs[0].cell)),
            pass_env=list(self.sweep.settings.pass_env),
            traces={
                trace.sha256: routing_trace.file_name(trace.sha256) for trace in self._traces()
            },
        )

    def _traces(self) -> list[routing_trace.Trace]:
        return [job.request.trace for job in self.jobs if job.request.trace]

    def run(self) -> list[Job]:
        """Follows the ranks to their end; returns the jobs that still have to be measured."""
        folder = Path(self.plan.launch_dir)
        call_with_timeout(
            "the launch's folder", lambda: routing_trace.freeze(self._traces(), folder)
        )
        with stop_on_interrupt(folder / "stop") as asked:
            started = self.sweep.start(self.plan)
            try:
                self._follow(started, asked)
            finally:
                started.end()
        self.sweep.result.interrupted |= asked()
        self._read()
        self._finish_waves()
        pending = self._account(started)
        if self.sweep.result.interrupted:
            raise KeyboardInterrupt
        return pending

    def _read(self) -> None:
        call_with_timeout("the ranks' files", self.lines.update)

    def _follow(self, started: Started, asked: Callable[[], bool]) -> None:
        """To the end of the ranks. A launch that has no sample to lose ends as soon as the user
        asks; another ends its round first."""
        limit_s = self.plan.measure.cell_limit_s + STALL_MARGIN_S
        heard = time.monotonic()
        while started.running():
            time.sleep(POLL_S)
            before = [rank.reader.offset for rank in self.lines.ranks]
            self._read()
            if before != [rank.reader.offset for rank in self.lines.ranks]:
                heard = time.monotonic()
            first = self.lines.ranks[0]
            self.sweep.progress.update(
                self.plan, self.number, first.cell, first.stage, first.rounds
            )
            if self._finish_waves():
                heard = time.monotonic()
            if time.monotonic() - heard > limit_s:
                self.silent_s = limit_s
                started.end()
            if asked() and not self.lines.sampled():
                started.end()

    def _finish_waves(self) -> bool:
        """Records and tracks every wave that has ended, then lets the ranks go on."""
        finished = False
        for number, wave in enumerate(self.plan.waves):
            if number in self.written or not self.lines.wave_ended(number):
                continue
            self.written.add(number)
            self._keep_calibration()
            found = [self.lines.record(index, number, self.calibration) for index in wave]
            self._save(found)
            if self.last and len(self.written) == len(self.plan.waves):
                self.sweep.progress.end()  # what is said now may be tables
                self.sweep.when_measured()
            self.sweep.track(found)
            self.lines.forget(number)
            call_with_timeout(
                "the launch's folder", (Path(self.plan.launch_dir) / f"go-{number}").touch
            )
            finished = True
        return finished

    def _save(self, found: list[Record]) -> None:
        for one in found:
            one.environment["git"] = self.sweep.git
            self.sweep.save(one)

    def _keep_calibration(self) -> None:
        measured = self.lines.ranks[0].launch.get("calibration")
        if self.calibration is None and measured:
            measured["fingerprint"] = self.sweep.fingerprint
            self.calibration = calibrations.store(self.sweep.calibration_dir, measured)

    def _account(self, started: Started) -> list[Job]:
        """After the end: the cell that a death happened in fails, the others keep what they have;
        those without enough samples are pending."""
        left = [
            (number, index)
            for number, wave in enumerate(self.plan.waves)
            if number not in self.written
            for index in wave
        ]
        if not left:
            return []
        stopped = self.sweep.result.interrupted
        why = call_with_timeout(
            "the ranks' logs", lambda: failure.find(self.lines, started, self.silent_s)
        )
        self.blamed = why.cell if why.cell >= 0 and not stopped else None
        found, pending = [], []
        for number, index in left:
            one = self.lines.record(index, number, self.calibration)
            if index == self.blamed:
                self._fail(one, why.rank, why.message, started)
            elif one.outcome == "interrupted":
                pending.append(self.jobs[index])
            if one.samples.round or one.outcome in ("failed", "wrong"):
                found.append(one)
        self.last_message, self.last_log = why.message, started.log_path(why.rank)
        self._save(found)
        self.sweep.track(found)
        return pending

    def _fail(self, one: Record, rank: int, message: str, started: Started) -> None:
        log = str(started.log_path(rank).relative_to(self.sweep.sweep_dir.resolve()))
        one.outcome = "failed"
        one.error = {"message": message, "rank": rank, "log": log}
        self.sweep.result.failures.append((one.cell_id, message, str(self.sweep.sweep_dir / log)))

    def give_up(self, jobs: list[Job]) -> None:
        """Fails jobs whose launches die before any cell is entered."""
        log = str(self.last_log.relative_to(self.sweep.sweep_dir.resolve()))
        for job in jobs:
            one = self.lines.record(self.jobs.index(job), 0, None) if job in self.jobs else None
            if one is None:
                continue
            one.outcome, one.samples = "failed", record.Samples()
            one.error = {"message": self.last_message, "rank": 0, "log": log}
            self.sweep.save(one)
            self.sweep.result.failures.append((one.cell_id, self.last_message, log))


@contextlib.contextmanager
def stop_on_interrupt(stop_file: Path) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks the ranks, by their stop file, to end after the round; the second ends
    the launch at once. So do a polite kill and a terminal that closes."""
    asked = False

    def handle(signum: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        threading.Thread(target=touch, daemon=True).start()  # a dead disk must not wait

    def touch() -> None:
        with contextlib.suppress(OSError):  # the launcher ends ranks that have not begun
            stop_file.touch()

    previous: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not the main thread: the caller handles signals
        for number in STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup's choice is the user's
                previous[number] = signal.signal(number, handle)
    try:
        yield lambda: asked
    finally:
        for taken, handler in previous.items():
            signal.signal(taken, handler)
