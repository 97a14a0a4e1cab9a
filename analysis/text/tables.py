"""Tables of a sweep: rows along an axis, a column per strategy, every number with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis import numbers
from analysis.data.cell_summary import CellSummary, summaries
from analysis.data.facets import Facet, axes, facets, setting, title_of, x_label
from analysis.data.frame import hashable
from analysis.data.series import series_names, without_serial
from analysis.text import captions, flag_legend
from runners.records import forced_balance

MAX_FACETS = 6  # of one axis in `show`; --filter chooses among more


OUTCOME_WORDS = {"checked": "checked, not timed"}  # others say it themselves


@dataclass(frozen=True)
class Metric:
    """What a table shows: columns of the summarized cells, and the words for it."""

    column: str
    title: str
    unit: str
    low: str = ""
    high: str = ""
    scale: float = 1.0
    of_step: bool = False  # a time of a step, of which there is more than one kind (`metric`)

    @property
    def heading(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def kind(self, cells: pd.DataFrame) -> str:
        """What the times of these cells are: "steady state"; of other figures only the emulated
        cluster."""
        named = (cell.metric if self.of_step else cell.cluster for cell in summaries(cells))
        return "/".join(filter(None, dict.fromkeys(named)))


DURATION = Metric("median_ms", "Duration", "ms", "low_ms", "high_ms", of_step=True)
MEAN = Metric("mean_ms", "Average duration", "ms", "mean_low_ms", "mean_high_ms", of_step=True)
THROUGHPUT = Metric(
    "throughput", "Throughput", "10^3 tokens/s", "throughput_low", "throughput_high", 1e-3, True
)
LATENCY = Metric("latency_ms", "Latency", "ms", "latency_low_ms", "latency_high_ms")
METRICS = {
    "median_duration_ms": DURATION,
    "avg_duration_ms": MEAN,
    "avg_throughput": THROUGHPUT,
    "latency_ms": LATENCY,
}
# The reference's tables and throughput by batch, duration first. Other axes get a duration table.
REFERENCE = tuple(
    (axis, metric)
    for metric in (DURATION, THROUGHPUT)
    for axis in ("topk_requested", "batch_size", "world_size")
)


@dataclass(frozen=True)
class Entry:
    """One value of a table with its interval; or an outcome without a value."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    flags: tuple[str, ...] = ()
    outcome: str = "measured"
    cell_id: str = ""

    @property
    def text(self) -> str:
        if self.outcome != "measured":
            return OUTCOME_WORDS.get(self.outcome, self.outcome)
        body = numbers.with_interval(self.value, self.low, self.high)
        return body + flag_legend.letters(self.flags)


@dataclass
class Table:
    """A title, row labels, column labels, and an entry where the sweep has a cell."""

    title: str
    corner: str
    rows: list[str]
    columns: list[str]
    entries: dict[tuple[str, str], Entry]
    notes: list[str] = field(default_factory=list)

    def flags(self) -> list[str]:
        return [flag for entry in self.entries.values() for flag in entry.flags]


def metric_of(name: str) -> Metric:
    """A known metric, or any numeric column by its own name."""
    return METRICS.get(name) or Metric(name, name.replace("_", " "), "")


def entry(cell: CellSummary | None, metric: Metric) -> Entry:
    """No number for a cell that failed or was wrong; an empty outcome where there is no cell."""
    if cell is None:
        return Entry(outcome="")
    if not cell.measured:
        return Entry(outcome=cell.outcome, cell_id=cell.cell_id)
    columns = (metric.column, metric.low, metric.high)
    value, low, high = (_scaled(cell.value(c) if c else None, metric.scale) for c in columns)
    no_interval = ["no_interval"] if metric.low and not math.isfinite(low) else []
    return Entry(value, low, high, (*cell.flags, *no_interval), cell.outcome, cell.cell_id)


def _scaled(value: Any, scale: float) -> float:
    return math.nan if value is None or isinstance(value, str) else float(value) * scale


def facet_table(facet: Facet, metric: Metric) -> Table:
    """The table of one facet: a row per axis value, a column per series."""
    labels = {x: x_label(facet, x) for x in facet.values}
    entries = {
        (labels[x], series): entry(facet.at(x, series), metric)
        for x in facet.values
        for series in facet.series
    }
    where = setting(facet)
    title = f"{metric.heading} by {title_of(facet.axis)}"
    title = "; ".join(part for part in (title, where, metric.kind(facet.cells)) if part)
    return Table(title, title_of(facet.axis), list(labels.values()), facet.series, entries)


