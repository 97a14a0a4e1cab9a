"""The cells of a sweep as tables and plots show them: along an axis, by series, all else fixed.

A facet holds the cells that differ in one axis and in the strategy only. A sweep that varies more
has several facets of one axis; what must follow the axis (threads follow ranks) makes no new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from analysis.data.cell_summary import CellSummary, summaries
from analysis.data.frame import hashable, varying, where
from analysis.data.schema import CONFIG, LOAD_PARTS
from analysis.data.series import (
    SERIAL,
    VARIANT,
    serial_of,
    series_names,
    series_order,
    without_serial,
)
from runners.records import forced_balance

# Columns that may follow an axis without being an axis of their own.
COMPANIONS = {
    "topk_requested": ("topk",),
    "topk": ("topk_requested",),
    "world_size": ("threads", "num_experts", "topk"),
    "num_experts": ("topk",),
    "load": LOAD_PARTS,
    "seed": ("weight_seed",),
    "dim": ("hidden", "dim_out"),
    "model": CONFIG,
}
FIRST_AXES = ("topk_requested", "batch_size", "world_size", "num_experts", "dim", "load")
NOT_AXES = ("strategy", "topk", "weight_seed", "threads", "workload", "workload_nominal_ep",
            "trace_sha256")  # fmt: skip
DESCRIBED = (*(n for n in CONFIG if n not in LOAD_PARTS), "load")
PLAIN = (forced_balance.LABEL, "learned", "forward", "replicated", "warm", "float32")
TITLES = {
    "topk_requested": "top-k",
    "topk": "top-k",
    "batch_size": "batch size",
    "world_size": "ranks",
    "num_experts": "experts",
    "load": "workload",
    "expert_placement": "placement",
    "workload_parameter": "workload parameter",
    "host": "host",
}


@dataclass(frozen=True)
class Facet:
    """Cells with one axis; `cells` has the added columns x (axis value) and series (name)."""

    axis: str
    fixed: tuple[tuple[str, Any], ...]  # what the sweep varies elsewhere, and is fixed here
    cells: pd.DataFrame

    @property
    def values(self) -> list[Any]:
        """The axis values, sorted."""
        return sorted({hashable(x) for x in self.cells["x"]}, key=sort_key)

    @property
    def series(self) -> list[str]:
        """The names of the series, in their order."""
        return sorted(set(self.cells["series"]), key=series_order)

    def at(self, x: Any, series: str) -> CellSummary | None:
        """The cell at this place, if there is one."""
        return self._by_place.get((series, hashable(x)))

    @cached_property
    def _by_place(self) -> dict[tuple[str, Any], CellSummary]:
        """The first cell of each place."""
        places = zip(self.cells["series"], map(hashable, self.cells["x"]), strict=True)
        return dict(reversed(list(zip(places, summaries(self.cells), strict=True))))

    def fixed_of(self, name: str) -> Any:
        """The value all cells of the strategies under test share, or None where they differ."""
        values = {hashable(v) for v in without_serial(self.cells)[name]}
        return values.pop() if len(values) == 1 else None


def sort_key(value: Any) -> tuple[int, float, str]:
    """Sorts values of an axis: numbers by size, then texts, those of PLAIN first."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (0, float(value), "")
    return (1, 0.0 if value in PLAIN else 1.0, str(value))


def axes(cells: pd.DataFrame) -> list[str]:
    """The columns along which the sweep has at least two values with all else fixed."""
    candidates = [n for n in varying(cells, (*CONFIG, "load")) if n not in (*VARIANT, *NOT_AXES)]
    if "load" in candidates and varying(cells, LOAD_PARTS) == ["workload_parameter"]:
        candidates.remove("load")  # a number, along which growth can be fitted
    ordered = [n for n in FIRST_AXES if n in candidates]
    ordered += [n for n in candidates if n not in ordered]
    return [name for name in ordered if facets(cells, name)]


def facets(cells: pd.DataFrame, axis: str, minimum: int = 2) -> list[Facet]:
    """All facets of an axis with at least `minimum` of its values, largest first."""
    axis = "load" if axis == "workload" else axis
    tested = without_serial(cells)
    if tested.empty:
        tested = cells
    companions = COMPANIONS.get(axis, ())
    free = (axis, "strategy", *companions, *VARIANT)
    described = CONFIG if axis in LOAD_PARTS else DESCRIBED
    context = [n for n in varying(tested, (*described, "host", "metric")) if n not in free]
    of_axis = [
        _facet(cells, part, axis, (*fixed, *extra))
        for fixed, group in grouped(tested, context)
        for extra, part in _without_conflicts(group, axis, companions)
        if len({hashable(v) for v in part[axis]}) >= minimum
    ]
    return sorted(of_axis, key=lambda f: (-len(f.cells), [sort_key(v) for _, v in f.fixed]))


