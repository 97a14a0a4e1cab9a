"""Compares a run's log with its record: W&B can take a run's values from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runners.track import log_file
from runners.track.decode import build, decoded, fold, last_values
from runners.track.log_file import CONFIG, RUN
from runners.track.run import Run

SHOWN = 40  # characters of a value in a message
MOST = 3  # fields in a message
ABSENT = object()


def fault(log: Path, run: Run, project: str, entity: str | None) -> str:
    """The fields in which a finished log differs from its run, with both values; empty if none."""
    try:
        differences = list(_differences(log, run, project, entity))
    except (IndexError, ValueError) as error:
        return f"it cannot be decoded: {error}"
    more = [f"and {len(differences) - MOST} more"] if len(differences) > MOST else []
    return "; ".join([*differences[:MOST], *more])


def _differences(log: Path, run: Run, project: str, entity: str | None) -> Iterator[str]:
    records = log_file.read(log)
    stored = decoded(records.of(RUN)[-1]).run
    config = fold(records, CONFIG, build(last_values(stored.config, {}), {}))
    config.pop("_wandb", None)  # set by the client
    wanted = json.loads(json.dumps(run.config))
    pairs = {
        "id": (stored.run_id, run.id),
        "name": (stored.display_name, run.name),
        "project": (stored.project, project),
        "entity": (stored.entity, entity or stored.entity),
        "group": (stored.run_group, run.group),
        "job_type": (stored.job_type, run.job_type),
        "tags": (sorted(stored.tags), sorted(set(run.tags))),
        "notes": (stored.notes, run.notes),
    }
    for name in (*wanted, *(name for name in config if name not in wanted)):
        pairs[f"config.{name}"] = (config.get(name, ABSENT), wanted.get(name, ABSENT))
    for name, (written, expected) in pairs.items():
        if _text(written) != _text(expected):
            yield f"{name} is {_shown(written)} in it and {_shown(expected)} in the record"


def _text(value: Any) -> str:
    return "absent" if value is ABSENT else json.dumps(value, sort_keys=True)


def _shown(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
