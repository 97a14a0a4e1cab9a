"""Rows of `runners.records.flat_row` from the config and summary of a W&B run.

Anyone who may edit the project can have set any value, so both W&B sources check all of them here:
by the kinds of `analysis.data.schema`, and the config by the key that was made of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from analysis.data import schema
from moe.spec import Cell
from runners.packed import limits
from runners.records import emulation, flat_row, record
from runners.records.record import KINDS, OUTCOMES, Record, Samples
from runners.records.sealed import RecordError
from runners.records.stats import BLOCK_MEAN
from runners.track.client import redact
from runners.track.run import EXACT_FIELD, ROWS_FIELD, SUMMARY_FIELD, exact

SAMPLE_COLUMNS = {"sample_ms": "makespan_ms", "sample_round": "round", "sample_steps": "steps",
                  "sample_kind": "kind"}  # fmt: skip
MOST_SHOWN = 100  # characters of a value in a message
REMEDY = "correct it in W&B, or read the sweep's own folder"


class NoRow(ValueError):
    """The run cannot become a row; the message says why, and what to do about a run of W&B. `fault`
    is the reason alone."""

    def __init__(self, fault: str, remedy: str = "") -> None:
        super().__init__(f"{fault}; {remedy}" if remedy else fault)
        self.fault = fault


class NoAttempt(NoRow):
    """The run is a sweep's summary instead of an attempt; it is skipped without a warning."""


def blank_row() -> dict[str, Any]:
    """The row of an empty record: names in their order, None where a value may be unknown."""
    return flat_row.row(Record(key="", cell=Cell()))


@cache
def timed_names() -> frozenset[str]:
    """The columns that every attempt with a time has: those of the least such attempt, of a single
    sample that took no time and so has no throughput."""
    least = Samples([0], [0], [1], ["fixed"], [[0]], [[0]])
    row = flat_row.row(Record(key="", cell=Cell(), gate={"ok": True}, samples=least))
    return frozenset(name for name, value in row.items() if value is not None)


def row_of(config: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    """The row of one run; raises NoRow unless it is whole, one of this project's and as written."""
    if SUMMARY_FIELD in config:
        raise NoAttempt("it is the summary of a sweep")
    if "attempt_id" not in config:
        raise NoRow("not a run of this project: its config has no attempt_id")
    if ROWS_FIELD not in summary:
        raise NoRow("it has no results: it has crashed, or is being written")
    if summary.get("outcome") not in OUTCOMES:
        raise refused("outcome", summary.get("outcome"), ", ".join(OUTCOMES))
    try:
        both = {**exact(config), **exact(summary)}
    except (RecursionError, TypeError, ValueError) as error:
        raise NoRow(f"its {EXACT_FIELD} is damaged: {error}", REMEDY) from error
    # A name that an older run lacks has an empty record's value; the metric had one value then.
    older = {**blank_row(), "metric": BLOCK_MEAN}
    row = {name: both.get(name, value) for name, value in older.items()}
    check_row(row)
    if isinstance(row["model"], str):
        row["model"] = record.current_name(row["model"])
    return {**row, "strategy": record.current_name(row["strategy"])}


def check_row(row: Mapping[str, Any]) -> None:
    """Raises NoRow for a row with a value that no attempt has, or whose key is of another cell.
    Every column must be there; those of samples are not looked at."""
    _check_kinds(row)
    _check_identity(row)
    try:
        limits.check_numbers(row)
    except RecordError as error:
        raise NoRow(cut(redact(str(error))), REMEDY) from error


def _check_kinds(row: Mapping[str, Any]) -> None:
    blank = blank_row()
    timed = timed_names() if row["median_duration_ms"] is not None else frozenset()
    for column in schema.columns():
        value = row[column.name]
        unknown = blank[column.name] is None and column.name not in timed
        if not (schema.holds(column.kind, value) or (value is None and unknown)):
            allowed = schema.words(column.kind) + (", or null" if unknown else "")
            raise refused(column.name, value, allowed)
    try:
        emulation.of_values(row["emulation"])
    except ValueError as error:
        raise refused("emulation", row["emulation"], f"an emulated cluster ({error})") from None
    medians, numbers = row["round_medians_ms"], row["round_numbers"]
    if len(medians) != len(numbers):
        raise refused("round_numbers", numbers, f"one for each of {len(medians)} round_medians_ms")


def _check_identity(row: Mapping[str, Any]) -> None:
    """The key is made of the cell, and the ids of key, label and launch."""
    cell = flat_row.cell_of(row)
    attempt = Record(key=row["key"], cell=cell, label=row["label"], launch=int(row["launch"]))
    for name in ("cell_id", "attempt_id"):
        if row[name] != getattr(attempt, name):
            raise refused(
                name, row[name], f"{shown(getattr(attempt, name))}, by key, label and launch"
            )
    try:
        record.check_key(attempt)
    except RecordError as error:
        raise NoRow(f"its config was edited: {cut(redact(str(error)))}", REMEDY) from error
    try:
        limits.check_cell(cell)
    except RecordError as error:
        raise NoRow(cut(redact(str(error))), REMEDY) from error


def refused(name: str, value: Any, allowed: str) -> NoRow:
    """An error that names the field, its value (cut, escaped, without keys) and what is allowed."""
    return NoRow(f"{name}={shown(value)}: allowed is {allowed}", REMEDY)


def shown(value: Any) -> str:
    """A value as W&B shows it: JSON, in ASCII."""
    return cut(redact(json.dumps(value, default=str)))


def cut(text: str) -> str:
    """The text, cut after MOST_SHOWN characters."""
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}... ({len(text)} characters)"


def sample_columns(
    history: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """Columns of `flat_row.sample_columns`; raises NoRow if samples are missing, incomplete or not
    of their kind."""
    if len(history) != summary[ROWS_FIELD]:
        raise NoRow(f"{len(history)} of its {shown(summary[ROWS_FIELD])} samples are there")
    try:
        columns = {
            name: [_field(r, field) for r in history] for name, field in SAMPLE_COLUMNS.items()
        }
    except KeyError as error:
        raise NoRow(f"a sample has no {error}") from error
    for column in schema.SAMPLES:
        _, kind = schema.parts(column.kind)
        for value in columns[column.name]:
            if not schema.holds(kind, value):
                raise refused(
                    SAMPLE_COLUMNS[column.name], value, f"{schema.words(kind)} in a sample"
                )
    if unknown := [kind for kind in columns["sample_kind"] if kind not in KINDS]:
        raise refused("kind", unknown[0], ", ".join(KINDS))
    columns["sample_ms"] = [float(value) for value in columns["sample_ms"]]
    return columns


def _field(row: Mapping[str, Any], name: str) -> Any:
    """A field of a sample; older samples have `warmup` instead of a kind."""
    if name == "kind" and "warmup" in row:
        return "warmup" if row["warmup"] else "fixed"
    return row[name]
