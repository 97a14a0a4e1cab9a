"""From composed configs to a validated sweep: between Hydra and the launches."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe.spec import RankLayout
from runners.config.hosts import hosts_of, node_of
from runners.config.ray_options import ray_options
from runners.config.resolution import Composed, of_one_cell
from runners.config.schema import check_shape, value
from runners.config.slurm_launcher import Slurm
from runners.config.validate import format_errors, validate
from runners.errors import ConfigError
from runners.host import environment
from runners.host.inherited import inherited_by_ranks
from runners.host.machine import NodeResources, this_machine
from runners.launch import stream
from runners.launch.hosts import join, starting
from runners.launch.ray_cluster import LOCAL, RayCluster, connected
from runners.plan import Job
from runners.records import calibrations
from runners.sweep import resume, slurm
from runners.sweep.folder import new_or_resumed, write_refused
from runners.sweep.progress import Progress
from runners.sweep.ray_sweep import RaySweep
from runners.sweep.result import SweepResult
from runners.sweep.settings import settings_of
from runners.sweep.sweep import Sweep
from runners.sweep.titles import title

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # set for ranks by threads=N


def run_composed(
    composed: Sequence[Composed],
    sweep_dir: Path,
    command: str,
    on_begin: Callable[[], None] = lambda: None,
    launcher: Mapping[str, Any] | None = None,
    on_measured: Callable[[], None] = lambda: None,
) -> tuple[SweepResult, list[str]]:
    """Validates all configs, then measures; the outcome of each ("invalid" for those skipped).

    Raises ConfigError listing every impossible cell, before anything starts. `on_begin` is called
    when the user's input can no longer be at fault; `on_measured`, on one host without a
    scheduler, when all records are on disk and their W&B runs are still to be written.
    """
    given = [of_one_cell(one) for one in composed]
    composed = [cell for cells in given for cell in cells]
    for config, _ in composed:
        check_shape(config)
    first = composed[0].config
    settings = settings_of(first, sweep_dir, command)
    slurm_options, on_ray = slurm.slurm_options(launcher or {}), ray_options(launcher or {})
    hosts = hosts_of(first)
    if hosts.nnodes > 1 and (slurm_options or on_ray):
        raise ConfigError(
            f"hosts.nnodes={hosts.nnodes}: allowed is 1 where a cluster gives the nodes; leave out "
            "hosts=many or hydra/launcher, and set hosts.ranks_per_node"
        )
    several = hosts.nnodes > 1 and not hosts.shared_folder
    key = stream.take_key(os.environ) if several else None
    progress = Progress()
    with contextlib.ExitStack() as stack:
        cluster = None
        if on_ray and on_ray.address != LOCAL:
            cluster = stack.enter_context(connected(on_ray))
        machine = _machine(slurm_options, cluster)
        jobs, errors = validate(composed, machine)
        if errors and not (value(first, "on_invalid") == "skip" and jobs):
            raise ConfigError(format_errors(errors))
        if on_ray and not cluster:  # a Ray of this machine is started for nothing that is refused
            cluster = stack.enter_context(connected(on_ray))
        refused = [(" ".join(composed[n].overrides), str(error)) for n, error in errors.items()]
        for overrides, reason in refused:
            progress.print_line(f"skipped: {overrides}: {reason}")
        if hosts.convention:
            progress.print_line(hosts.auto_line())
        if hosts.node_rank:
            outcome = "measured" if join(sweep_dir, hosts, key) else "failed"
            on_begin()
            return SweepResult(sweep_dir, {"host": outcome}, joined=True), ["joined"] * len(given)
        runnable = list(jobs.values())
        cores = node_of(first, machine).cores
        announce(runnable, progress, cores, calibrations.folder_of(sweep_dir))
        announce_variables(progress, settings.pass_env)
        sweep: Sweep | RaySweep | slurm.SlurmSweep
        if slurm_options:
            stack.enter_context(resume.locked(sweep_dir / slurm.FOLDER))
            sweep = slurm.SlurmSweep(runnable, settings, progress, slurm_options, hosts.interface)
        elif cluster:
            stack.enter_context(resume.locked(sweep_dir))
            sweep = RaySweep(runnable, settings, cluster, hosts.interface)
        else:
            stack.enter_context(resume.locked(sweep_dir))
            start = stack.enter_context(starting(sweep_dir, hosts, key))
            sweep = Sweep(runnable, settings, progress, start)
            sweep.on_measured = on_measured
        new_or_resumed(settings)
        write_refused(sweep_dir, refused)
        if not slurm_options:  # which may still refuse a job
            on_begin()
        result = sweep.run()
    result.skipped = len(errors)
    outcomes = dict.fromkeys(errors, "invalid")
    outcomes |= {n: result.outcomes.get(job.cell_id, "interrupted") for n, job in jobs.items()}
    following = iter(outcomes[number] for number in range(len(composed)))
    return result, [worst(list(itertools.islice(following, len(cells)))) for cells in given]


def _machine(slurm_options: Slurm | None, cluster: RayCluster | None) -> NodeResources:
    """Resources of the nodes that measure."""
    if slurm_options:
        return slurm.machine(slurm_options)
    return cluster.resources() if cluster else this_machine()


def worst(outcomes: Sequence[str]) -> str:
    """Of the cells of one config: the first outcome that is not measured, if there is one."""
    return next((outcome for outcome in outcomes if outcome != "measured"), "measured")


def not_passed(variables: Mapping[str, str], pass_env: Sequence[str]) -> list[str]:
    """Variables of computing libraries that are set here but not passed to the ranks."""
    passed = inherited_by_ranks(variables, pass_env)
    return sorted(n for n in environment.variables(variables) if n not in (*passed, *THREADS))


def announce_variables(progress: Progress, pass_env: Sequence[str]) -> None:
    """Prints which variables of computing libraries the ranks do not get."""
    if left_out := not_passed(os.environ, pass_env):
        progress.print_line(
            f"note: set here, but not for the ranks: {', '.join(left_out)}; "
            f"to hand on: hosts.pass_env=[{','.join(left_out)}]"
        )


def announce(jobs: Sequence[Job], progress: Progress, cores: int, calibration_dir: Path) -> None:
    """Prints notes before measuring: changed cells, oversubscribed ranks."""
    for job in jobs:
        for note in job.notes:
            progress.print_line(f"note: {title(job.cell, job.label)}: {note}")
    if any(job.cell.placement.staged for job in jobs):
        progress.print_line(
            "note: ranks on GPUs with backend=gloo send their messages through the host: their "
            "cells are checked, not timed"
        )
    places = {job.cell.placement for job in jobs if job.cell.placement.device == "cpu"}
    crowded = [p for p in places if p.ranks_per_node * p.threads > cores]
    if crowded:
        over = sorted({p.ranks_per_node for p in crowded})
        progress.print_line(
            f"note: oversubscribed: {', '.join(map(str, over))} ranks share {cores} cores, so "
            "times include waiting for a core and say nothing about scaling; "
            f"use world_size<={cores}, or backend=mpi, {_mpi_comparison(crowded, calibration_dir)}"
        )


def _mpi_comparison(crowded: Sequence[RankLayout], calibration_dir: Path) -> str:
    """Cost of a small all-reduce on both backends, where this machine was calibrated on both."""
    gloo = [p for p in crowded if p.backend == "gloo" and p.nodes == 1]
    if not gloo:
        return "whose ranks wait less"
    place = max(gloo, key=lambda p: p.world_size)
    pair = [replace(place, backend=backend) for backend in ("mpi", "gloo")]
    if all(calibrations.any_cached(calibration_dir, one) for one in pair):
        fingerprint = environment.fingerprint(environment.capture())
        mpi_s, gloo_s = (
            calibrations.small_message_s(calibration_dir, fingerprint, one) for one in pair
        )
        if mpi_s and gloo_s:
            return (
                f"on which a small all-reduce of {place.world_size} ranks took "
                f"{1e3 * mpi_s:.2g} ms here, on gloo {1e3 * gloo_s:.2g} ms"
            )
    command = f"python -m runners.calibrate --ranks {place.world_size} --threads {place.threads}"
    return f"whose ranks wait less ({command} --backend mpi measures how much)"
