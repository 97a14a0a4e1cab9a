"""Writes a sweep's folder: the plan, and the config of every cell. Torch-free."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runners.errors import ConfigError
from runners.host import project_paths
from runners.plan import Job
from runners.records import calibrations, emulation, record
from runners.records.sealed import RecordError, sealed, write_atomic
from runners.records.sweep_folder import PLAN, REFUSED, config_path, read_plan
from runners.sweep.settings import Settings

READ_BY_PEOPLE = 200  # cells in a plan; a longer one is written without indentation


def new_or_resumed(settings: Settings) -> None:
    """Points outputs/latest to the folder; raises ConfigError where it holds another sweep."""
    folder = settings.sweep_dir
    if not settings.resume_mode and (folder / PLAN).exists():
        # Launch numbers would start at 0 again and write over what is there.
        raise ConfigError(
            f"{folder}: holds a sweep already, which a new one would write over; go on with "
            f"it (resume={folder}) or choose another folder"
        )
    with contextlib.suppress(OSError):  # optional: not every filesystem has links
        point_latest(folder)


def point_latest(sweep_dir: Path) -> None:
    """Makes outputs/latest a link to this sweep, in one atomic step."""
    link = sweep_dir.parent / project_paths.LATEST
    fresh = sweep_dir.parent / f".{project_paths.LATEST}-{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(sweep_dir.name)
    fresh.replace(link)


def write_refused(folder: Path, refused: Sequence[tuple[str, str]]) -> None:
    """Keeps (overrides, reason) of every cell that cannot run; no file where there are none."""
    if not refused:
        (folder / REFUSED).unlink(missing_ok=True)
        return
    cells = [{"overrides": overrides, "reason": reason} for overrides, reason in refused]
    write_atomic(folder / REFUSED, sealed({"refused": cells}, indent=1))


def write_plan(jobs: Sequence[Job], settings: Settings) -> list[str]:
    """Writes every cell's config, then plan.json, which keeps the cells of earlier plans. Returns
    warnings."""
    folder = settings.sweep_dir
    cells = {
        job.cell_id: {
            "cell_id": job.cell_id, "cell": record.cell_to_dict(job.cell),
            "notes": list(job.notes), **job.meta,
        }
        for job in jobs
    }  # fmt: skip
    before, warnings = _earlier_plan(folder) if settings.resume_mode else ({}, [])
    for known in before.get("cells", []):
        cells.setdefault(str(known["cell_id"]), known)
    plan = {
        "name": folder.name,
        "command": before.get("command", settings.command),
        "resumed": [*before.get("resumed", []), *([settings.command] if before else [])],
        "isolation": settings.isolation,
        "cells": list(cells.values()),
    }
    if settings.emulated:
        plan[emulation.KEY] = dataclasses.asdict(settings.emulated)
    for job in jobs:
        _write_config(folder, job)
    indent = 1 if len(cells) < READ_BY_PEOPLE else None
    write_atomic(folder / PLAN, sealed(plan, indent=indent))
    return warnings


def _write_config(folder: Path, job: Job) -> None:
    """Before the plan, and without syncing: without a plan there is nothing to resume."""
    path = config_path(folder, job.cell_id)
    overrides = path.with_name("overrides.json")
    if overrides.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(sealed(job.config), "utf-8")
    overrides.write_text(json.dumps(job.meta.get("overrides", [])), "utf-8")


def _earlier_plan(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The folder's plan; a damaged one is set aside, and the cells asked for now replace it."""
    try:
        return read_plan(folder), []
    except RecordError as error:
        kept = calibrations.set_aside(folder / PLAN)
        return {}, [f"{error}; kept as {kept.name}"]
