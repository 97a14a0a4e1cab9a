"""A sweep on a cluster with Slurm: cells -> allocations -> records. Runs where jobs are queued.

Cells of one shape (nodes, ranks per node, backend, threads) share one allocation, which measures
all of them; other shapes get allocations of their own. So cells of a shape share start-up and are
interleaved, and a small shape does not hold the nodes of a large one. This process only watches: an
interrupt leaves the jobs running, and resuming the folder attaches to them again.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from runners.config.slurm_launcher import Slurm
from runners.errors import ConfigError
from runners.host import project_paths
from runners.host.machine import NodeResources
from runners.launch.srun import ask
from runners.plan import Job, by_shape, groups, waves
from runners.records import record
from runners.records.sealed import RecordError, write_atomic
from runners.sweep import allocation, folder
from runners.sweep.progress import Progress
from runners.sweep.result import SweepResult
from runners.sweep.settings import Settings
from runners.sweep.slurm_job import Allocation
from runners.sweep.state import SweepState

FOLDER = allocation.FOLDER
POLL_S = 2.0
START_S = 120.0  # a launch: imports, rendezvous, calibration
CELL_S = 20.0  # a cell: build, verification, choice of a kernel, warm-up
TRACK_S = 30.0  # a wave's records and runs
MARGIN = 2.0
LEAST_MIN = 10
SIGNAL_S = 60  # before its time limit a job gets a signal, and queues itself again
MEGA = 2**20


def slurm_options(launcher: Mapping[str, Any]) -> Slurm | None:
    """From Hydra's launcher node; None for any other launcher. Raises ConfigError."""
    if not str(launcher.get("_target_", "")).endswith(".SlurmLauncher"):
        return None
    names = {f.name for f in fields(Slurm)} - {"_target_"}
    values = {name: launcher[name] for name in names if name in launcher}
    for name in ("time_min", "max_requeues"):
        if type(values.get(name, 0)) is not int or values.get(name, 0) < 0:
            raise ConfigError(
                f"hydra.launcher.{name}={values[name]!r}: allowed are whole numbers from 0; "
                f"set hydra.launcher.{name} to one of them"
            )
    return Slurm(**values)


def machine(slurm: Slurm) -> NodeResources:
    """Least resources of the partition's nodes, and their number; raises ConfigError."""
    command = ["sinfo", "--noheader", "--Node", "--exact", "--format=%N|%c|%m|%G"]
    command += [f"--partition={slurm.partition}"] if slurm.partition else []
    try:
        rows = [line.split("|") for line in ask(*command).splitlines()]
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"hydra/launcher=slurm: sinfo does not answer ({error}); allowed where Slurm's "
            "commands work; start it on a login node, or use hydra/launcher=moe"
        ) from error
    if not rows:
        raise ConfigError(
            f"hydra.launcher.partition={slurm.partition}: it has no nodes; `sinfo` lists those "
            "that do"
        )
    memory = min(int(row[2].rstrip("+")) for row in rows)  # 1 where it is not configured
    return NodeResources(
        cores=min(int(row[1].rstrip("+")) for row in rows),
        cuda_devices=min(gpus_of(row[3]) for row in rows),
        nodes=len({row[0] for row in rows}),
        memory_bytes=memory * MEGA if memory > 1 else 0,
    )


def gpus_of(gres: str) -> int:
    """Number of GPUs in a gres string: 8 in "gpu:h100:8(S:0-1),nvme:1"."""
    count = 0
    for one in gres.split(","):
        parts = one.partition("(")[0].split(":")
        if parts[0] == "gpu":
            count += int(parts[-1]) if parts[-1].isdigit() else 1
    return count


