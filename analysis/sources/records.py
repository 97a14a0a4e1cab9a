"""Rows from sweep folders: the records themselves, which the other sources are copies of."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from analysis.errors import SourceWarning
from runners.records import flat_row, record
from runners.records.sealed import RecordError


def load(source: Path, *, samples: bool = False) -> list[dict[str, Any]]:
    """Rows of a record file, a sweep folder, or every sweep in a folder of sweeps.

    A damaged record is named in a SourceWarning and set aside.
    """
    rows = []
    for path in _paths(source):
        try:
            row = flat_row.row(record.read(path), samples)
        except (RecordError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            text = str(error) if str(path) in str(error) else f"{path}: {error}"
            warnings.warn(f"{text}; set aside", SourceWarning, stacklevel=2)
            continue
        row["sweep"] = row["sweep"] or _sweep_of(path)
        rows.append(row)
    return rows


def _paths(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
        return
    if (source / "cells").is_dir():
        yield from record.paths(source)
        return
    for child in sorted(source.iterdir()):
        if (child / "cells").is_dir() and not child.is_symlink():
            yield from record.paths(child)


def _sweep_of(path: Path) -> str:
    """The sweep folder's name, for a record that does not say (cells/<cell>/record-<n>.json)."""
    return path.resolve().parents[2].name
