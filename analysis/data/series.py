"""A series is a strategy in one of its forms: a column of a table, a line of a plot."""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas as pd

from analysis.data.cell_summary import CellSummary
from analysis.data.frame import hashable, varying, where
from analysis.data.looks import place_of
from moe.spec import Cell, LayerSpec
from runners.records import flat_row

SERIAL = "serial"
# Settings of a strategy's form: part of the series' name where they vary.
VARIANT = (
    *("dispatcher", "ep", "tp", "overlap", "expert_placement", "expert_order", "hot_replicas"),
    *("comm_dtype", "kernel", "slowdown", "variant", "graph", "label"),
)
# The columns in which a cell and its serial baseline agree.
SAME_WORK = tuple(
    name
    for name in flat_row.flat_config(Cell())
    if name in {f.name for f in dataclasses.fields(LayerSpec)} - {"topk_requested"}
    or name.startswith("router_")
    or name in ("batch_size", "mode", "workload", "workload_parameter", "seed", "cache")
)


def series_order(name: str) -> tuple[int, str]:
    """Sorts series: by their strategies (`looks.place_of`), then by name."""
    return (place_of(name.split(" ")[0]), name)


def without_serial(cells: pd.DataFrame) -> pd.DataFrame:
    """The rows of the strategies under test: all but the serial baseline's."""
    return cells[cells["strategy"] != SERIAL]


def serial_of(cells: pd.DataFrame, summary: CellSummary) -> pd.DataFrame:
    """The serial cell that does the same work on the same host, timed alike: at most one row."""
    rows = where(cells, "strategy", SERIAL)
    for name in (*SAME_WORK, "device", "metric", "host"):
        rows = where(rows, name, summary.value(name))
    return rows.iloc[:1]


def series_names(cells: pd.DataFrame) -> list[str]:
    """The strategy, with those of its variant's settings that tell its cells apart."""
    differing = {strategy: varying(part, VARIANT) for strategy, part in cells.groupby("strategy")}
    forms = zip(cells["strategy"], cells[list(VARIANT)].to_dict("records"), strict=True)
    return [
        " ".join([strategy, *(_form_word(n, hashable(form[n])) for n in differing[strategy])])
        for strategy, form in forms
    ]


def _form_word(name: str, value: Any) -> str:
    if name in ("dispatcher", "label", "kernel", "expert_placement", "variant"):
        return str(value) if value != "" else "-"
    if name == "graph":
        return "graph" if value == "on" else "eager"
    return f"{name}={value}"
