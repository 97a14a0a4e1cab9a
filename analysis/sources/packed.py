"""Rows from packed files (NAME.moebench), by path or https address."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from analysis.errors import SourceError, SourceWarning
from runners.packed.container import PackedError
from runners.packed.packed_file import Packed, read_packed
from runners.records import flat_row


def load(source: str | Path, *, samples: bool = False) -> list[dict[str, Any]]:
    """Rows of every attempt in the file. What is damaged is named in a SourceWarning and left out;
    a file of which nothing can be used raises SourceError."""
    try:
        packed = read_packed(source)
    except PackedError as error:
        raise SourceError(str(error)) from error
    for line in packed.damaged:
        warnings.warn(line, SourceWarning, stacklevel=2)
    return rows_of(packed, samples)


def rows_of(packed: Packed, samples: bool) -> list[dict[str, Any]]:
    """Rows of the attempts in a file that was read."""
    rows = []
    for one in packed.records:
        try:
            row = flat_row.row(one, samples)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            warnings.warn(
                f"{packed.name}: attempt {one.attempt_id}: {error}; left out",
                SourceWarning,
                stacklevel=3,
            )
            continue
        rows.append({**row, "sweep": packed.name})
    return rows
