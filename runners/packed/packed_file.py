"""NAME.moebench: a sweep in one file, read from a path or an https address.

Inside the file its sweep is called NAME. Records are as on disk, but without sentences
(runners/packed/record_schema.py); what many of them share is written once:

    plan.json                   {name, command, resumed, isolation, cells: [{cell_id, overrides}]}
    refused.json                {refused: [overrides of a cell that could not run]}
    records/<n>.jsonl           records, one a line; {"$shared": NAME} stands for shared/NAME.json
    shared/<sha256>.json        a value that many records have
    rows/<n>.jsonl              of W&B runs, instead of records: rows of runners/records/flat_row.py
    pictures/<name>.png         plots
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from runners.packed import container, download, limits
from runners.packed.command import is_portable
from runners.packed.container import MOST_FILE_BYTES, SUFFIX, PackedError, words
from runners.packed.names import ALLOWED_NAME, NAME
from runners.packed.record_schema import faults
from runners.plan import ISOLATIONS
from runners.records import record
from runners.records.record import Record
from runners.records.sealed import RecordError

FORMAT = "moebench"
VERSION = 1
SHARED = "$shared"
SHARED_FIELDS = ("environment", "calibration", "measure", "anchors", "floor")
MOST_LINES = 20_000  # records or rows
MOST_READ_BYTES = 256 << 20  # of JSON, with what is shared counted where it is used
MOST_DAMAGED = 20  # lines on what is damaged
PLAN, REFUSED = "plan.json", "refused.json"
CELL_ID = re.compile(r"[0-9a-f]{12}(\.[A-Za-z0-9_-]{1,40})?")
T = TypeVar("T")
UNREADABLE = (RecordError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class Packed:
    """What a file holds. `damaged` has a line for each part, record or row that was left out."""

    name: str
    manifest: Mapping[str, Any]
    digest: str = ""  # of the whole file
    plan: dict[str, Any] | None = None
    refused: tuple[str, ...] = ()  # overrides of cells that could not run
    records: tuple[Record, ...] = ()
    rows: tuple[dict[str, Any], ...] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()


def is_packed(source: str | Path) -> bool:
    """Whether the source is an https address, or the path of a file that is named as a packed
    one."""
    return download.is_address(str(source)) or str(source).lower().endswith(SUFFIX)


def read_packed(source: str | Path) -> Packed:
    """The file at a path or https address; kept for the process. Raises PackedError."""
    text = str(source)
    if download.is_address(text):
        return _of_address(text)
    path = Path(source)
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise PackedError(f"{path}: is no file; give a file")
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
    with path.open("rb") as file:
        return of_bytes(file.read(MOST_FILE_BYTES + 1), shown)


def of_bytes(data: bytes, source: str) -> Packed:
    """The contents of a file; `source` names it in errors. Raises PackedError where nothing of it
    can be used, or another version wrote it."""
    try:
        opened = container.read(data, source)
        manifest, damaged = opened.manifest, list(opened.damaged)
        _check_manifest(manifest, source)
        reading = _Reading(opened.parts, damaged, source)
        records = reading.lines("records", _record)
        rows = reading.lines("rows", lambda content: content)
        plan, refused = reading.value(PLAN), reading.value(REFUSED)
    except MemoryError as error:
        raise PackedError(f"{source}: too large for this machine's memory") from error
    pictures = {
        part.partition("/")[2]: content
        for part, content in opened.parts.items()
        if part.startswith("pictures/")
    }
    return Packed(
        name=str(manifest["name"]),
        manifest=manifest,
        digest=hashlib.sha256(data).hexdigest(),
        plan=_plan(plan, damaged),
        refused=_refused(refused, damaged),
        records=tuple(records),
        rows=tuple(rows),
        pictures=pictures,
        damaged=tuple(f"{source}: part {line}; left out" for line in _few(damaged)),
    )


class _Reading:
    """Reads JSON parts within bounds; faults go to `damaged`."""

    def __init__(self, parts: Mapping[str, bytes], damaged: list[str], source: str) -> None:
        self._parts, self._damaged, self._source = parts, damaged, source
        self._shared: dict[str, Any] = {}
        self._bytes = 0

    def value(self, part: str) -> Any:
        """Of a part of one value; None where there is none, or none that can be read."""
        try:
            return parsed(self._parts[part]) if part in self._parts else None
        except (ValueError, RecursionError) as error:
            self._damaged.append(f"{part}: {words(error)}")
            return None

    def lines(self, kind: str, read: Callable[[dict[str, Any]], T]) -> list[T]:
        """What `read` makes of each line of the parts of a kind; raises PackedError for more than
        anybody can have measured."""
        values: list[T] = []
        count = 0
        for part, content in self._parts.items():
            if part.partition("/")[0] != kind:
                continue
            for number, line in enumerate(content.split(b"\n"), 1):
                count += 1
                self._count(len(line), count)
                try:
                    values.append(read(self._resolved(parsed(line))))
                except PackedError:  # of the whole file
                    raise
                except UNREADABLE as error:
                    self._damaged.append(f"{part}: line {number}: {words(error)}")
        return values

    def _resolved(self, value: Any) -> dict[str, Any]:
        """The line's object with the values that it shares with others."""
        if not isinstance(value, dict):
            raise RecordError("no JSON object")
        for name in SHARED_FIELDS:
            field = value.get(name)
            if isinstance(field, dict) and SHARED in field:
                value[name] = self._shared_value(f"shared/{field[SHARED]}.json")
        return value

    def _shared_value(self, part: str) -> Any:
        if part not in self._parts:
            raise RecordError(f"needs {part}, which is missing or damaged")
        self._count(len(self._parts[part]), 0)
        if part not in self._shared:
            self._shared[part] = parsed(self._parts[part])
        return self._shared[part]

    def _count(self, size: int, lines: int) -> None:
        self._bytes += size
        if self._bytes > MOST_READ_BYTES or lines > MOST_LINES:
            raise PackedError(
                f"{self._source}: more than {MOST_LINES} attempts, or {MOST_READ_BYTES} bytes of "
                "them; ask for a file with fewer cells"
            )


