"""Strong scaling (same work, more ranks) and weak scaling (work grows with the ranks)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from analysis import numbers
from analysis.data.cell_summary import CellSummary, cells_frame, measured, summaries
from analysis.data.facets import (
    DESCRIBED,
    Facet,
    facets,
    grouped,
    setting,
    shared_setting,
    title_of,
)
from analysis.data.frame import varying
from analysis.data.series import SERIAL, VARIANT, series_names, series_order, without_serial
from analysis.plots import canvas
from analysis.plots.canvas import PlotData
from analysis.plots.drawing import Drawing, Row, Values
from analysis.plots.lines import HOLLOW, difference

MAX_FACETS = 3


def strong_scaling(scene: PlotData) -> Drawing | None:
    """Speed-up against the serial cell of the same work, or else against the fewest ranks."""
    drawn = facets(scene.cells, "world_size")[:MAX_FACETS]
    if not drawn:
        return None
    fig = canvas.figure(len(drawn))
    grid = fig.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    for ax, facet in zip(grid, drawn, strict=True):
        ratios = speedups(facet)
        marked = _oversubscribed(facet)
        _draw(ax, ratios, [float(x) for x in facet.values], bool(_serial(facet)), marked)
        ax.set_title(difference(facet, drawn))
    grid[0].set_ylabel("speed-up")
    canvas.legend(fig, grid, [HOLLOW] if any(map(_oversubscribed, drawn)) else [])
    grows = any("experts = ranks" in setting(facet) for facet in drawn)
    notes = ["Experts grow with ranks here, so the work is not the same."] if grows else []
    base = "serial (one process with every core)" if _serial(drawn[0]) else "its own fewest ranks"
    about = "; ".join(filter(None, [f"Speed-up over {base} as ranks grow", shared_setting(drawn)]))
    return canvas.finish(
        fig,
        scene,
        "strong_scaling",
        f"{about}.",
        notes,
        canvas.shown_in(drawn),
        _speed_values(drawn),
    )


def _speed_values(drawn: Sequence[Facet]) -> Values:
    rows = [
        Row((difference(facet, drawn).replace("\n", ", "), name, f"{x:g}",
             numbers.short(ratio, 4), numbers.short(cell.median_ms, 4)), (cell.cell_id,))
        for facet in drawn
        for name, points in speedups(facet).items()
        for x, ratio in points.items()
        if (cell := facet.at(int(x), name))
    ]  # fmt: skip
    return Values(("panel", "series", "ranks", "speed-up", "median ms"), tuple(rows))


def _times(facet: Facet, series: str) -> dict[float, float]:
    """Ranks -> median time of a step in ms."""
    cells = ((x, facet.at(x, series)) for x in facet.values)
    return {float(x): cell.median_ms for x, cell in cells if cell and cell.measured}


def _serial(facet: Facet) -> dict[float, float]:
    return _times(facet, SERIAL)


def speedups(facet: Facet) -> dict[str, dict[float, float]]:
    """Per strategy: ranks -> baseline's duration over its own."""
    serial = _serial(facet)
    ratios: dict[str, dict[float, float]] = {}
    for name in facet.series:
        times = _times(facet, name)
        if name == SERIAL or not times:
            continue
        base = serial or dict.fromkeys(times, times[min(times)])
        ratios[name] = {x: base[x] / t for x, t in sorted(times.items()) if x in base}
    return ratios


def _oversubscribed(facet: Facet) -> set[tuple[str, float]]:
    """Series and ranks of the cells whose time has waiting for a core in it."""
    named = zip(facet.cells["series"], summaries(facet.cells), strict=True)
    return {(n, float(cell.world_size)) for n, cell in named if "oversubscribed" in cell.flags}


def _line(
    ax: Axes, name: str, points: dict[float, float], style: dict[str, Any],
    marked: Collection[tuple[str, float]],
) -> None:  # fmt: skip
    ax.plot(list(points), list(points.values()), label=name, **style)
    hollow = [(x, y) for x, y in points.items() if (name, x) in marked]
    if hollow:
        marks = {"marker": style["marker"], "markeredgecolor": style["color"]}
        ax.plot(*zip(*hollow, strict=True), linestyle="", markerfacecolor="white", **marks)


