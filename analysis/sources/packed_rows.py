"""Rows of W&B runs in packed files: what of a row may be handed on, and the check of what came in.

W&B gives flat rows instead of records, so these are what such a file holds: the columns of
`runners.records.flat_row.row` and of its samples. A column that comes from a field of the record
has that field's shape (`runners.packed.record_schema`); the others have the shape of their kind in
`analysis.data.schema`. A row that was packed has fewer texts than before, and the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from analysis.data import schema
from analysis.sources.wandb_rows import NoRow, blank_row, check_row, cut, shown
from moe.spec import Cell
from runners.packed import record_fields, record_schema, texts
from runners.packed.command import portable_override
from runners.packed.compound import List, Map, Object
from runners.packed.guard import Guard, guard_of, nameless
from runners.packed.shapes import Bool, Choice, Int, Nullable, Number, Reduced, Shape, Text
from runners.records import flat_row
from runners.records.record import KINDS, Record
from runners.records.stats import BLOCK_MEAN, STEADY

# Column -> path of the record's field that it is, where the shape of that field is its own.
FIELDS = {
    **{name: name for name in ("key", "label", "outcome", "created", "notes")},
    "model": "meta.model",
    "error_message": "error.message",
    "error_log": "error.log",
    "gate_detail": "gate.detail",
    "stop_rule": "stop.rule",
    "kernel_ran": "kernel.name",
    "memory_method": "memory[].method",
    **{name: f"environment.{name}" for name in ("host", "cpu_model")},
    "os": "environment.system",
}
PARTS = ("environment", "measure", "calibration", "traffic")  # whole parts of the record
OF_CELL = "cell."
# Withheld, they would make the row another attempt's, or none.
FIXED = (
    *("key", "launch", "cell_id", "attempt_id", "created", "outcome", "metric"),
    *schema.CONFIG,
)
SWEEP = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}"
_NUMBER = r"[0-9.e+]{1,20}"
METRIC = (
    rf"({STEADY}|{BLOCK_MEAN}|fixed block of [0-9]{{1,12}} steps?)"
    rf"(, emulated \(dilated x{_NUMBER}; nodes of [0-9]{{1,3}} at {_NUMBER}/{_NUMBER} Mbit/s; "
    r"MTU [0-9]{4}\))?"
)


class Overrides(Reduced):
    """The words of a command line, as one text."""

    def __init__(self) -> None:
        super().__init__(portable_override)

    def _kept(self, value: str, guard: Guard) -> Any:
        kept = " ".join(portable_override(word, guard) for word in value.split())
        return kept if guard.harmless(kept) else self.empty


def portable_row(
    row: Mapping[str, Any], names: Iterable[str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The row with only what a packed file may hold, and the paths of what was withheld. `names`
    name this machine and its user, as for `runners.packed.record_schema.portable`.

    The caller sets `sweep` to the name that the packed file gives it. Raises NoRow for a row that
    would be another attempt's without what is withheld.
    """
    guard = guard_of(names)
    given = _named_anew(_with_numbers_by_kind(row), guard)
    kept = _filled(row_shape().portable(given, "", guard))
    for path, value in guard.withheld:
        if path.partition("[")[0] in (*FIXED, *(column.name for column in schema.SAMPLES)):
            raise _odd(path, value)
    return kept, [path for path, _ in guard.withheld]


def _named_anew(row: Mapping[str, Any], guard: Guard) -> dict[str, Any]:
    """The row with ids of the label that stays of its label."""
    check_row(row)
    label = row_shape().fields["label"].portable(row["label"], "label", guard)
    one = Record(key=row["key"], cell=Cell(), label=label, launch=row["launch"])
    return {**row, "label": label, "cell_id": one.cell_id, "attempt_id": one.attempt_id}


def read_row(value: Any) -> dict[str, Any]:
    """A row that came in a packed file; raises NoRow unless it is one as `portable_row` makes it,
    with the key of its cell. A column that an older file lacks has an empty record's value."""
    if not isinstance(value, dict):
        raise NoRow("no JSON object")
    guard = Guard()
    row = _filled(row_shape().portable(value, "", guard))
    for path, refused in guard.withheld[:1]:
        raise _odd(path, refused)
    check_row(row)
    counts = {len(row[column.name]) for column in schema.SAMPLES}
    if len(counts) > 1:
        raise NoRow(f"its columns of samples have {sorted(counts)} values")
    return row


