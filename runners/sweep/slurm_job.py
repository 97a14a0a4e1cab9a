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
from pathlib import Path

from runners.launch import srun
from runners.sweep import allocation, resume
from runners.sweep.progress import Progress
from runners.sweep.result import SweepResult
from runners.sweep.shape_sweep import ShapeSweep, file_lock


def run(sweep_dir: Path, group: str) -> SweepResult:
    """Measures the group's cells; raises ConfigError where another process does."""
    jobs, settings, interface = allocation.load(sweep_dir, group)
    addresses = srun.node_addresses(os.environ["SLURM_JOB_NODELIST"])
    with (
        file_lock(sweep_dir / resume.LOCK, fcntl.LOCK_SH),  # against a sweep outside of Slurm
        resume.locked(sweep_dir / allocation.FOLDER / group),
    ):
        allocation.result_path(sweep_dir, group).unlink(missing_ok=True)
        sweep = ShapeSweep(jobs, settings, Progress())
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
