"""Runs one launch, from its plan to its records. Torch-free."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from moe.spec import RankLayout
from runners.config.memory import fits_together
from runners.host.timeout import call_with_timeout
from runners.launch.local import RunningLaunch, Start
from runners.plan import Job, LaunchPlan, Measure, engine_and_ranks, waves
from runners.records import calibrations, record, routing_trace
from runners.records.record import Record
from runners.sweep import failure
from runners.sweep.activity import RankStage
from runners.sweep.assemble import Assembler

POLL_S = 0.2
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STALL_MARGIN_S = 90.0  # beyond a cell's limit, before the launcher ends a silent launch


@dataclass(frozen=True)
class LaunchContext:
    """What a launch needs from its sweep."""

    number: int
    sweep_dir: Path
    start: Start
    calibration_dir: Path
    fingerprint: str  # of this machine and the launch's device, for its calibrations
    git: dict[str, Any] | None
    kernels: dict[str, str]  # chosen in earlier launches, by kernel_key
    exchanged: Mapping[tuple[str, int], dict[str, int]]  # largest messages that are exchanged
    pass_env: tuple[str, ...] = ()
    last: bool = False  # the last launch of the sweep
    interrupted: Callable[[], bool] = lambda: False  # whether the sweep is to end


class RecordSink(Protocol):
    """Receives a launch's records and progress."""

    def save(self, one: Record) -> None: ...

    def track(self, records: list[Record]) -> None: ...

    def report(self, plan: LaunchPlan, at: RankStage) -> None: ...

    def all_measured(self) -> None:
        """Called when the last record of the last launch is on disk."""


@dataclass
class LaunchOutcome:
    """How a launch ended."""

    pending: list[Job] = field(default_factory=list)  # too few samples, but not at fault
    failed_cell: int | None = None  # position of the cell that ended the launch
    recorded: bool = False  # some wave came to its end
    silent: bool = False  # ended by the launcher, as no rank wrote a line
    interrupted: bool = False
    node_lost: bool = False
    message: str = ""  # why it ended early
    log: Path | None = None
    failures: list[tuple[str, str, str]] = field(default_factory=list)  # cell, message, log


