"""The parts of a packed file, from records or rows; packed_file.py says what each holds."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from runners.packed.command import portable_command
from runners.packed.packed_file import FORMAT, PLAN, REFUSED, SHARED, SHARED_FIELDS, VERSION
from runners.packed.record_schema import portable, portable_label
from runners.plan import ISOLATIONS
from runners.records import record
from runners.records.record import Record

LEAST_SHARED = 100  # bytes of JSON; less is written in every record
LINES = 16  # records in a part


class Origin(NamedTuple):
    """What the manifest says of an attempt: its cell, when it was written, and by which code."""

    cell_id: str
    created: str
    project: str | None  # version of this project
    sha: str | None  # commit that ran
    dirty: str | None  # hash of uncommitted changes


def of_records(
    records: Iterable[Record], name: str, names: Iterable[str]
) -> tuple[dict[str, bytes], list[Origin], list[str]]:
    """(parts, what the manifest says of each attempt, paths of fields that were left out) of a
    sweep that is called `name` in the file. `names` are those of this machine and its user:
    runners.host.identity.names_here().

    Raises RecordError for a record that cannot be packed.
    """
    lines: list[bytes] = []
    shared: dict[str, bytes] = {}
    origins: list[Origin] = []
    left_out: list[str] = []
    for one in sorted(records, key=lambda one: (one.launch, one.wave, one.attempt_id)):
        content, withheld = portable({**record.to_dict(one), "sweep": name}, names)
        left_out += withheld
        origins.append(_origin(one.cell_id, content))
        lines.append(as_json(_with_shared(content, shared)))
    parts = {**of_lines("records", lines), **dict(sorted(shared.items()))}
    return parts, origins, left_out


def _origin(cell_id: str, content: Mapping[str, Any]) -> Origin:
    """Of a record as it is packed."""
    environment = content.get("environment") or {}
    git = environment.get("git") or {}
    project = (environment.get("versions") or {}).get("project")
    return Origin(cell_id, content.get("created") or "", project, git.get("sha"), git.get("dirty"))


def of_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, bytes]:
    """Parts of rows of W&B runs that were filtered before, in their order."""
    shared: dict[str, bytes] = {}
    lines = [as_json(_with_shared(row, shared)) for row in rows]
    return {**of_lines("rows", lines), **dict(sorted(shared.items()))}


def _with_shared(content: Mapping[str, Any], shared: dict[str, bytes]) -> dict[str, Any]:
    """The content with references for what others may have too, which goes to `shared`."""
    references = {}
    for field in SHARED_FIELDS:
        text = as_json(content.get(field))
        if len(text) >= LEAST_SHARED:
            digest = hashlib.sha256(text).hexdigest()[:16]
            shared[f"shared/{digest}.json"] = text
            references[field] = {SHARED: digest}
    return {**content, **references}


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
        {
            "cell_id": _cell_id(str(cell["cell_id"]), names),
            "overrides": _overrides(cell.get("overrides"), names),
        }
        for cell in plan["cells"]
    ]
    content = {
        "name": name,
        "command": portable_command(str(plan.get("command", "")), names),
        "resumed": [portable_command(str(text), names) for text in plan.get("resumed", [])],
        "cells": cells,
    }
    if plan.get("isolation") in ISOLATIONS:
        content["isolation"] = plan["isolation"]
    return {PLAN: as_json(content)}


def _cell_id(cell_id: str, names: Iterable[str]) -> str:
    """With the label that the cell's records have in the file."""
    key, dot, label = cell_id.partition(".")
    return key + dot + (portable_label(label, names) if label else "")


def _overrides(words: Iterable[Any] | None, names: Iterable[str]) -> str:
    return portable_command(shlex.join(str(word) for word in words or ()), names)


def of_refused(overrides: Sequence[str], names: Iterable[str]) -> dict[str, bytes]:
    """The part with the cells that could not run; none where all could."""
    kept = [portable_command(words, names) for words in overrides]
    return {REFUSED: as_json({"refused": kept})} if kept else {}


def about(
    attempts: Sequence[Origin], name: str, command: str, names: Iterable[str]
) -> dict[str, Any]:
    """The manifest's fields beside its parts."""
    codes = sorted({(one.sha or "", one.dirty or "") for one in attempts})
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "record_schema": record.SCHEMA,
        "project": sorted({one.project for one in attempts if one.project}),
        "command": portable_command(command, names),
        "code": [{"sha": sha or None, "dirty": dirty or None} for sha, dirty in codes],
        "created": max((one.created for one in attempts), default=""),
        "cells": len({one.cell_id for one in attempts}),
        "attempts": len(attempts),
    }
