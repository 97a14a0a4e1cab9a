"""From composed configs to a validated sweep: the step between Hydra and the launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from runners import resume
from runners.cell import (
    ConfigError,
    Machine,
    Unsupported,
    boolean,
    choice,
    integer,
    number,
    only_keys,
    request,
    safe_name,
    usable_cores,
)
from runners.memory import check_memory
from runners.plan import Job, Measure
from runners.progress import Progress, title
from runners.sweep import Settings, Sweep, SweepResult, point_latest
from runners.track_client import MODES

LISTED_ERRORS = 20


@dataclass(frozen=True)
class Asked:
    """One composed config: plain, resolved, with the overrides that made it."""

    number: int
    config: Mapping[str, Any]
    overrides: Sequence[str] = field(default_factory=list)


def run_asked(
    asked: Sequence[Asked], sweep_dir: Path, command: str
) -> tuple[SweepResult, dict[int, str]]:
    """Validates all, then runs; the outcome of each by number ("invalid" for those skipped).

    Raises ConfigError listing every impossible cell, before anything is started.
    """
    progress = Progress()
    settings = settings_of(asked, sweep_dir, command)
    skip = choice(asked[0].config, "on_invalid", ("stop", "skip")) == "skip"
    jobs, errors = validate(asked)
    if errors and not (skip and jobs):
        raise ConfigError(listed(errors))
    for number_, error in errors.items():
        progress.say(f"skipped: {' '.join(asked[number_].overrides)}: {error}")
    announce(list(jobs.values()), progress)
    with resume.locked(sweep_dir):
        point_latest(sweep_dir)
        result = Sweep(list(jobs.values()), settings, progress).run()
    outcomes = {n: result.outcomes.get(job.cell_id, "interrupted") for n, job in jobs.items()}
    return result, outcomes | dict.fromkeys(errors, "invalid")


def settings_of(asked: Sequence[Asked], sweep_dir: Path, command: str) -> Settings:
    config = asked[0].config
    safe_name(config["name"])
    tracker = dict(config["tracker"])
    choice(tracker, "tracker.mode", (*MODES, "dryrun"))
    number(tracker, "tracker.limit_s", 1)
    return Settings(
        sweep_dir=sweep_dir,
        isolation=choice(config, "isolation", ("group", "cell")),
        on_error=choice(config, "on_error", ("continue", "stop")),
        tracker=tracker,
        command=command,
        resume_mode=choice(config, "resume_mode", resume.MODES) if config["resume"] else "",
    )


def validate(asked: Sequence[Asked]) -> tuple[dict[int, Job], dict[int, str]]:
    """Jobs and errors by number."""
    from moe import peers
    from moe.strategies import supports

    machine = this_machine()
    jobs: dict[int, Job] = {}
    errors: dict[int, str] = {}
    for one in asked:
        try:
            job = Job(
                request(one.config, machine, one.overrides), measure_of(one.config), {**one.config}
            )
            peers.check_installed(job.cell)
            supports(job.cell)
            check_memory(job)
            jobs[one.number] = job
        except (ConfigError, Unsupported) as error:
            errors[one.number] = str(error)
    return jobs, errors


def this_machine() -> Machine:
    import torch

    return Machine(usable_cores(), torch.cuda.device_count())


def measure_of(config: Mapping[str, Any]) -> Measure:
    """conf/measure as a Measure; raises ConfigError."""
    only_keys(config, "measure", " ".join(f.name for f in fields(Measure)))
    found = config["measure"]
    values: dict[str, Any] = {}
    least = {"anchors": 0, "phases": 0, "order_seed": 0, "warmup": 0, "warmup_max": 0}
    for known in fields(Measure):
        name = f"measure.{known.name}"
        if known.name == "block":
            values["block"] = 0 if found["block"] == "auto" else integer(found, name)
        elif known.type == "int":
            values[known.name] = integer(found, name, least.get(known.name, 1))
        elif known.type == "float":
            values[known.name] = number(found, name)
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


def announce(jobs: Sequence[Job], progress: Progress) -> None:
    """Says before measuring what the user should know: clamped cells, oversubscribed ranks."""
    for job in jobs:
        for note in job.request.notes:
            progress.say(f"note: {title(job.cell, job.request.label)}: {note}")
    cores = usable_cores()
    places = {job.cell.placement for job in jobs if job.cell.placement.device == "cpu"}
    over = sorted({p.world_size for p in places if p.world_size * p.threads > cores})
    if over:
        progress.say(
            f"note: oversubscribed: {', '.join(map(str, over))} ranks share {cores} cores, so "
            "times include waiting for a core and say nothing about scaling; "
            f"use world_size<={cores}, or backend=mpi, whose ranks wait less"
        )
