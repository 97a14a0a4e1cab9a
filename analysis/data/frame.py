"""Rows to the DataFrame, and the few operations every reader needs on it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from analysis.data import schema
from analysis.errors import InputError
from runners.records import emulation

DTYPES = {"text": "object", "int": "Int64", "float": "float64", "bool": "boolean"}


def to_frame(rows: Iterable[dict[str, Any]], samples: bool = False) -> pd.DataFrame:
    """All columns of the schema, in its order and dtypes, whatever the rows leave out.

    An attempt that is there twice (one sweep by two names, a replayed log) is kept once, the
    newest.
    """
    listed = newest(list(rows))
    wanted = (*schema.columns(), *(schema.SAMPLES if samples else ()))
    data = {c.name: _column(c, [row.get(c.name) for row in listed]) for c in wanted}
    return pd.DataFrame(data)


def newest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest row of every attempt, by sweep, launch, id and host."""
    kept: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        identity = (str(row.get("host")), str(row["sweep"]), str(row["attempt_id"]))
        known = kept.get(identity)
        if known is None or str(row.get("created")) >= str(known.get("created")):
            kept[identity] = row
    order = sorted(kept, key=lambda i: (i[1], int(kept[i].get("launch") or 0), i[2], i[0]))
    return [kept[identity] for identity in order]


def _column(column: schema.Column, values: list[Any]) -> pd.Series[Any]:
    if column.kind == "text":
        values = ["" if value is None else str(value) for value in values]
    elif column.outer in ("list", "dict"):
        empty = list if column.outer == "list" else dict
        return pd.Series([empty() if v is None else v for v in values], dtype="object")
    return pd.Series(values, dtype=DTYPES[column.kind])  # type: ignore[call-overload, no-any-return]


def plain(value: Any) -> Any:
    """A frame's value as plain Python: missing ones are None."""
    if isinstance(value, (list, dict, str)) or value is None:
        return value
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def hashable(value: Any) -> Any:
    """Lists and dicts as their JSON, so that values can be compared and grouped."""
    return json.dumps(value, sort_keys=True) if isinstance(value, (list, dict)) else plain(value)


def where(frame: pd.DataFrame, name: str, value: Any) -> pd.DataFrame:
    """The rows that hold this value, compared as `hashable` gives it; also of an empty frame."""
    wanted = hashable(value)
    return frame.iloc[[i for i, v in enumerate(frame[name]) if hashable(v) == wanted]]


def varying(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Those of the columns that hold more than one value."""
    return [n for n in names if n in frame and len({hashable(v) for v in frame[n]}) > 1]


def filtered(frame: pd.DataFrame, filters: Sequence[str]) -> pd.DataFrame:
    """Rows that satisfy every "column=value[,value]", numbered anew; raises InputError for unknown
    columns."""
    for text in filters:
        name, equals, wanted = text.partition("=")
        if not equals:
            raise InputError(
                f"--filter {text}: allowed is column=value[,value]; for example --filter topk=2,4"
            )
        name = check_column(frame, name, "--filter")
        allowed = {normal(value) for value in wanted.split(",")}
        keep = [normal(value) in allowed for value in frame[name]]
        present = sorted({normal(value) for value in frame[name]})
        frame = frame[keep]
        if frame.empty:
            raise InputError(
                f"--filter {text}: nothing is left; present are {', '.join(present[:12])}; "
                "choose one of them"
            )
    return frame.reset_index(drop=True)


def one_clock(*frames: pd.DataFrame) -> None:
    """Raises InputError where times of an emulated cluster meet times of real ranks, or of another
    cluster: they are not comparable."""
    known: dict[str, str] = {}  # clock -> the first sweep that has it
    for frame in frames:
        for values, sweep in zip(frame["emulation"], frame["sweep"], strict=True):
            cluster = emulation.of_values(values)
            known.setdefault(cluster.words if cluster else "real time", str(sweep))
    if len(known) > 1:
        words = " and ".join(f"{clock} of sweep {sweep}" for clock, sweep in known.items())
        raise InputError(
            f"--filter: missing; here are times that cannot be compared: {words}; allowed is one "
            "of these; choose it with --filter emulated=false, emulated=true or sweep=NAME"
        )


def normal(value: Any) -> str:
    """How a value is written in a filter: 8 for 8 and 8.0, true for True."""
    value = value.strip() if isinstance(value, str) else hashable(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).lower()


def check_column(frame: pd.DataFrame, name: str, option: str) -> str:
    """The column's name; `ranks`, `batch` and the like are understood; raises InputError."""
    name = ALIASES.get(name, name)
    if name not in frame.columns:
        near = difflib.get_close_matches(name, [str(c) for c in frame.columns], 4, 0.4)
        raise InputError(
            f"{option} {name}: no such column; near are {', '.join(near) or 'none'}; "
            "docs/frame.md lists all"
        )
    return name


ALIASES = {
    "ranks": "world_size",
    "batch": "batch_size",
    "top_k": "topk",
    "experts": "num_experts",
    "duration": "median_duration_ms",
    "throughput": "avg_throughput",
    "mean": "avg_duration_ms",
    "memory": "peak_bytes_max",
    "skew": "skew_lambda",
}
