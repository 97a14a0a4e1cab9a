"""Rows from packed files (NAME.moebench), by path or https address."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.data import schema
from analysis.errors import SourceError, SourceWarning
from analysis.sources.packed_rows import read_row
from analysis.sources.wandb_rows import NoRow
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
            _check_kinds(row)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            warnings.warn(
                f"{packed.name}: attempt {one.attempt_id}: {error}; left out",
                SourceWarning,
                stacklevel=3,
            )
            continue
        rows.append({**row, "sweep": packed.name})
    for number, value in enumerate(packed.rows, 1):
        try:
            rows.append(read_row(value))
        except NoRow as error:
            text = f"{packed.name}: row {number}: {error.fault}; left out"
            warnings.warn(text, SourceWarning, stacklevel=3)
    return rows


def _check_kinds(row: Mapping[str, Any]) -> None:
    """Raises ValueError for what the frame has no room for, such as a sum of huge numbers."""
    for column in schema.columns():
        value = row[column.name]
        if value is not None and not schema.holds(column.kind, value):
            raise ValueError(f"{column.name}: allowed is {schema.words(column.kind)}")
