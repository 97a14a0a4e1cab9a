"""From composed configs to a validated sweep: the step between Hydra and the launches."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from moe.spec import RankLayout
from runners.config.cell import KEYS, NodeResources, Unsupported, request, usable_cores
from runners.config.fields import (
    ConfigError,
    boolean,
    choice,
    integer,
    number,
    only_keys,
    safe_name,
)
from runners.config.hosts import hosts_of, pass_env_of
from runners.config.hosts import machine as node_of
from runners.config.memory import available_bytes, check_memory
from runners.host import environment
from runners.host.hardware import launch_affinity, may_have_gpus
from runners.host.inherited import of_ranks
from runners.launch.hosts import join, starting
from runners.plan import Job, Measure
from runners.records import calibrations as limits
from runners.sweep import resume
from runners.sweep import slurm as clusters
from runners.sweep.progress import Progress, title
from runners.sweep.sweep import Settings, Sweep, SweepResult, point_latest
from runners.track.client import MODES
from runners.track.settings import project_name

LISTED_ERRORS = 20
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # of ranks: threads=N sets them
MAY_BE_MISSING = ("experiment",)  # a preset is no key of the composed config


@dataclass(frozen=True)
class Asked:
    """One composed config: plain, resolved, with the overrides that made it."""

    number: int
    config: Mapping[str, Any]
    overrides: Sequence[str] = field(default_factory=list)


def run_asked(
    asked: Sequence[Asked],
    sweep_dir: Path,
    command: str,
    begins: Callable[[], None] = lambda: None,
    launcher: Mapping[str, Any] | None = None,
    when_measured: Callable[[], None] = lambda: None,
) -> tuple[SweepResult, dict[int, str]]:
    """Validates all, then runs; the outcome of each by number ("invalid" for those skipped).

    Raises ConfigError listing every impossible cell, before anything is started; `begins` is
    called when nothing that the user wrote can be at fault any more, `when_measured`, on one host
    without a scheduler, when all records are on disk and their W&B runs are still to be written.
    """
    progress = Progress()
    for one in asked:
        check_shape(one.config)
    settings = settings_of(asked, sweep_dir, command)
    skip = choice(asked[0].config, "on_invalid", ("stop", "skip")) == "skip"
    slurm = clusters.of_launcher(launcher or {})
    where = hosts_of(asked[0].config)
    found = clusters.machine(slurm) if slurm else this_machine()
    jobs, errors = validate(asked, found)
    if errors and not (skip and jobs):
        raise ConfigError(listed(errors))
    for number_, error in errors.items():
        progress.say(f"skipped: {' '.join(asked[number_].overrides)}: {error}")
    if where.node_rank:
        begins()
        good = join(sweep_dir, where)
        ended = SweepResult(sweep_dir, {"host": "measured" if good else "failed"}, joined=True)
        return ended, dict.fromkeys((one.number for one in asked), "joined")
    cores = node_of(asked[0].config, found).cores
    announce(list(jobs.values()), progress, cores, limits.beside(sweep_dir))
    if left_out := not_passed(os.environ, settings.pass_env):
        names = ", ".join(left_out)
        progress.say(
            f"note: set here, but not for the ranks: {names}; "
            f"to hand on: hosts.pass_env=[{','.join(left_out)}]"
        )
    wanted = list(jobs.values())
    if slurm:
        with resume.locked(sweep_dir / clusters.FOLDER):
            new_or_resumed(sweep_dir, settings)
            result = clusters.SlurmSweep(wanted, settings, progress, slurm, where.interface).run()
    else:
        with resume.locked(sweep_dir), starting(sweep_dir, where) as start:
            new_or_resumed(sweep_dir, settings)
            begins()
            sweep = Sweep(wanted, settings, progress, start)
            sweep.when_measured = when_measured
            result = sweep.run()
    result.skipped = len(errors)
    outcomes = {n: result.outcomes.get(job.cell_id, "interrupted") for n, job in jobs.items()}
    return result, outcomes | dict.fromkeys(errors, "invalid")


def check_shape(config: Mapping[str, Any]) -> None:
    """Raises ConfigError where a node is no node, or a key was deleted that something reads."""
    known = {**KEYS, "measure": " ".join(f.name for f in fields(Measure))}
    for name, keys in sorted(known.items()):  # a node before those in it
        node: Any = config
        for part in filter(None, name.split(".")):
            node = node[part]
        if not isinstance(node, Mapping):
            raise ConfigError(
                f"{name}={node!r}: allowed is a group of {', '.join(keys.split())}; "
                f"set {name}.KEY=VALUE instead"
            )
        missing = [key for key in keys.split() if key not in node and key not in MAY_BE_MISSING]
        if missing:
            where = f"{name}.{missing[0]}" if name else missing[0]
            raise ConfigError(f"{where}: missing; leave out the override that deletes it")


def new_or_resumed(sweep_dir: Path, settings: Settings) -> None:
    """Raises ConfigError where a new sweep would write over another."""
    if not settings.resume_mode and (sweep_dir / resume.PLAN).exists():
        raise ConfigError(
            f"{sweep_dir}: holds a sweep already, which a new one would write over; go on with "
            f"it (resume={sweep_dir}) or choose another folder"
        )
    with contextlib.suppress(OSError):  # a convenience; not every filesystem has links
        point_latest(sweep_dir)


def settings_of(asked: Sequence[Asked], sweep_dir: Path, command: str) -> Settings:
    config = asked[0].config
    safe_name(config["name"])
    tracker = dict(config["tracker"])
    choice(tracker, "tracker.mode", (*MODES, "dryrun"))
    number(tracker, "tracker.limit_s", 1)
    try:
        project_name(tracker["project"])
    except ValueError as error:
        raise ConfigError(f"tracker.project={error}") from error
    started_again = config["hosts"]["run"] is not None and (sweep_dir / "plan.json").exists()
    going_on = config["resume"] or started_again  # a cluster's job comes back under its name
    return Settings(
        sweep_dir=sweep_dir,
        isolation=choice(config, "isolation", ("group", "cell")),
        on_error=choice(config, "on_error", ("continue", "stop")),
        tracker=tracker,
        command=command,
        pass_env=pass_env_of(config["hosts"]),
        resume_mode=choice(config, "resume_mode", resume.MODES) if going_on else "",
    )


def validate(
    asked: Sequence[Asked], found: NodeResources | None = None
) -> tuple[dict[int, Job], dict[int, str]]:
    """Jobs and errors by number, on nodes like the one that was found."""
    from moe import peers
    from moe.build import supports

    found = found or this_machine()
    here_bytes = available_bytes()  # asked once: a large sweep has ten thousand cells
    jobs: dict[int, Job] = {}
    errors: dict[int, str] = {}
    for one in asked:
        try:
            machine = node_of(one.config, found)
            job = Job(
                request(one.config, machine, one.overrides), measure_of(one.config), {**one.config}
            )
            peers.check_installed(job.cell)
            supports(job.cell)
            check_memory(job, machine.memory_bytes or here_bytes)
            jobs[one.number] = job
        except (ConfigError, Unsupported) as error:
            errors[one.number] = str(error)
    return jobs, errors


def this_machine() -> NodeResources:
    """torch counts the devices, where there can be any: importing it takes longer than all else."""
    cores = usable_cores()
    if not may_have_gpus():
        return NodeResources(cores, 0)
    before = launch_affinity()
    import torch  # its OpenMP binds this thread to a core where OMP_PROC_BIND is set

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, before)  # or every rank would inherit that one core
    return NodeResources(cores, torch.cuda.device_count())


def measure_of(config: Mapping[str, Any]) -> Measure:
    """conf/measure as a Measure; raises ConfigError."""
    only_keys(config, "measure", " ".join(f.name for f in fields(Measure)))
    found = config["measure"]
    values: dict[str, Any] = {}
    least = {"anchors": 0, "phases": 0, "order_seed": 0, "warmup": 0, "warmup_max": 0}
    least["calibration_limit_s"] = 1
    for known in fields(Measure):
        name = f"measure.{known.name}"
        if known.name == "block":
            values["block"] = 0 if found["block"] == "auto" else integer(found, name)
        elif known.type == "int":
            values[known.name] = integer(found, name, least.get(known.name, 1))
        elif known.type == "float":
            values[known.name] = number(found, name, float(least.get(known.name, 0)))
        elif known.type == "bool":
            values[known.name] = boolean(found, name)
    values["order"] = choice(found, "measure.order", ("random", "product"))
    values["cache"] = choice(found, "measure.cache", ("warm", "cold"))
    return Measure(**values)


def listed(errors: Mapping[int, str]) -> str:
    """One line: the error where all are alike, else each with how often it came."""
    counts: dict[str, int] = {}
    for error in errors.values():
        counts[error] = counts.get(error, 0) + 1
    shown = [f"{error} ({n} cells)" if n > 1 else error for error, n in counts.items()]
    more = f"; and {len(shown) - LISTED_ERRORS} more" if len(shown) > LISTED_ERRORS else ""
    return "; ".join(shown[:LISTED_ERRORS]) + more


def not_passed(variables: Mapping[str, str], pass_env: Sequence[str]) -> list[str]:
    """Variables of libraries that compute, which the user may think that the ranks have too."""
    passed = of_ranks(variables, pass_env)
    return sorted(n for n in environment.variables(variables) if n not in (*passed, *THREADS))


def announce(jobs: Sequence[Job], progress: Progress, cores: int, calibrations: Path) -> None:
    """Says before measuring what the user should know: clamped cells, oversubscribed ranks.
    `calibrations` is the folder of this machine's."""
    for job in jobs:
        for note in job.request.notes:
            progress.say(f"note: {title(job.cell, job.request.label)}: {note}")
    places = {job.cell.placement for job in jobs if job.cell.placement.device == "cpu"}
    crowded = [p for p in places if p.ranks_per_node * p.threads > cores]
    if crowded:
        over = sorted({p.ranks_per_node for p in crowded})
        progress.say(
            f"note: oversubscribed: {', '.join(map(str, over))} ranks share {cores} cores, so "
            "times include waiting for a core and say nothing about scaling; "
            f"use world_size<={cores}, or backend=mpi, {_mpi_gives(crowded, calibrations)}"
        )


def _mpi_gives(crowded: Sequence[RankLayout], calibrations: Path) -> str:
    """What small messages cost on both, where this machine has been calibrated on both."""
    gloo = [p for p in crowded if p.backend == "gloo" and p.nodes == 1]
    if not gloo:
        return "whose ranks wait less"
    place = max(gloo, key=lambda p: p.world_size)
    both = [replace(place, backend=backend) for backend in ("mpi", "gloo")]
    if all(limits.any_cached(calibrations, one) for one in both):
        fingerprint = environment.fingerprint(environment.capture())
        mpi_s, gloo_s = (limits.small_message_s(calibrations, fingerprint, one) for one in both)
        if mpi_s and gloo_s:
            return (
                f"on which a small all-reduce of {place.world_size} ranks took "
                f"{1e3 * mpi_s:.2g} ms here, on gloo {1e3 * gloo_s:.2g} ms"
            )
    again = f"python -m runners.calibrate --ranks {place.world_size} --threads {place.threads}"
    return f"whose ranks wait less ({again} --backend mpi measures how much)"
