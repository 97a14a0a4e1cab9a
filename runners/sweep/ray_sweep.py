"""A sweep on a cluster with Ray: the cells of a shape share a placement group.

Shapes that the cluster has room for are measured at once, on nodes of their own; the others wait.
This process makes the records and runs the tracker.
"""

from __future__ import annotations

import contextlib
import threading
import time

from runners.host import environment
from runners.host.timeout import call_with_timeout
from runners.launch.ray_cluster import RayCluster
from runners.launch.ray_group import RayGroup
from runners.launch.remote import NodeLost
from runners.plan import Job, LaunchPlan, by_shape, unique
from runners.records.record import Record
from runners.sweep import folder
from runners.sweep.activity import RankStage
from runners.sweep.launch import on_interrupt
from runners.sweep.progress import Progress
from runners.sweep.result import SweepResult
from runners.sweep.settings import Settings
from runners.sweep.shape_sweep import ShapeSweep
from runners.sweep.sweep import BULK_S

JOIN_S = 0.2
LAST_S = 30.0  # for records, after the nodes were given back


class SharedProgress(Progress):
    """One display of sweeps that run at once."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()

    def end_all(self) -> None:
        super().end()

    def end(self) -> None:
        """Of one sweep; the others go on."""

    def begin_launch(self, plan: LaunchPlan, later: int) -> None:
        """Launches are not counted: several run at once."""

    def print_line(self, text: str) -> None:
        with self._lock:
            super().print_line(text)

    def update(self, plan: LaunchPlan, at: RankStage) -> None:
        with self._lock:
            super().update(plan, at)

    def show(self, text: str, at_once: bool = False) -> None:
        with self._lock:
            super().show(text, at_once)

    def show_live(self, text: str) -> None:
        with self._lock:
            super().show_live(text)

    def cell_done(self, record: Record) -> None:
        with self._lock:
            super().cell_done(record)


class RayShapeSweep(ShapeSweep):
    """The cells of one shape, on a placement group of their own."""

    def __init__(
        self,
        jobs: list[Job],
        settings: Settings,
        progress: SharedProgress,
        cluster: RayCluster,
        interface: str,
    ) -> None:
        self.group = RayGroup(
            cluster, jobs[0].cell.placement, interface, lambda: self.result.interrupted,
            progress.print_line,
        )  # fmt: skip
        super().__init__(jobs, settings, progress, self.group, cluster.facts())
        self.max_restarts = cluster.options.max_restarts
        self.resume_words += " hydra/launcher=ray"

    def fingerprint(self, device: str) -> str:
        """Of the node that will have rank 0, which is taken now."""
        with contextlib.suppress(NodeLost):  # the start of the launch will say so
            self.group.place()
        return environment.fingerprint(self.group.facts)

    def resume(self) -> int:
        """Takes over the folder's records, before any shape is measured. Returns the number of
        attempts that are left."""
        if self.settings.resume_mode:
            self._resume(self.settings.resume_mode)
        return sum(self.state.left.values())

    def _prepare(self) -> None:
        """RaySweep has done it for all shapes."""

    def run(self) -> SweepResult:
        try:
            return super().run()
        finally:
            self.group.release()


class RaySweep:
    """All shapes of a sweep."""

    def __init__(
        self,
        jobs: list[Job],
        settings: Settings,
        cluster: RayCluster,
        interface: str,
    ) -> None:
        """Raises ConfigError where the cluster's nodes cannot run this project."""
        self.jobs, self.settings, self.progress = unique(jobs), settings, SharedProgress()
        self.result = SweepResult(settings.sweep_dir)
        self.sweeps = [
            RayShapeSweep(part, settings, self.progress, cluster, interface)
            for part in by_shape(self.jobs).values()
        ]
        self._errors: list[BaseException] = []

    def run(self) -> SweepResult:
        """Measures all shapes. The first interrupt ends each after its round, the second now."""
        began = time.monotonic()
        try:
            self.result.warnings += call_with_timeout(
                "the sweep's folder", lambda: folder.write_plan(self.jobs, self.settings), BULK_S
            )
            left = sum(sweep.resume() for sweep in self.sweeps)
        except OSError as error:
            self.result.broken = True
            self.result.warnings.append(f"{error}; nothing was measured")
            return self.result
        self.progress.begin(left, self.jobs)
        threads = [
            threading.Thread(target=self._run, args=(sweep,), daemon=True) for sweep in self.sweeps
        ]
        try:
            with on_interrupt(self._interrupt) as interrupted:
                for thread in threads:
                    thread.start()
                while any(thread.is_alive() for thread in threads):
                    time.sleep(JOIN_S)
                self.result.interrupted = interrupted()
        except KeyboardInterrupt:
            self.result.interrupted = True
            for sweep in self.sweeps:
                sweep.group.release()
            for thread in threads:
                thread.join(LAST_S)
        finally:
            self.progress.end_all()
        if self._errors:
            raise self._errors[0]
        for sweep in self.sweeps:
            self._collect(sweep.result)
        self.result.wall_s = time.monotonic() - began
        return self.result

    def _run(self, sweep: RayShapeSweep) -> None:
        try:
            result = sweep.run()
        except BaseException as error:
            self._errors.append(error)
            self._interrupt()
        else:
            if self.settings.on_error == "stop" and result.failures:
                self._interrupt()

    def _interrupt(self) -> None:
        for sweep in self.sweeps:
            sweep.interrupt()

    def _collect(self, part: SweepResult) -> None:
        whole = self.result
        whole.outcomes |= part.outcomes
        whole.failures += part.failures
        whole.warnings += [text for text in part.warnings if text not in whole.warnings]
        whole.timed_s += part.timed_s
        whole.tracked += part.tracked
        whole.sync_command = part.sync_command or whole.sync_command
        whole.broken |= part.broken
