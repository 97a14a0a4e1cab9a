"""What each field of a record may hold: a JSON schema, and the filter of packed files.

Made from the record's dataclass and the lines of runners/packed/record_fields.py; docs/records.md
explains the types of the lines.

    python -m runners.packed.record_schema

writes docs/record.schema.json and the table of docs/records.md.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterable
from typing import Any

from runners.host import environment
from runners.host.project_paths import CODE
from runners.packed import record_fields, texts
from runners.packed.command import is_model, portable_override
from runners.packed.compound import Columns, Data, List, Map, Named, Object, Sentences, Variables
from runners.packed.guard import Guard, guard_of, nameless
from runners.packed.record_fields import CLOSED, Line
from runners.packed.shapes import (
    Bool,
    Choice,
    Int,
    Nullable,
    Number,
    Reduced,
    Sentence,
    Shape,
    Text,
)
from runners.records.record import KINDS, SCHEMA, Record, Samples
from runners.records.sealed import CHECKSUM, RecordError

ID = f"urn:moe-bench:record:{SCHEMA}"
FILE = CODE / "docs" / "record.schema.json"
REQUIRED = ("key", "cell", "samples", "outcome", "schema")  # without them it is no record
FIXED = ("key", "cell", "launch", "outcome", "samples", "schema")  # change one: another record
CUT = 80  # characters of a value that a fault quotes
LISTED = 20  # faults of a record
DATA = Data()
SAMPLES = Columns({
    **{name: List(Int()) for name in ("round", "position", "steps")},
    "kind": List(Choice(KINDS)),
    **{name: List(List(Int())) for name in ("start_ns", "end_ns")},
}, required=tuple(field.name for field in dataclasses.fields(Samples)))  # fmt: skip
HEX12 = Text(r"[0-9a-f]{12}", checked=nameless)
GPU = Map(Nullable(Text(texts.HARDWARE)))


class Label(Text):
    """Part of an attempt's id: a hash stands in, so that ids stay apart."""

    def mended(self, value: Any, path: str, guard: Guard) -> Any:
        guard.withhold(path, value)
        return environment.short_hash("label", value) if type(value) is str else ""


class Model(Text):
    """The name of a model: one of conf/model, or where it came in a file any word."""

    def fits(self, value: Any, guard: Guard) -> bool:
        return super().fits(value, guard) and (not guard.hands_on or is_model(value))


class Override(Reduced):
    """A word of a command line."""

    def __init__(self) -> None:
        super().__init__(portable_override, texts.WITHHELD)

    def _kept(self, value: str, guard: Guard) -> Any:
        kept = portable_override(value, guard)
        return kept if guard.harmless(kept) else self.empty


OPEN: dict[str, Shape] = {
    "bool": Bool(),
    "int": Int(),
    "number": Number(),
    "hex12": HEX12,
    "sha256": Text(r"([0-9a-f]{64})?", checked=nameless),
    "word": Text(texts.WORD),
    "label": Label(texts.LABEL),
    "name": Reduced(texts.name),
    "version": Text(texts.VERSION),
    "time": Text(texts.TIME),
    "hardware": Text(texts.HARDWARE),
    "sentence": Sentence(),
    "sentences": Sentences(),
    "model": Model(texts.WORD),
    "override": Override(),
    "system": Reduced(texts.system),
    "variables": Variables(environment.VARIABLES.pattern, texts.variable),
    "data": DATA,
    "samples": Named("samples", SAMPLES),
    "calibration": DATA,
    "git": Object({
        "sha": Nullable(Text(r"[0-9a-f]{40}([0-9a-f]{24})?", checked=nameless)),
        "dirty": Nullable(HEX12),
    }),
    "gpu": GPU,
    "node": Object({
        "cpu_model": Nullable(Text(texts.HARDWARE)),
        "cores": Nullable(Int()),
        "memory_total_bytes": Nullable(Int()),
        "gpus": Nullable(List(GPU)),
        "gpu_links": Nullable(List(List(Text(texts.WORD)))),
    }),
}  # fmt: skip


def shape_of(line: Line) -> Shape:
    """The shape of a field that is no group of other fields."""
    return _of_type(line.type, line.choices)


def _of_type(text: str, choices: tuple[str, ...] = ()) -> Shape:
    if text.endswith("?"):
        return Nullable(_of_type(text[:-1], choices))
    if text.endswith("[]"):
        return List(_of_type(text[:-2], choices))
    if text.startswith("map("):
        return Map(_of_type(text[4:-1], choices))
    if text == "choice":
        return Choice(choices)
    return Choice(CLOSED[text]) if text in CLOSED else OPEN[text]


