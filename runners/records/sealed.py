"""Atomic writes, and JSON files that are sealed by a checksum. Stdlib only."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHECKSUM = "sha256"  # last field of the file, over the JSON text of everything before it


class RecordError(ValueError):
    """A record file that cannot be used; the message names the file and the fault."""


def write_atomic(path: Path, text: str) -> None:
    """Writes a temporary file, syncs it, reads it back and renames it: no reader sees half a file.

    Raises OSError when the content does not read back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if temporary.read_text(encoding="utf-8") != text:
            raise OSError(f"{path}: what was written does not read back")
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Makes the new name survive a power failure, where the filesystem supports it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def _canonical(content: dict[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"))


def sealed(content: dict[str, Any], indent: int | None = None) -> str:
    """The content as JSON with its checksum as the last field; indented for people."""
    text = _canonical(content)
    mark = hashlib.sha256(text.encode()).hexdigest()
    if indent is not None:
        return json.dumps({**content, CHECKSUM: mark}, indent=indent)
    return f'{text[:-1]},"{CHECKSUM}":"{mark}"}}'


def read_sealed(path: Path) -> dict[str, Any]:
    """The content of any sealed file; raises OSError, and RecordError naming the file."""
    data = path.read_bytes()
    try:
        return unsealed(data)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: {error}") from error


def unsealed(data: bytes, schemas: Sequence[object] | None = None) -> dict[str, Any]:
    """The content without its checksum. Raises RecordError where the checksum does not match, or is
    missing in a file of one of `schemas` (None: of any).

    The bytes as written are checked first; a file that was reformatted is checked by its content.
    """
    content = json.loads(data)
    if not isinstance(content, dict):
        raise RecordError("no JSON object")
    expected = content.pop(CHECKSUM, None)
    required = schemas is None or content.get("schema") in schemas
    if required and expected is None:
        raise RecordError(f"no {CHECKSUM}: the file is damaged or was edited")
    seal = len(f',"{CHECKSUM}":"{expected}"}}')
    as_written = hashlib.sha256(data[:-seal] + b"}").hexdigest()
    same = expected in (None, as_written) or expected == _checksum(content)
    if not same:
        raise RecordError(f"{CHECKSUM} does not match: the file is damaged or was edited")
    return content
