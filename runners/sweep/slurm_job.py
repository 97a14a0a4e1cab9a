"""The part of a sweep that one allocation of Slurm measures, run by its batch script.

    python -m runners.sweep.slurm_job SWEEP_DIR GROUP

It runs on the allocation's first node: makes records, runs the tracker, and starts the ranks of all
nodes with srun: the batch script is the ranks' parent, without torchrun's agent. Started again
after a preemption or a time-out, it measures what is missing.
Several allocations write into one folder, so each has its own cells, launches and lock.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from runners.launch import srun
from runners.plan import Job, load
from runners.records.record import Record
from runners.sweep import allocation, recover, resume
from runners.sweep.progress import Progress
from runners.sweep.result import SweepResult
from runners.sweep.sweep import Sweep

TRACK_LOCK = "track.lock"


class AllocationSweep(Sweep):
    """A sweep over some of a folder's cells, concurrent with others."""

    def next_launch(self) -> int:
        """Takes an unused number, by creating its folder."""
        while True:
            number = super().next_launch()
            try:
                (self.settings.sweep_dir / "launches" / str(number)).mkdir(parents=True)
                return number
            except FileExistsError:
                continue

    def write_plan(self) -> None:
        """Written by the process that queued the allocation."""

    def recovered(self, jobs: Mapping[str, Job]) -> Iterator[Record]:
        """Only of this allocation's launches: others may be running."""
        sweep_dir = self.settings.sweep_dir
        for path in sorted(sweep_dir.glob("launches/*/launch.json")):
            try:
                plan = load(path)
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if plan.placement in {job.cell.placement for job in self.state.jobs}:
                yield from recover.of_launch(sweep_dir, path, plan, jobs)

    def track(self, records: list[Record]) -> None:
        """One tracker at a time writes to a folder."""
        own = [one for one in records if one.cell_id in self.state.left]
        with file_lock(self.settings.sweep_dir / allocation.FOLDER / TRACK_LOCK, fcntl.LOCK_EX):
            super().track(own)

    def interrupt(self) -> None:
        self.result.interrupted = True


@contextmanager
def file_lock(path: Path, kind: int) -> Iterator[None]:
    """Waits for the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, kind)
        yield


def run(sweep_dir: Path, group: str) -> SweepResult:
    """Measures the group's cells; raises ConfigError where another process does."""
    jobs, settings, interface = allocation.load(sweep_dir, group)
    addresses = srun.node_addresses(os.environ["SLURM_JOB_NODELIST"])
    with (
        file_lock(sweep_dir / resume.LOCK, fcntl.LOCK_SH),  # against a sweep outside of Slurm
        resume.locked(sweep_dir / allocation.FOLDER / group),
    ):
        allocation.result_path(sweep_dir, group).unlink(missing_ok=True)
        sweep = AllocationSweep(jobs, settings, Progress())
        sweep.start = srun.SrunStart(addresses, interface, sweep.interrupt)
        result = sweep.run()
        if not result.interrupted:
            allocation.save_result(sweep_dir, group, result)
    return result


class Allocation:
    """The callable that submitit runs in the batch script, also after a preemption.

    submitit's own pickle of it holds the names of the folder and the group only.
    """

    def __init__(self, sweep_dir: str, group: str) -> None:
        self.sweep_dir, self.group = sweep_dir, group

    def __call__(self) -> int:
        return run(Path(self.sweep_dir), self.group).exit_code

    def checkpoint(self) -> object:
        """The job to queue again: the same one, since what was measured is on disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]).resolve(), sys.argv[2]).exit_code)