class _Group:
    """Fields below one path while the schema is put together."""

    def __init__(self) -> None:
        self.shapes: dict[str, Shape] = {}
        self.about: dict[str, str] = {}
        self.groups: dict[str, _Group] = {}

    def add(self, steps: list[str], line: Line) -> None:
        name, *below = steps
        if below or line.type == "object":
            group = self.groups.setdefault(name, _Group())
            if below:
                group.add(below, line)
                return
        else:
            self.shapes[name] = shape_of(line)
        self.about[name.removesuffix("[]").removesuffix("[]")] = line.about

    def shape(self, required: tuple[str, ...] = ()) -> Object:
        shapes = dict(self.shapes)
        for name, group in self.groups.items():
            shape: Shape = group.shape()
            while name.endswith("[]"):
                name, shape = name[:-2], List(shape)
            shapes[name] = shape
        return Object(shapes, self.about, required)


@functools.cache
def record_shape() -> Object:
    """The shape of a record. Its parts are null where the dataclass allows it."""
    root = _Group()
    for line in record_fields.lines():
        root.add(line.path.split("."), line)
    shape = root.shape(REQUIRED)
    fields = {field.name: str(field.type) for field in dataclasses.fields(Record)}
    parts = {
        name: Nullable(shape.fields[name]) if "None" in annotation else shape.fields[name]
        for name, annotation in fields.items()
    }
    return dataclasses.replace(shape, fields=parts)


def schema() -> dict[str, Any]:
    """In JSON Schema (draft 2020-12): a record as it is on disk, its checksum included."""
    body = record_shape().json_schema()
    checksum = {"description": "checksum of all before it", "type": "string",
                "pattern": "^[0-9a-f]{64}$"}  # fmt: skip
    body["properties"] = {**body["properties"], CHECKSUM: checksum}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": ID,
        "title": f"A record of moe-bench, schema {SCHEMA}",
        "description": "One attempt at a cell: docs/records.md",
        **body,
        "$defs": {"data": DATA.definition(), "samples": SAMPLES.json_schema()},
    }


def portable(
    content: dict[str, Any], names: Iterable[str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """A record, as a dict, with only what its schema lets a packed file hold, and the paths of what
    was withheld. `names` name this machine and its user: no text keeps them; None: `names_here()`,
    which many records had better share.

    The caller sets `sweep` to the name that the packed file gives it. Raises RecordError, naming
    field and value, for a record that would be another, or none, without what is withheld.
    """
    guard = guard_of(names)
    kept = _filtered(content, guard)
    return kept, [path for path, _ in guard.withheld]


def portable_label(label: str, names: Iterable[str] | None = None) -> str:
    """A label as `portable` leaves it."""
    return str(OPEN["label"].portable(label, "label", guard_of(names)))


def _filtered(content: dict[str, Any], guard: Guard) -> dict[str, Any]:
    """The record without what the guard withholds; raises RecordError where that is of its key,
    cell or samples."""
    shape = record_shape()
    if missing := [name for name in shape.required if name not in content]:
        raise RecordError(f"{missing[0]}: missing")
    kept: dict[str, Any] = shape.portable(content, "", guard)
    for path, value in guard.withheld:
        if re.split(r"[.\[]", path)[0] in FIXED:
            raise RecordError(f"{_escaped(path)}={_quoted(value)}: not as the record's schema says")
    return kept


def faults(content: dict[str, Any]) -> list[str]:
    """What of a record that came in a packed file is not as the schema says, a line for each: path
    and value, cut and escaped."""
    if not isinstance(content, dict):
        return [f"a record={_quoted(content)}"]
    guard = Guard()
    try:
        _filtered(content, guard)
    except RecordError as error:
        return [str(error)]
    lines = [f"{_escaped(path)}={_quoted(value)}" for path, value in guard.withheld[:LISTED]]
    more = len(guard.withheld) - LISTED
    return [*lines, f"{more} more"] if more > 0 else lines


def _quoted(value: Any) -> str:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, str | int | float | bool | None):
        text = ascii(value[: CUT + 1] if isinstance(value, str) else value)
        return text if len(text) <= CUT else f"{text[:CUT]}..."
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else "?"


def _escaped(path: str) -> str:
    return ascii(path[: 2 * CUT])[1:-1]


def text() -> str:
    """docs/record.schema.json."""
    return json.dumps(schema(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
    page = FILE.with_name("records.md")
    above = page.read_text("utf-8").partition(record_fields.HEADING)[0]  # the table ends the page
    page.write_text(f"{above}{record_fields.markdown()}\n", "utf-8")
    print(FILE, page, sep="\n")
