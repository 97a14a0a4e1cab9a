"""One cell of many by what a user says of it: `strategy=ep,topk=8`."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.data.cell_summary import CellSummary, measured, summaries
from analysis.data.facets import DESCRIBED, sort_key
from analysis.data.frame import check_column, hashable, normal, varying
from analysis.errors import InputError

TELLING = (*DESCRIBED, "model", "kernel_ran", "label", "host", "metric")  # cells apart
MOST_CELLS, MOST_VALUES = 12, 12


def choose(cells: pd.DataFrame, text: str, option: str) -> CellSummary:
    """The measured cell of `cells` (`summarize`) that has all these values.

    Raises InputError for what is no field=value, for no such cell (with the values that there are)
    and for several (with what tells them apart).
    """
    timed = measured(cells)
    wanted = _fields(timed, text, option)
    matches = timed
    for name, value in wanted:
        places = [n for n, v in enumerate(matches[name]) if normal(v) == value]
        matches = matches.iloc[places]
    shown = f"{option} {text}".rstrip()
    if matches.empty:
        raise InputError(
            f"{shown}: no measured cell; present are {_present(timed, wanted)}; choose among them"
        )
    if len(matches) > 1:
        names = _telling(matches)
        rows = zip(*(map(hashable, matches[n]) for n in names), strict=True)
        listed = [
            ",".join(f"{n}={normal(v) or '-'}" for n, v in zip(names, row, strict=True))
            for row in sorted(rows, key=lambda row: [sort_key(v) for v in row])
        ]
        more = "" if len(listed) <= MOST_CELLS else f" | and {len(listed) - MOST_CELLS} more"
        raise InputError(
            f"{shown}: {len(matches)} cells; allowed is one; add what tells it from the others: "
            f"{' | '.join(listed[:MOST_CELLS])}{more}"
        )
    return summaries(matches)[0]


def _fields(cells: pd.DataFrame, text: str, option: str) -> list[tuple[str, str]]:
    fields = []
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name or not value:
            raise InputError(
                f"{option} {text}: {part} is no field=value; allowed are fields of a cell, "
                "separated by commas; for example strategy=ep,topk=8"
            )
        fields.append((check_column(cells, name.strip(), option), normal(value)))
    return fields


def _telling(cells: pd.DataFrame) -> list[str]:
    """Columns that tell these cells apart; `topk_requested` only where it differs from `topk`."""
    names = varying(cells, TELLING)
    if [hashable(v) for v in cells["topk"]] == [hashable(v) for v in cells["topk_requested"]]:
        names = [n for n in names if n != "topk_requested"]
    return names or ["cell_id"]


def _present(cells: pd.DataFrame, wanted: Sequence[tuple[str, str]]) -> str:
    """Values of the fields that were asked for and of those that vary."""
    if cells.empty:
        return "none at all"
    names = dict.fromkeys([*(name for name, _ in wanted), *varying(cells, TELLING)])
    known = []
    for name in names:
        values = sorted({hashable(v) for v in cells[name]}, key=sort_key)
        known.append(f"{name}={','.join(normal(v) or '-' for v in values[:MOST_VALUES])}")
    return "; ".join(known) or "one cell"