def _few(lines: list[str]) -> list[str]:
    more = len(lines) - MOST_DAMAGED
    return lines if more <= 0 else [*lines[:MOST_DAMAGED], f"and {more} more"]


def _check_manifest(manifest: Mapping[str, Any], source: str) -> None:
    if manifest.get("format") != FORMAT:
        raise PackedError(f"{source}: no {SUFFIX} file; give another file")
    if manifest.get("version") != VERSION:
        raise PackedError(
            f"{source}: version {words(manifest.get('version'))} of the format, and this program "
            f"reads {VERSION}; read it with the program's version that wrote it"
        )
    name = manifest.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PackedError(f"{source}: manifest.json: name={words(name)}: {ALLOWED_NAME}")


def parsed(content: bytes) -> Any:
    """JSON without NaN and infinities; raises ValueError and RecursionError."""
    return json.loads(content, parse_constant=_no_number)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _record(content: dict[str, Any]) -> Record:
    """Raises RecordError for what is no record, or holds what no packed one may."""
    one = record.from_dict(content)
    if wrong := faults(content):
        raise RecordError("; ".join(wrong[:3]))
    limits.check(one)
    return one


def _plan(value: Any, damaged: list[str]) -> dict[str, Any] | None:
    """The plan, without cells that are not as `pack` writes them."""
    if value is None:
        return None
    try:
        cells = [_planned(cell) for cell in value["cells"]]
        commands = [_portable(text) for text in (value["command"], *value["resumed"])]
        plan = {"name": str(value["name"]), "command": commands[0], "resumed": commands[1:],
                "cells": cells}  # fmt: skip
        return plan | _isolation(value)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        damaged.append(f"{PLAN}: {words(error)}")
        return None


def _isolation(plan: Mapping[str, Any]) -> dict[str, str]:
    """Empty for an older file's plan, which has none; raises ValueError."""
    isolation = plan.get("isolation")
    if isolation is None:
        return {}
    if isolation not in ISOLATIONS:
        raise ValueError(f"isolation={words(isolation)}: allowed are {', '.join(ISOLATIONS)}")
    return {"isolation": str(isolation)}


def _planned(cell: Any) -> dict[str, Any]:
    cell_id = str(cell["cell_id"])
    if not CELL_ID.fullmatch(cell_id):
        raise ValueError(f"cell_id={cell_id!r}: no cell's id")
    return {"cell_id": cell_id, "overrides": _portable(cell["overrides"])}


def _portable(command: Any) -> str:
    """The text, where it is as `portable_command` leaves one; raises ValueError."""
    text = str(command)
    if not is_portable(text):
        raise ValueError(f"{text[:100]!r}: has words that no packed command has")
    return text


def _refused(value: Any, damaged: list[str]) -> tuple[str, ...]:
    try:
        return tuple(map(_portable, [] if value is None else value["refused"]))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        damaged.append(f"{REFUSED}: {words(error)}")
        return ()