def time_limit_min(jobs: Sequence[Job], isolation: str, tracker_limit_s: float = TRACK_S) -> int:
    """Time limit in minutes: twice every wave to its wall limit, and every cell's preparation."""
    total_s = 0.0
    for group in groups(jobs, isolation):
        measure = group.measure
        launch_s = START_S
        for wave in waves(group.jobs, measure.wave_cells):
            launch_s += (measure.wall_limit_s + CELL_S) * len(wave) + min(tracker_limit_s, TRACK_S)
        total_s += measure.launches * launch_s
    return max(LEAST_MIN, -(-int(MARGIN * total_s) // 60))


def executor_parameters(slurm: Slurm, jobs: Sequence[Job], settings: Settings) -> dict[str, Any]:
    """Parameters of submitit's executor for one allocation."""
    place = jobs[0].cell.placement
    options: dict[str, Any] = {
        "job_name": f"moe-{settings.sweep_dir.name}"[:60],
        "time": slurm.time_min or time_limit_min(jobs, settings.isolation),
        "nodes": place.nodes,
        "ntasks_per_node": place.ranks_per_node,
        "use_srun": False,  # the batch script starts srun itself, once a launch
        "stderr_to_stdout": True,
        "setup": [*setup_commands(), *slurm.setup],
        "additional_parameters": {
            "requeue": True,
            "signal": f"B:USR2@{SIGNAL_S}",
            **slurm.extra,
        },
    }
    if slurm.exclusive:
        options["exclusive"] = True
    if place.device == "cuda":
        options["gpus_per_node"] = 1 if place.staged else place.ranks_per_node
    for name in ("partition", "account", "qos", "constraint", "nodelist"):
        if getattr(slurm, name):
            options[name] = getattr(slurm, name)
    return options


def setup_commands() -> list[str]:
    """Shell commands that let a job find our modules."""
    clone = project_paths.CLONE
    commands = [f"export PYTHONPATH={shlex.quote(str(clone))}:$PYTHONPATH"] if clone else []
    return ["export PYTHONSAFEPATH=1", *commands]


def submit(slurm: Slurm, group: str, jobs: Sequence[Job], settings: Settings) -> str:
    """Queues one allocation and returns its job id; raises ConfigError where it is refused."""
    try:
        import submitit
    except ImportError as error:
        raise ConfigError(
            "hydra/launcher=slurm: submitit is not installed; allowed where it is; "
            "in the clone: pip install -e '.[slurm]'"
        ) from error
    try:
        executor = submitit.SlurmExecutor(
            folder=settings.sweep_dir.resolve() / FOLDER / "jobs",
            max_num_timeout=slurm.max_requeues,
        )
        executor.update_parameters(**executor_parameters(slurm, jobs, settings))
        return str(executor.submit(Allocation(str(settings.sweep_dir.resolve()), group)).job_id)
    except (RuntimeError, ValueError, OSError, submitit.core.utils.FailedJobError) as error:
        raise ConfigError(
            f"hydra/launcher=slurm: the job of {group} was refused: {' '.join(str(error).split())}"
        ) from error


def unfinished_jobs(job_ids: Sequence[str]) -> set[str]:
    """Jobs that are queued or running; all of them where Slurm does not answer."""
    if not job_ids:
        return set()
    try:
        listed = ask("squeue", "--noheader", "--format=%i", "--states=all", "--me")
    except (OSError, subprocess.SubprocessError):
        return set(job_ids)
    ended = set(ended_jobs(job_ids))
    return {one for one in job_ids if one in set(listed.split()) and one not in ended}


def ended_jobs(job_ids: Sequence[str]) -> list[str]:
    """Jobs that Slurm still lists, but only as ended."""
    over = "BF,CA,CD,DL,F,NF,OOM,TO"
    listed = ask("squeue", "--noheader", "--format=%i", f"--states={over}", "--me")
    return [one for one in job_ids if one in listed.split()]


class SlurmSweep:
    """Queues missing cells and watches the jobs."""

    def __init__(
        self, jobs: list[Job], settings: Settings, progress: Progress, slurm: Slurm, interface: str
    ) -> None:
        self.state = SweepState(jobs, settings)
        self.settings, self.progress = settings, progress
        self.sweep_dir, self.result = settings.sweep_dir, self.state.result
        self.slurm, self.interface = slurm, interface
        self.queued: dict[str, str] = {}  # job id by group
        self.seen: set[Path] = set()

    def run(self) -> SweepResult:
        """Queues and watches to the end; an interrupt ends the watching, not the jobs."""
        began = time.monotonic()
        try:
            if self.settings.resume_mode:
                self._resume(self.settings.resume_mode)
            self.result.warnings += folder.write_plan(self.state.jobs, self.settings)
            left = self.state.left
            jobs = [job for job in self.state.jobs if left[job.cell_id]]
            self.progress.begin(sum(left.values()), jobs)
            self._queue()
            self._watch()
        except KeyboardInterrupt:
            self.result.interrupted = True
            self._print_attach_commands()
        finally:
            self.progress.end()
        self._collect_results()
        self.result.wall_s = time.monotonic() - began
        return self.result

    def _resume(self, mode: str) -> None:
        """Takes over what is measured; the allocation itself compares code and machine."""
        if mode not in ("missing", "failed"):
            raise ConfigError(
                f"resume_mode={mode}: allowed with hydra/launcher=slurm are missing and failed, "
                "since a job that is queued again must know what is done; choose one of them"
            )
        past = self.state.read_past()
        self.state.resume(past, mode)
        done = sum(not n for n in self.state.left.values())
        self.progress.print_line(f"resuming: {done} of {len(self.state.left)} cells are done")
        self.seen = set(record.paths(self.sweep_dir))

    def _queue(self) -> None:
        """Queues allocations; jobs that still exist are watched, not queued again."""
        queued = self._queued_before()
        for group, jobs in by_shape(self.state.jobs).items():
            if group in queued:
                self.queued[group] = queued[group]
                continue
            remaining = [job for job in jobs if self.state.left[job.cell_id]]
            if not remaining:
                continue
            mode = self.settings.resume_mode or "missing"
            allocation.save(group, remaining, self.settings, mode, self.interface)
            allocation.result_path(self.sweep_dir, group).unlink(missing_ok=True)
            self.queued[group] = submit(self.slurm, group, remaining, self.settings)
            limit = time_limit_min(remaining, self.settings.isolation)
            self.progress.print_line(
                f"queued: job {self.queued[group]}: {len(remaining)} cells on {group}, "
                f"{limit} min at most"
            )
        path = self.sweep_dir / FOLDER / "jobs.json"
        write_atomic(path, json.dumps(self.queued))

    def _queued_before(self) -> dict[str, str]:
        try:
            job_ids = json.loads((self.sweep_dir / FOLDER / "jobs.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        queued = unfinished_jobs(list(job_ids.values()))
        return {group: job for group, job in job_ids.items() if job in queued}

    def _watch(self) -> None:
        while unfinished := unfinished_jobs(list(self.queued.values())):
            self._take_records()
            ended = len(self.queued) - len(unfinished)
            self.progress.show(f"jobs: {len(unfinished)} queued or running, {ended} ended")
            time.sleep(POLL_S)
        self._take_records()

    def _take_records(self) -> None:
        for path in record.paths(self.sweep_dir):
            if path in self.seen:
                continue
            self.seen.add(path)
            try:
                one = record.read(path)
            except RecordError as error:
                self.result.warnings.append(f"set aside: {error}")
                continue
            self.state.add(one)
            self.progress.cell_done(one)

    def _collect_results(self) -> None:
        """Collects the allocations' results; cells without an attempt are interrupted."""
        for group, job_id in self.queued.items():
            if allocation.take_result(self.sweep_dir, group, self.result):
                continue
            if self.result.interrupted:
                continue
            log = self.sweep_dir / FOLDER / "jobs" / f"{job_id}_0_log.out"
            self.result.warnings.append(
                f"job {job_id} ended before its cells were done (cancelled or out of time?); "
                f"log: {log}; resume={self.sweep_dir} goes on with them"
            )
        self.state.close()

    def _print_attach_commands(self) -> None:
        ids = " ".join(self.queued.values())
        if ids:
            self.progress.print_line(
                f"the jobs go on: {ids}\n"
                f"to attach: {project_paths.BENCH} resume={self.sweep_dir} hydra/launcher=slurm\n"
                f"to end them: scancel {ids}"
            )
