"""The parts of a packed file, from records; packed_file.py says what each holds."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runners.packed.command import portable_command
from runners.packed.packed_file import FORMAT, PLAN, REFUSED, SHARED, VERSION
from runners.packed.record_schema import portable
from runners.records import record
from runners.records.record import Record
from runners.records.sealed import RecordError

SHARED_FIELDS = ("environment", "calibration", "measure", "anchors", "floor")
LEAST_SHARED = 100  # bytes of JSON; less is written in every record
LINES = 8  # records in a part


def of_records(
    records: Iterable[Record], name: str, names: Iterable[str]
) -> tuple[dict[str, bytes], list[str]]:
    """(parts, paths of fields that were left out) of a sweep that is called `name` in the file.
    `names` are those of this machine and its user: runners.host.identity.names_here().

    Raises RecordError for a record that cannot be packed.
    """
    lines: dict[str, bytes] = {}
    shared: dict[str, bytes] = {}
    left_out: list[str] = []
    for one in sorted(records, key=lambda one: (one.launch, one.wave, one.attempt_id)):
        if one.schema not in record.COMPARABLE:
            raise RecordError(
                f"{one.attempt_id}: schema {one.schema} cannot be packed; measure it again"
            )
        content, withheld = portable({**record.to_dict(one), "sweep": name}, names)
        left_out += withheld
        for field in SHARED_FIELDS:
            text = as_json(content[field])
            if len(text) >= LEAST_SHARED:
                digest = hashlib.sha256(text).hexdigest()[:16]
                shared[f"shared/{digest}.json"] = text
                content[field] = {SHARED: digest}
        lines[one.attempt_id] = as_json(content)
    return {**of_lines("records", list(lines.values())), **dict(sorted(shared.items()))}, left_out


def of_lines(folder: str, lines: Sequence[bytes]) -> dict[str, bytes]:
    """Several lines a part: alike ones are small together, and a damaged part loses few."""
    return {
        f"{folder}/{first // LINES:04}.jsonl": b"\n".join(lines[first : first + LINES])
        for first in range(0, len(lines), LINES)
    }


def as_json(value: Any) -> bytes:
    """Compact JSON; raises ValueError for what JSON has not: NaN and infinities."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def of_plan(plan: Mapping[str, Any], name: str, names: Iterable[str]) -> dict[str, bytes]:
    """The part of a sweep's plan. Its commands keep knobs of what is measured."""
    cells = [
        {"cell_id": str(cell["cell_id"]), "overrides": _overrides(cell.get("overrides"), names)}
        for cell in plan["cells"]
    ]
    content = {
        "name": name,
        "command": portable_command(str(plan.get("command", "")), names),
        "resumed": [portable_command(str(text), names) for text in plan.get("resumed", [])],
        "cells": cells,
    }
    return {PLAN: as_json(content)}


def _overrides(words: Iterable[Any] | None, names: Iterable[str]) -> str:
    return portable_command(shlex.join(str(word) for word in words or ()), names)


def of_refused(overrides: Sequence[str], names: Iterable[str]) -> dict[str, bytes]:
    """The part with the cells that could not run; none where all could."""
    kept = [portable_command(words, names) for words in overrides]
    return {REFUSED: as_json({"refused": kept})} if kept else {}


def about(
    records: Sequence[Record], name: str, command: str, names: Iterable[str]
) -> dict[str, Any]:
    """The manifest's fields beside its parts."""
    codes = {json.dumps(_code(one.environment)): _code(one.environment) for one in records}
    versions = {str((one.environment.get("versions") or {}).get("project")) for one in records}
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "record_schema": record.SCHEMA,
        "project": sorted(versions),
        "command": portable_command(command, names),
        "code": [codes[text] for text in sorted(codes)],
        "created": max((one.created for one in records), default=""),
        "cells": len({one.cell_id for one in records}),
        "attempts": len(records),
    }


def _code(environment: Mapping[str, Any]) -> dict[str, Any]:
    git = environment.get("git") or {}
    return {"sha": git.get("sha"), "dirty": git.get("dirty")}