def sweep_tables(cells: pd.DataFrame, metric: Metric | None = None, group: str = "") -> list[Table]:
    """The reference's tables as far as the sweep has data for them, then one per further axis."""
    if group and group != "strategy":
        chosen = [(group, metric or DURATION)]
    elif metric:
        chosen = [(axis, metric) for axis in axes(cells)]
    else:
        present = axes(cells)
        chosen = [(axis, m) for axis, m in REFERENCE if axis in present]
        reference_axes = {axis for axis, _ in REFERENCE}
        chosen += [(axis, DURATION) for axis in present if axis not in reference_axes]
    tables = [table for axis, m in chosen for table in _axis_tables(cells, axis, m)]
    return tables or [flat_table(cells, metric or DURATION)]


def _axis_tables(cells: pd.DataFrame, axis: str, metric: Metric) -> list[Table]:
    of_axis = facets(cells, axis)
    tables = [facet_table(facet, metric) for facet in of_axis[:MAX_FACETS]]
    for table, facet in zip(tables, of_axis, strict=False):
        table.notes += captions.table_notes(cells, facet.cells)
    if len(of_axis) > MAX_FACETS:
        left = len(of_axis) - MAX_FACETS
        tables[-1].notes.append(
            f"{left} more tables by {title_of(axis)}: choose with --filter column=value"
        )
    return tables


def flat_table(cells: pd.DataFrame, metric: Metric) -> Table:
    """One row per cell, for a sweep that varies nothing but the strategy."""
    names = series_names(cells)
    if len(set(names)) < len(names):
        names = [f"{n} {c.cell_id}" for n, c in zip(names, summaries(cells), strict=True)]
    entries: dict[tuple[str, str], Entry] = {}
    columns = [metric] if metric is not DURATION else [DURATION, LATENCY, MEAN, THROUGHPUT]
    for name, cell in zip(names, summaries(cells), strict=True):
        for column in columns:
            entries[(name, column.heading)] = entry(cell, column)
    headings = [column.heading for column in columns]
    title = "; ".join(part for part in (_flat_title(cells), columns[0].kind(cells)) if part)
    return Table(title, "strategy", names, headings, entries)


def _flat_title(cells: pd.DataFrame) -> str:
    names = ("batch_size", "topk", "world_size", "num_experts")
    words = []
    for name in names:
        values = {hashable(v) for v in without_serial(cells)[name]}
        if len(values) == 1:
            words.append(f"{title_of(name)} {values.pop()}")
    loads = set(without_serial(cells)["load"])
    words += [load for load in loads if len(loads) == 1 and load.startswith(forced_balance.LABEL)]
    return "Cells" + (f"; {', '.join(words)}" if words else "")


def problems(cells: pd.DataFrame) -> list[str]:
    """Cells without a time, each with the reason and where to look."""
    lines = []
    for cell in summaries(cells):
        if not cell.measured:
            where = f"; log {cell.error_log}" if cell.error_log else ""
            why = cell.error_message or _gate_text(cell)
            lines.append(f"{cell.strategy} {cell.cell_id} {cell.outcome}: {why}{where}")
    return lines


def _gate_text(cell: CellSummary) -> str:
    if cell.outcome == "wrong":
        error, detail = cell.gate_error, cell.gate_detail or "outputs disagree with the oracle"
        return detail + (f"; largest error of an output before timing {error:.2g}" if error else "")
    return "; ".join(cell.notes) or "no reason recorded"


def long_rows(tables: list[Table]) -> list[dict[str, Any]]:
    """Every entry on its own row, for CSV: full precision, flags in words."""
    return [
        {
            "table": table.title,
            table.corner: row,
            "series": column,
            "value": cell.value,
            "low": cell.low,
            "high": cell.high,
            "outcome": cell.outcome,
            "flags": " ".join(cell.flags),
            "cell_id": cell.cell_id,
        }
        for table in tables
        for (row, column), cell in table.entries.items()
        if cell.outcome
    ]