class Launch:
    """One set of ranks, followed from start to end."""

    def __init__(self, context: LaunchContext, sink: RecordSink, jobs: list[Job]) -> None:
        self.context, self.sink, self.jobs = context, sink, jobs
        self.calibration = self._cached_calibration()
        self.plan = self._plan()
        self.lines = Assembler(self.plan, jobs, context.sweep_dir.name)
        self.outcome = LaunchOutcome()
        self.recorded: set[int] = set()  # numbers of waves with records
        self.silent_s = 0.0  # time without a new line, if the launcher ended the launch for it

    def _cached_calibration(self) -> dict[str, Any] | None:
        place = self.jobs[0].cell.placement
        return cached_calibration(self.context.calibration_dir, self.context.fingerprint, place)

    def _plan(self) -> LaunchPlan:
        measure, context = self.jobs[0].measure, self.context
        split = waves(self.jobs, measure.wave_cells)
        return LaunchPlan(
            launch=context.number,
            launch_dir=str(context.sweep_dir.resolve() / "launches" / str(context.number)),
            measure=measure,
            placement=self.jobs[0].cell.placement,
            cells=[job.cell for job in self.jobs],
            labels=[job.label for job in self.jobs],
            waves=split,
            resident=[fits_together([self.jobs[index] for index in wave]) for wave in split],
            calibrate=to_calibrate(measure, self.jobs[0].cell.placement, self.calibration),
            kernels=context.kernels,
            git=context.git,
            calibration=self.calibration,
            exchanged=context.exchanged.get(engine_and_ranks(self.jobs[0].cell)),
            pass_env=list(context.pass_env),
            traces={
                trace.sha256: routing_trace.file_name(trace.sha256) for trace in self._traces()
            },
        )

    def _traces(self) -> list[routing_trace.Trace]:
        return [job.trace for job in self.jobs if job.trace]

    def run(self) -> LaunchOutcome:
        """Starts the ranks and follows them to their end."""
        folder = Path(self.plan.launch_dir)
        traces = self._traces()
        call_with_timeout("the launch's folder", lambda: routing_trace.freeze(traces, folder))
        with stop_on_interrupt(folder / "stop") as signalled:
            started = self.context.start(self.plan)
            try:
                self._poll(started, lambda: signalled() or self._stopped_by_sweep())
            finally:
                started.end()
        self.outcome.interrupted = signalled() or self.context.interrupted()
        self.outcome.node_lost = bool(started.lost_node())
        self._read_lines()
        self._finish_waves(started)
        self._record_unfinished(started)
        self.outcome.recorded, self.outcome.silent = bool(self.recorded), self.silent_s > 0
        return self.outcome

    def _stopped_by_sweep(self) -> bool:
        """Whether the sweep is to end; the ranks' stop file then exists."""
        if not self.context.interrupted():
            return False
        stop = Path(self.plan.launch_dir) / "stop"
        call_with_timeout("the launch's folder", stop.touch)
        return True

    def _read_lines(self) -> None:
        call_with_timeout("the ranks' files", self.lines.update)

    def _poll(self, started: RunningLaunch, stop_requested: Callable[[], bool]) -> None:
        """Polls until the ranks end. After an interrupt a launch without samples is ended at once;
        another ends its round first."""
        limit_s = self.plan.measure.cell_limit_s + STALL_MARGIN_S
        last_line_at = time.monotonic()
        while started.running():
            time.sleep(POLL_S)
            before = [rank.reader.offset for rank in self.lines.ranks]
            self._read_lines()
            if before != [rank.reader.offset for rank in self.lines.ranks]:
                last_line_at = time.monotonic()
            self.sink.report(self.plan, self.lines.ranks[0].progress)
            if self._finish_waves(started):
                last_line_at = time.monotonic()
            if time.monotonic() - last_line_at > limit_s:
                self.silent_s = limit_s
                started.end()
            if stop_requested() and not self.lines.has_samples():
                started.end()

    def _finish_waves(self, started: RunningLaunch) -> bool:
        """Records and tracks every wave that has ended, then lets the ranks continue."""
        finished = False
        for number, wave in enumerate(self.plan.waves):
            if number in self.recorded or not self.lines.wave_ended(number):
                continue
            self.recorded.add(number)
            self._store_calibration()
            records = [self._record(index, number, started) for index in wave]
            self._save(records)
            if self.context.last and len(self.recorded) == len(self.plan.waves):
                self.sink.all_measured()
            self.sink.track(records)
            self.lines.free_wave(number)
            go = Path(self.plan.launch_dir) / f"go-{number}"
            call_with_timeout("the launch's folder", go.touch)
            finished = True
        return finished

    def _save(self, records: list[Record]) -> None:
        for one in records:
            one.environment["git"] = self.context.git
            self.sink.save(one)

    def _store_calibration(self) -> None:
        measured = self.lines.ranks[0].launch.get("calibration")
        if self.calibration is None and measured:
            measured["fingerprint"] = self.context.fingerprint
            self.calibration = calibrations.store(self.context.calibration_dir, measured)

    def _record_unfinished(self, started: RunningLaunch) -> None:
        """After an early end: the cell that caused it fails, the others keep their samples; those
        without enough samples are pending."""
        unrecorded = [
            (number, index)
            for number, wave in enumerate(self.plan.waves)
            if number not in self.recorded
            for index in wave
        ]
        if not unrecorded:
            return
        cause = call_with_timeout(
            "the ranks' logs", lambda: failure.find(self.lines, started, self.silent_s)
        )
        self.outcome.message, self.outcome.log = cause.message, started.log_path(cause.rank)
        if cause.cell >= 0 and not self.outcome.interrupted:
            self.outcome.failed_cell = cause.cell
        records = []
        for number, index in unrecorded:
            one = self._record(index, number, started)
            if index == self.outcome.failed_cell and not one.error:
                self._fail(one, cause.rank)
            elif one.outcome == "interrupted":
                self.outcome.pending.append(self.jobs[index])
            if one.samples.round or one.outcome != "interrupted":
                records.append(one)
        self._save(records)
        self.sink.track(records)

    def _record(self, index: int, wave: int, started: RunningLaunch) -> Record:
        """The record of a cell; one that failed without ending the launch is among the failures."""
        one = self.lines.record(index, wave, self.calibration)
        if one.error:
            rank = one.error["rank"]
            self._name_failure(one, one.error["message"], rank, started.log_path(rank))
        return one

    def _fail(self, one: Record, rank: int) -> None:
        """The cell ended the launch."""
        assert self.outcome.log is not None
        one.outcome = "failed"
        self._name_failure(one, self.outcome.message, rank, self.outcome.log)

    def _name_failure(self, one: Record, message: str, rank: int, path: Path) -> None:
        sweep_dir = self.context.sweep_dir
        log = str(path.relative_to(sweep_dir.resolve()))
        one.error = {"message": message, "rank": rank, "log": log}
        self.outcome.failures.append((one.cell_id, message, str(sweep_dir / log)))

    def fail_pending(self) -> None:
        """Fails the pending jobs: their launches die before any cell is entered."""
        for job in self.outcome.pending:
            one = self.lines.record(self.jobs.index(job), 0, None)
            self._fail(one, 0)
            one.samples = record.Samples()
            self.sink.save(one)


def cached_calibration(folder: Path, fingerprint: str, place: RankLayout) -> dict[str, Any] | None:
    """The calibration of ranks like these on this machine, if there is one."""
    if place.staged:
        return None
    return calibrations.load_cached(
        folder, fingerprint, place.world_size, place.threads, place.backend, place.nodes
    )


def to_calibrate(measure: Measure, place: RankLayout, known: Mapping[str, Any] | None) -> bool:
    """Whether a launch calibrates: never for cells that are checked and not timed."""
    return measure.calibrate and known is None and not place.staged


def stop_on_interrupt(
    stop_file: Path,
) -> contextlib.AbstractContextManager[Callable[[], bool]]:
    """The first interrupt asks the ranks, by their stop file, to end after the round."""

    def touch() -> None:
        with contextlib.suppress(OSError):  # _poll ends ranks without samples anyway
            stop_file.touch()

    return on_interrupt(touch)


@contextlib.contextmanager
def on_interrupt(call: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """The first SIGINT, SIGTERM or SIGHUP makes the call, in a thread of its own; the second raises
    KeyboardInterrupt. Yields whether there was one. Outside of the main thread there never is."""
    interrupted = False

    def handle(signum: int, frame: object) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True
        threading.Thread(target=call, daemon=True).start()  # a hung disk must not block here

    previous: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not the main thread: the caller handles signals
        for number in STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup's choice is the user's
                previous[number] = signal.signal(number, handle)
    try:
        yield lambda: interrupted
    finally:
        for taken, handler in previous.items():
            signal.signal(taken, handler)
