"""Cells that share a Slurm allocation, and the files that describe them. Torch-free.

slurm/<group>.json         {cells: {cell id: measure}, settings, mode, interface}: what the
                           allocation measures, and how; the cells themselves are in plan.json
slurm/<group>.result.json  how the allocation's sweep ended, if it did
slurm/jobs.json            {group: job id}
slurm/trace-...            recorded routings of the cells, as ranks read them
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moe.spec import Cell
from runners.plan import Job, Measure
from runners.records import routing_trace
from runners.records.record import cell_from_dict
from runners.records.sealed import write_atomic
from runners.records.sweep_folder import read_plan
from runners.sweep.result import SweepResult
from runners.sweep.settings import Settings

FOLDER = "slurm"
SETTINGS = ("isolation", "on_error", "tracker", "command", "pass_env")


def group_path(sweep_dir: Path, group: str) -> Path:
    return sweep_dir / FOLDER / f"{group}.json"


def result_path(sweep_dir: Path, group: str) -> Path:
    return sweep_dir / FOLDER / f"{group}.result.json"


def save(group: str, jobs: Sequence[Job], settings: Settings, mode: str, interface: str) -> None:
    """Writes what an allocation measures, and the recorded routings of its cells beside it. A
    resumed sweep may ask for other settings than the folder's first, whose configs are kept."""
    sweep_dir = settings.sweep_dir
    content = {
        "cells": {job.cell_id: asdict(job.measure) for job in jobs},
        "settings": {name: getattr(settings, name) for name in SETTINGS},
        "mode": mode,
        "interface": interface,
    }
    (sweep_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    routing_trace.freeze([job.trace for job in jobs if job.trace], sweep_dir / FOLDER)
    write_atomic(group_path(sweep_dir, group), json.dumps(content, indent=1))


def load(sweep_dir: Path, group: str) -> tuple[list[Job], Settings, str]:
    """The allocation's jobs, settings (which resume what the folder has) and network interface.
    Raises OSError and ValueError for files that are not as they were written."""
    content = json.loads(group_path(sweep_dir, group).read_text("utf-8"))
    planned = {str(one["cell_id"]): one for one in read_plan(sweep_dir)["cells"]}
    jobs = [
        _job(sweep_dir, planned[cell_id], Measure(**measure))
        for cell_id, measure in content["cells"].items()
    ]
    chosen = content["settings"] | {"pass_env": tuple(content["settings"]["pass_env"])}
    settings = Settings(sweep_dir=sweep_dir, resume_mode=str(content["mode"]), **chosen)
    return jobs, settings, str(content["interface"])


def _job(sweep_dir: Path, planned: dict[str, Any], measure: Measure) -> Job:
    cell = cell_from_dict(planned["cell"])
    return Job(
        cell,
        measure,
        label=str(planned["cell_id"]).partition(".")[2],
        notes=tuple(planned["notes"]),
        meta={name: planned[name] for name in ("model", "scale", "overrides")},
        trace=_trace(cell, sweep_dir),
    )


def _trace(cell: Cell, sweep_dir: Path) -> routing_trace.Trace | None:
    """The cell's trace, as it was frozen; raises ValueError where its content has changed."""
    sha256 = cell.workload.trace_sha256
    if not sha256:
        return None
    path = sweep_dir / FOLDER / routing_trace.file_name(sha256)
    rows = path.read_bytes()
    if hashlib.sha256(rows).hexdigest() != sha256:
        raise ValueError(f"{path}: not what was frozen; queue the sweep again")
    return routing_trace.Trace(rows, len(rows) // (4 * cell.layer.topk), sha256)


def save_result(sweep_dir: Path, group: str, result: SweepResult) -> None:
    names = ("failures", "warnings", "timed_s", "tracked", "sync_command")
    content = {name: getattr(result, name) for name in names}
    write_atomic(result_path(sweep_dir, group), json.dumps(content))


def take_result(sweep_dir: Path, group: str, result: SweepResult) -> bool:
    """Adds the result of an allocation's sweep; False where it has not ended."""
    try:
        content = json.loads(result_path(sweep_dir, group).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    result.failures += [(str(a), str(b), str(c)) for a, b, c in content["failures"]]
    result.warnings += [str(text) for text in content["warnings"]]
    result.timed_s += float(content["timed_s"])
    result.tracked += int(content["tracked"])
    result.sync_command = str(content["sync_command"]) or result.sync_command
    return True