def _odd(path: str, value: Any) -> NoRow:
    try:
        text = shown(value)
    except RecursionError:
        text = "..."
    return NoRow(f"{cut(json.dumps(path)[1:-1])}={text}: not a value of a packed row")


def _filled(kept: Mapping[str, Any]) -> dict[str, Any]:
    blank: dict[str, Any] = {**blank_row(), **{column.name: [] for column in schema.SAMPLES}}
    return {name: kept.get(name, value) for name, value in blank.items()}


def _with_numbers_by_kind(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with 8 for 8.0 in a column of whole numbers, and 8.0 for 8 in the others: a server's
    copy of a run has either."""
    kinds = {column.name: column.kind for column in (*schema.columns(), *schema.SAMPLES)}
    return {name: _by_kind(kinds.get(name, ""), value) for name, value in row.items()}


def _by_kind(kind: str, value: Any) -> Any:
    _, inner = schema.parts(kind)
    if kind in ("int", "float") and schema.holds(kind, value):
        return int(value) if kind == "int" else float(value)
    if inner and isinstance(value, list):
        return [_by_kind(inner, item) for item in value]
    if inner and isinstance(value, dict):
        return {name: _by_kind(inner, item) for name, item in value.items()}
    return value


@cache
def row_shape() -> Object:
    """The shape of a row: every column, and null where an attempt may not have its value."""
    blank = blank_row()
    own = {**_of_cell(), **_of_fields(), **_others()}
    shapes = {}
    for column in (*schema.columns(), *schema.SAMPLES):
        shape = own.get(column.name) or _of_kind(column.kind)
        shape = shape.inner if isinstance(shape, Nullable) else shape
        unknown = column.name in blank and blank[column.name] is None
        shapes[column.name] = Nullable(shape) if unknown else shape
    return Object(shapes)


def _of_cell() -> dict[str, Shape]:
    """Shapes of the cell's fields by their flat names."""
    shapes = {}
    for line in record_fields.lines():
        if line.path.startswith(OF_CELL):
            section, name, *below = line.path.removeprefix(OF_CELL).split(".")
            flat = flat_row.RENAMED.get((section, name), "_".join((name, *below)))
            shapes[flat] = record_schema.shape_of(line)
    return shapes


def _of_fields() -> dict[str, Shape]:
    lines = {line.path: line for line in record_fields.lines()}
    parts = record_schema.record_shape().fields
    return {
        **{name: record_schema.shape_of(lines[path]) for name, path in FIELDS.items()},
        **{name: parts[name] for name in PARTS},
    }


def _others() -> dict[str, Shape]:
    """Columns that join, rename or reach into fields of the record."""
    cell_id = rf"[0-9a-f]{{12}}([.]{texts.LABEL})?"
    git = record_schema.OPEN["git"]
    environment = record_schema.record_shape().fields["environment"]
    assert isinstance(git, Object) and isinstance(environment, Object)
    version = record_schema.OPEN["version"]
    return {
        "sweep": Text(SWEEP),
        "cell_id": Text(cell_id, checked=nameless),
        "attempt_id": Text(f"{cell_id}-[0-9]{{1,9}}", checked=nameless),
        "overrides": Overrides(),
        "metric": Text(METRIC),
        "gpu_model": record_schema.OPEN["hardware"],
        **dict.fromkeys(("python_version", "torch_version", "project_version"), version),
        "git_sha": git.fields["sha"],
        "git_dirty": git.fields["dirty"],
        "emulation": environment.fields["emulated"],
        "sample_kind": List(Choice(KINDS)),
    }


def _of_kind(kind: str) -> Shape:
    """The shape of a column that no field of the record has; its texts are words."""
    outer, inner = schema.parts(kind)
    if outer == "list":
        return List(_of_kind(inner))
    if outer == "dict":
        return Map(_of_kind(inner))
    return {"bool": Bool(), "int": Int(), "float": Number(), "text": Text(texts.WORD)}[outer]
