"""From what a W&B run holds back to the row of `runners.flatten`, for both W&B sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from moe.spec import Cell
from runners import flatten
from runners.estimate import BLOCK_MEAN
from runners.record import OUTCOMES, Record
from runners.track_fields import EXACT_FIELD, ROWS_FIELD, SUMMARY_FIELD, exact

SAMPLE_COLUMNS = {"sample_ms": "makespan_ms", "sample_round": "round", "sample_steps": "steps",
                  "sample_kind": "kind"}  # fmt: skip


class NoRow(ValueError):
    """A run that gives no row; the message says why."""


class NoAttempt(NoRow):
    """A run of ours that is no attempt and is passed over in silence: a sweep's summary."""


@cache
def row_names() -> tuple[str, ...]:
    """Names of a row, in its order."""
    return tuple(flatten.row(Record(key="", cell=Cell())))


def row_of(config: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    """The row of one run; raises NoRow unless it is whole and one of this project's."""
    if SUMMARY_FIELD in config:
        raise NoAttempt("it is the summary of a sweep")
    if "attempt_id" not in config:
        raise NoRow("not a run of this project: its config has no attempt_id")
    if ROWS_FIELD not in summary:
        raise NoRow("it has no results: it has crashed, or is being written")
    if summary.get("outcome") not in OUTCOMES:
        raise NoRow(f"outcome {summary.get('outcome')!r} is none of {', '.join(OUTCOMES)}")
    try:
        both = {**exact(config), **exact(summary)}
    except (TypeError, ValueError) as error:
        raise NoRow(f"its {EXACT_FIELD} is damaged: {error}") from error
    both.setdefault("metric", BLOCK_MEAN)  # a run of before there was more than one
    return {name: both.get(name) for name in row_names()}


def sample_columns(
    history: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """Columns of `flatten.sample_columns`; raises NoRow if samples are missing or incomplete."""
    if len(history) != summary[ROWS_FIELD]:
        raise NoRow(f"{len(history)} of its {summary[ROWS_FIELD]} samples are there")
    try:
        columns = {
            name: [_field(r, field) for r in history] for name, field in SAMPLE_COLUMNS.items()
        }
    except KeyError as error:
        raise NoRow(f"a sample has no {error}") from error
    columns["sample_ms"] = [float(value) for value in columns["sample_ms"]]
    return columns


def _field(row: Mapping[str, Any], name: str) -> Any:
    """Rows of before samples had kinds say whether they are warm-up."""
    if name == "kind" and "warmup" in row:
        return "warmup" if row["warmup"] else "fixed"
    return row[name]
