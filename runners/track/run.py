"""A W&B run of an attempt: config, summary, history, names. Imports no W&B.

Config and summary together are the row of `runners.records.flat_row`, unchanged and under the same
names: what was known before measuring is config (W&B groups and filters by it), results are
summary. One bulk request for both is therefore enough for every table. W&B's client sorts the keys
of dicts and drops empty ones when it uploads, so dicts are stored for W&B's charts and again,
exactly, as one JSON text. History holds one row per sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe.strategies import rules_of
from runners.records import emulation, flat_row, forced_balance
from runners.records.record import GOOD, Record

# Row names outside the cell that are known before anything is measured.
KNOWN_BEFORE = (
    *("sweep", "key", "label", "launch", "wave", "cell_id", "attempt_id", "created", "model"),
    *("scale", "overrides"),
    *("emulated", "emulation", "environment", "measure", "calibration", *flat_row.ENVIRONMENT),
)
ROWS_FIELD = "tracked_rows"  # summary: number of history rows of a complete run
EXACT_FIELD = "exact_json"  # config and summary: their values with dicts in them, as JSON
SUMMARY_FIELD = "summary_of"  # config: set if the run is a sweep's report and plots
TAG_LIMIT = 64  # W&B refuses longer tags


@dataclass(frozen=True)
class Run:
    """One attempt as W&B gets it; `history` is one dict per sample, in the order taken.

    `packed` is a file that becomes an artifact of the run, under its stem as the artifact's name.
    """

    id: str
    name: str
    group: str
    job_type: str
    tags: tuple[str, ...]
    notes: str
    config: dict[str, Any]
    summary: dict[str, Any]
    history: list[dict[str, Any]]
    exit_code: int
    packed: Path | None = None


def run_of(record: Record, sweep: str) -> Run:
    """The run of a record; `sweep` names the group where the record itself does not."""
    row = {**flat_row.row(record), "sweep": record.sweep or sweep}
    known = {*KNOWN_BEFORE, *flat_row.flat_config(record.cell)}
    history = samples(record)
    summary = {name: value for name, value in row.items() if name not in known}
    marks = [] if record.outcome == "measured" else [record.outcome]
    marks += [forced_balance.TAG] if forced_balance.is_forced(record.cell.workload.kind) else []
    marks += [emulation.KEY] if row["emulated"] else []
    return Run(
        id=run_id(record, sweep),
        name=_name(record),
        group=row["sweep"],
        job_type=record.cell.strategy.name,
        tags=tuple(t[:TAG_LIMIT] for t in (*row["flags"], *marks)),
        notes="; ".join(row["notes"]),
        config=_with_exact({name: value for name, value in row.items() if name in known}),
        summary={**_with_exact(summary), ROWS_FIELD: len(history)},
        history=history,
        exit_code=0 if record.outcome in GOOD else 1,
    )


def _with_exact(values: dict[str, Any]) -> dict[str, Any]:
    """Adds EXACT_FIELD; lists of dicts, which no chart shows, are in that JSON text alone."""
    in_lists = {n: v for n, v in values.items() if isinstance(v, list) and _holds_containers(v)}
    dicts = {n: v for n, v in values.items() if isinstance(v, dict)}
    plain = {n: v for n, v in values.items() if n not in in_lists}
    return {**plain, EXACT_FIELD: json.dumps({**dicts, **in_lists})}


def _holds_containers(values: list[Any]) -> bool:
    return any(isinstance(value, (dict, list)) for value in values)


def exact(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config or summary as they were written, from a server's copy; raises
    ValueError if the JSON text is damaged."""
    return {**values, **json.loads(values.get(EXACT_FIELD) or "{}")}


def run_id(record: Record, sweep: str) -> str:
    """The same for every replay of an attempt, and different for other attempts and sweeps."""
    identity = json.dumps([record.sweep or sweep, record.attempt_id, record.created])
    return f"{record.key}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"


def samples(record: Record) -> list[dict[str, Any]]:
    """History rows; none unless the cell was measured and correct, as no other may show a time."""
    columns = record.samples
    spans = flat_row.sample_columns(record)["sample_ms"]
    return [
        {
            "makespan_ms": span,
            "round": columns.round[index],
            "kind": columns.kind[index],
            "steps": columns.steps[index],
            "rank_duration_ms": [
                (end - start) / columns.steps[index] / 1e6
                for start, end in zip(columns.start_ns[index], columns.end_ns[index], strict=True)
            ],
        }
        for index, span in enumerate(spans)
    ]


def _name(record: Record) -> str:
    cell = record.cell
    how = cell.strategy.name
    if rules_of(how).dispatchers:
        how += f"/{cell.strategy.dispatcher}"
    how += f"/{cell.strategy.variant}" if cell.strategy.variant else ""
    layer, load = cell.layer, cell.workload
    parts = [how, f"k{layer.topk}", f"E{layer.num_experts}", f"B{load.batch_size}"]
    parts += [f"R{cell.placement.world_size}", load.tokens]
    if load.kind != "learned":
        parts.append(flat_row.workload_name(load))
    parts += [record.label] if record.label else []
    return " ".join(parts + ([f"launch {record.launch}"] if record.launch else []))