def grouped(
    cells: pd.DataFrame, names: Sequence[str]
) -> Iterator[tuple[tuple[tuple[str, Any], ...], pd.DataFrame]]:
    """Rows by equal values of the columns, also of list columns, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    columns = [list(cells[n]) for n in names]
    for position in range(len(cells)):
        key = tuple(hashable(column[position]) for column in columns)
        groups.setdefault(key, []).append(position)
    for key, positions in groups.items():
        yield tuple(zip(names, key, strict=True)), cells.iloc[positions]


def _without_conflicts(
    group: pd.DataFrame, axis: str, companions: Sequence[str]
) -> Iterator[tuple[tuple[tuple[str, Any], ...], pd.DataFrame]]:
    """The group, or its parts where two cells of one strategy fall on one place of the axis."""
    place = [axis, "strategy", *VARIANT]
    crossed = [name for name in companions if _crosses(group, place, name)]
    if not crossed:
        yield (), group
        return
    if "num_experts" in crossed and axis == "world_size":
        follows = group[group["num_experts"] == group["world_size"]]
        others = [n for n in crossed if n not in ("num_experts", "topk")]
        for fixed, part in grouped(follows, others):
            yield (("num_experts", "ranks"), *fixed), part
    yield from grouped(group, crossed)


def _crosses(group: pd.DataFrame, place: Sequence[str], name: str) -> bool:
    """Whether two cells at one place differ in this column."""
    keys = zip(*(map(hashable, group[n]) for n in place), strict=True)
    seen: dict[tuple[Any, ...], Any] = {}
    return any(
        seen.setdefault(key, value) != value
        for key, value in zip(keys, map(hashable, group[name]), strict=True)
    )


def _facet(
    cells: pd.DataFrame, part: pd.DataFrame, axis: str, fixed: tuple[tuple[str, Any], ...]
) -> Facet:
    rows = part.assign(x=part[axis], series=series_names(part))
    serial = cells[cells["strategy"] == SERIAL]
    places = without_serial(part).drop_duplicates(axis) if len(serial) else serial
    baseline = [
        match.assign(x=[summary.value(axis)], series=[SERIAL])
        for summary in summaries(places)
        if not (match := serial_of(serial, summary)).empty
    ]
    return Facet(axis, fixed, pd.concat([rows, *baseline], ignore_index=True))


def title_of(axis: str) -> str:
    """A column's name in titles: "top-k" for topk."""
    return TITLES.get(axis, axis.replace("_", " "))


SETTINGS = ("batch_size", "topk_requested", "world_size", "num_experts")


def setting(facet: Facet) -> str:
    """What is fixed, in words: "batch size 8, ranks 8"."""
    fixed = dict(facet.fixed)
    words = []
    for name in (*SETTINGS, *(n for n in fixed if n not in (*SETTINGS, "topk"))):
        if name in (facet.axis, "metric"):  # a table's heading names the metric
            continue
        value = fixed.get(name, facet.fixed_of(name))
        if name == "num_experts" and facet.axis == "world_size" and value is None:
            tested = summaries(without_serial(facet.cells))
            follows = all(s.cell.layer.num_experts == s.world_size for s in tested)
            value = "ranks" if follows else None
        if value is not None:
            words.append(f"{title_of(name)} = {value}" if value == "ranks" else _pair(name, value))
    load = str(facet.fixed_of("load") or "")
    if "load" not in fixed and load.startswith(forced_balance.LABEL):
        words.append(load)
    return ", ".join(words)


def shared_setting(among: Sequence[Facet]) -> str:
    """The settings that all facets have in common, in words."""
    first, *others = (setting(facet).split(", ") for facet in among)
    return ", ".join(word for word in first if all(word in other for other in others))


def _pair(name: str, value: Any) -> str:
    return f"{title_of(name)} {value}" if value != "" else f"no {title_of(name)}"


def x_label(facet: Facet, x: Any) -> str:
    """The axis value, with what ran instead where top-k was clamped."""
    for summary in summaries(where(without_serial(facet.cells), "x", x)):
        layer = summary.cell.layer
        if layer.topk != layer.topk_requested:
            ran = f"ran as {layer.topk}"
            if facet.axis == "topk_requested":
                return f"{x} ({ran})"
            return f"{x} (top-k {layer.topk_requested} {ran})"
    return str(x)
