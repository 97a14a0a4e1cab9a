"""NAME.moebench: a sweep in one file, read from a path or an https address.

Inside the file its sweep is called NAME. Records are as on disk, but without sentences
(runners/packed/record_schema.py); what many of them share is written once:

    plan.json                   {name, command, resumed, cells: [{cell_id, overrides}]}
    refused.json                {refused: [overrides of a cell that could not run]}
    records/<n>.jsonl           records, one a line; {"$shared": NAME} stands for shared/NAME.json
    shared/<sha256>.json        a value that many records have
    rows/<n>.jsonl              of W&B runs, instead of records: rows of runners/records/flat_row.py
    pictures/<name>.png         plots
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runners.packed import container, download
from runners.packed.command import portable_command
from runners.packed.container import SUFFIX, PackedError
from runners.packed.record_schema import faults
from runners.records import record
from runners.records.record import Record
from runners.records.sealed import RecordError

FORMAT = "moebench"
VERSION = 1
SHARED = "$shared"
PLAN, REFUSED = "plan.json", "refused.json"
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,59}")
ALLOWED_NAME = "allowed are 1 to 60 letters, digits, '.', '_' and '-'"
CELL_ID = re.compile(r"[0-9a-f]{12}(\.[A-Za-z0-9_-]{1,40})?")
UNREADABLE = (RecordError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class Packed:
    """What a file holds. `damaged` has a line for each part, record or row that was left out."""

    name: str
    manifest: Mapping[str, Any]
    plan: dict[str, Any] | None = None
    refused: tuple[str, ...] = ()  # overrides of cells that could not run
    records: tuple[Record, ...] = ()
    rows: tuple[dict[str, Any], ...] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()


def is_packed(source: str | Path) -> bool:
    """Whether the source is an https address, or the path of a file that is named as a packed
    one."""
    return download.is_address(str(source)) or str(source).endswith(SUFFIX)


def read_packed(source: str | Path) -> Packed:
    """The file at a path or https address; kept for the process. Raises PackedError."""
    text = str(source)
    if download.is_address(text):
        return _of_address(text)
    path = Path(source)
    try:
        state = path.stat()
        if state.st_size > container.MOST_FILE_BYTES:
            raise PackedError(
                f"{path}: {state.st_size} bytes; allowed are {container.MOST_FILE_BYTES}; "
                "give another file"
            )
        return _of_path(path.resolve(), text, state.st_mtime_ns)
    except OSError as error:
        raise PackedError(
            f"{path}: cannot be read ({error.strerror}); give another file"
        ) from error


@functools.lru_cache(maxsize=8)
def _of_address(address: str) -> Packed:
    return of_bytes(download.fetched(address), download.shown(address))


@functools.lru_cache(maxsize=8)
def _of_path(path: Path, shown: str, changed_ns: int) -> Packed:
    return of_bytes(path.read_bytes(), shown)


def of_bytes(data: bytes, source: str) -> Packed:
    """The contents of a file; `source` names it in errors. Raises PackedError where nothing of it
    can be used, or another version wrote it."""
    opened = container.read(data, source)
    manifest, damaged = opened.manifest, list(opened.damaged)
    _check_manifest(manifest, source)
    values: dict[str, Any] = {}
    for part, content in opened.parts.items():
        if part.endswith(".json"):
            try:
                values[part] = parsed(content)
            except (ValueError, RecursionError) as error:
                damaged.append(f"{part}: {_words(error)}")
    records, rows = [], []
    for part, content in opened.parts.items():
        kind = part.partition("/")[0]
        for number, line in enumerate(content.split(b"\n") if part.endswith(".jsonl") else (), 1):
            try:
                if kind == "records":
                    records.append(_record(parsed(line), values))
                else:
                    rows.append(_row(parsed(line)))
            except UNREADABLE as error:
                damaged.append(f"{part}: line {number}: {_words(error)}")
    return Packed(
        name=str(manifest["name"]),
        manifest=manifest,
        plan=_plan(values.get(PLAN), damaged),
        refused=_refused(values.get(REFUSED), damaged),
        records=tuple(records),
        rows=tuple(rows),
        pictures={
            part.partition("/")[2]: content
            for part, content in opened.parts.items()
            if part.startswith("pictures/")
        },
        damaged=tuple(f"{source}: part {line}; left out" for line in damaged),
    )


def _check_manifest(manifest: Mapping[str, Any], source: str) -> None:
    if manifest.get("format") != FORMAT:
        raise PackedError(f"{source}: no {SUFFIX} file; give another file")
    if manifest.get("version") != VERSION:
        raise PackedError(
            f"{source}: version {_words(manifest.get('version'))} of the format, and this program "
            f"reads {VERSION}; read it with the program's version that wrote it"
        )
    name = manifest.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PackedError(f"{source}: manifest.json: name={_words(name)}: {ALLOWED_NAME}")


def parsed(content: bytes) -> Any:
    """JSON without NaN and infinities; raises ValueError and RecursionError."""
    return json.loads(content, parse_constant=_no_number)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _record(value: Any, values: Mapping[str, Any]) -> Record:
    """Raises RecordError for what is no record, or holds what no packed one may."""
    if not isinstance(value, dict):
        raise RecordError("no JSON object")
    content = {name: _resolved(item, values) for name, item in value.items()}
    one = record.from_dict(content)
    if wrong := faults(content):
        raise RecordError("; ".join(wrong[:3]))
    return one


def _resolved(value: Any, values: Mapping[str, Any]) -> Any:
    if not (isinstance(value, dict) and SHARED in value):
        return value
    part = f"shared/{value[SHARED]}.json"
    if part not in values:
        raise RecordError(f"needs {part}, which is missing or damaged")
    return values[part]


def _row(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("no JSON object")
    return value


def _plan(value: Any, damaged: list[str]) -> dict[str, Any] | None:
    """The plan, without cells that are not as `pack` writes them."""
    if value is None:
        return None
    try:
        cells = [_planned(cell) for cell in value["cells"]]
        words = [_portable(text) for text in (value["command"], *value["resumed"])]
        return {"name": str(value["name"]), "command": words[0], "resumed": words[1:],
                "cells": cells}  # fmt: skip
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        damaged.append(f"{PLAN}: {_words(error)}")
        return None


def _planned(cell: Any) -> dict[str, Any]:
    cell_id = str(cell["cell_id"])
    if not CELL_ID.fullmatch(cell_id):
        raise ValueError(f"cell_id={cell_id!r}: no cell's id")
    return {"cell_id": cell_id, "overrides": _portable(cell["overrides"])}


def _portable(command: Any) -> str:
    """The text, where it is as `portable_command` leaves one; raises ValueError."""
    text = str(command)
    if portable_command(text, ()) != text:
        raise ValueError(f"{text[:100]!r}: has words that no packed command has")
    return text


def _refused(value: Any, damaged: list[str]) -> tuple[str, ...]:
    try:
        return tuple(map(_portable, [] if value is None else value["refused"]))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        damaged.append(f"{REFUSED}: {_words(error)}")
        return ()


def _words(fault: object) -> str:
    """On one line, short, in ASCII."""
    text = " ".join(str(fault).split()) or type(fault).__name__
    return json.dumps(text)[1:-1][:300]
