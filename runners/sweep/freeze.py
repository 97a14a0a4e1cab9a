"""What an allocation is to measure, frozen to a file before it is queued. Torch-free.

slurm/<group>.json         the cells of one allocation, and the sweep's settings
slurm/<group>.result.json  how the allocation's sweep ended, where it came to its end
slurm/jobs.json            {group: job id}
slurm/trace-...            recorded routings that cells ask for, as ranks read them
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe.spec import Cell, RankLayout
from runners.config.cell import Request
from runners.plan import Job, Measure
from runners.records import routing_trace
from runners.records.record import cell_from_dict, write_atomic
from runners.sweep.sweep import Settings, SweepResult

FOLDER = "slurm"


def group_name(placement: RankLayout) -> str:
    """Of the allocation that cells share: all that decides its shape, and the backend."""
    p = placement
    return f"{p.nodes}x{p.ranks_per_node}-{p.backend}-{p.threads}threads"


def by_allocation(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(group_name(job.cell.placement), []).append(job)
    return found


def group_path(sweep_dir: Path, group: str) -> Path:
    return sweep_dir / FOLDER / f"{group}.json"


def save(sweep_dir: Path, group: str, jobs: Sequence[Job], settings: Settings, **more: str) -> None:
    content = {
        "jobs": [
            {
                "cell": dataclasses.asdict(job.cell),
                "label": job.request.label,
                "notes": job.request.notes,
                "meta": job.request.meta,
                "measure": dataclasses.asdict(job.measure),
            }
            for job in jobs
        ],
        "settings": {
            "isolation": settings.isolation,
            "on_error": settings.on_error,
            "tracker": settings.tracker,
            "command": settings.command,
            "pass_env": settings.pass_env,
        },
        **more,
    }
    found = [job.request.trace for job in jobs if job.request.trace]
    (sweep_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    routing_trace.freeze(found, sweep_dir / FOLDER)
    write_atomic(group_path(sweep_dir, group), json.dumps(content, indent=1))


def _thawed(cell: Cell, sweep_dir: Path) -> routing_trace.Trace | None:
    """The cell's trace, as it was frozen; raises ValueError where its content is another."""
    wanted = cell.workload.trace_sha256
    if not wanted:
        return None
    path = sweep_dir / FOLDER / routing_trace.file_name(wanted)
    rows = path.read_bytes()
    if hashlib.sha256(rows).hexdigest() != wanted:
        raise ValueError(f"{path}: not what was frozen; queue the sweep again")
    return routing_trace.Trace(rows, len(rows) // (4 * cell.layer.topk), wanted)


def load(sweep_dir: Path, group: str) -> tuple[list[Job], Settings, dict[str, Any]]:
    """Jobs, settings (which go on with what the folder has) and whatever else was frozen."""
    content = json.loads(group_path(sweep_dir, group).read_text("utf-8"))
    jobs = []
    for one in content.pop("jobs"):
        cell = cell_from_dict(one["cell"])
        trace = _thawed(cell, sweep_dir)
        asked = Request(cell, one["label"], tuple(one["notes"]), one["meta"], trace)
        jobs.append(Job(asked, Measure(**one["measure"])))
    mode = content.pop("mode", "missing")
    frozen = content.pop("settings")
    frozen["pass_env"] = tuple(frozen["pass_env"])
    settings = Settings(sweep_dir=sweep_dir, resume_mode=mode, **frozen)
    return jobs, settings, content


def save_result(sweep_dir: Path, group: str, result: SweepResult) -> None:
    names = ("failures", "warnings", "timed_s", "tracked", "sync_command")
    content = {name: getattr(result, name) for name in names}
    write_atomic(result_path(sweep_dir, group), json.dumps(content))


def result_path(sweep_dir: Path, group: str) -> Path:
    return sweep_dir / FOLDER / f"{group}.result.json"


def take_result(sweep_dir: Path, group: str, result: SweepResult) -> bool:
    """Adds what an allocation's sweep ended with; False where it has not come to its end."""
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