def _draw(
    ax: Axes, ratios: dict[str, dict[float, float]], ranks: Sequence[float], serial: bool,
    marked: Collection[tuple[str, float]],
) -> None:  # fmt: skip
    for name, points in ratios.items():
        _line(ax, name, points, canvas.look(name, list(ratios)), marked)
    base = 1.0 if serial else min(ranks)
    ax.plot(ranks, [r / base for r in ranks], color="#777777", linewidth=1, label="ideal")
    ax.axhline(1.0, color="#000000", linewidth=1, linestyle=":", label="serial" if serial else "1x")
    canvas.number_axis(ax, list(ranks))
    values = [v for points in ratios.values() for v in points.values()]
    canvas.number_axis(ax, _powers([*values, *(r / base for r in ranks)]), "y")
    ax.set_xlabel("ranks")


def _powers(values: Sequence[float]) -> list[float]:
    """Powers of two that enclose the values."""
    powers = [1.0]
    while powers[0] > min(values):
        powers.insert(0, powers[0] / 2)
    while powers[-1] < max(values):
        powers.append(powers[-1] * 2)
    return powers


def weak_scaling(scene: PlotData) -> Drawing | None:
    """Efficiency t(fewest ranks) / t(ranks) of cells whose batch grows as their ranks do."""
    groups = weak_groups(scene.cells)
    if not groups:
        return None
    fig = canvas.figure()
    ax = fig.subplots()
    every = [cell for cells in groups.values() for cell in cells]
    waiting = [cell for cell in every if "oversubscribed" in cell.flags]
    for name, cells in groups.items():
        times = {float(cell.world_size): cell.median_ms for cell in cells}
        points = {x: times[min(times)] / times[x] for x in sorted(times)}
        marked = {(name, float(cell.world_size)) for cell in cells if cell in waiting}
        _line(ax, name, points, _look(name, groups), marked)
    ax.axhline(1.0, color="#777777", linewidth=1, label="ideal")
    canvas.number_axis(ax, sorted({float(cell.world_size) for cell in every}))
    ax.set_ylim(bottom=0)
    ax.set_xlabel("ranks (batch grows with them)")
    ax.set_ylabel("efficiency")
    canvas.legend(fig, [ax], [HOLLOW] if waiting else [])
    about = "Weak scaling: the same tokens per rank; 1 is a duration that does not grow."
    return canvas.finish(
        fig, scene, "weak_scaling", about, shown=cells_frame(every), values=_weak_values(groups)
    )


def _weak_values(groups: dict[str, list[CellSummary]]) -> Values:
    rows = [
        Row((name, str(cell.world_size), numbers.short(cells[0].median_ms / cell.median_ms, 4),
             numbers.short(cell.median_ms, 4)), (cell.cell_id,))
        for name, cells in groups.items()
        for cell in cells
    ]  # fmt: skip
    return Values(("series", "ranks", "efficiency", "median ms"), tuple(rows))


def _look(name: str, among: Collection[str]) -> dict[str, Any]:
    """The series' own look where it has one line; its lines are told apart where it has more."""
    series = name.partition(" (")[0]
    own = [other for other in among if other.partition(" (")[0] == series]
    return canvas.look(name, list(among)) if len(own) > 1 else canvas.look(series)


def weak_groups(cells: pd.DataFrame) -> dict[str, list[CellSummary]]:
    """Per series and tokens per rank, all else equal: its cells by ranks, two sizes or more."""
    rows = measured(without_serial(cells))
    rows = rows.assign(series=series_names(rows), each=rows["batch_size"] / rows["world_size"])
    follow = ("batch_size", "world_size", "threads")
    names = [
        "series",
        "each",
        *(n for n in varying(rows, (*DESCRIBED, "host", "metric")) if n not in follow),
    ]
    groups = [(dict(fixed), part) for fixed, part in grouped(rows, names)]
    groups = [(fixed, part) for fixed, part in groups if part["world_size"].nunique() > 1]
    context = [n for n in names[2:] if n not in VARIANT and n not in ("strategy", "topk")]
    context = [n for n in context if len({fixed[n] for fixed, _ in groups}) > 1]
    named = {}
    for fixed, part in groups:
        words = [f"{fixed['each']:g} per rank", *(f"{title_of(n)} {fixed[n]}" for n in context)]
        ordered = part.drop_duplicates("world_size").sort_values("world_size")
        named[f"{fixed['series']} ({', '.join(words)})"] = summaries(ordered)
    return dict(sorted(named.items(), key=lambda item: series_order(item[0])))
