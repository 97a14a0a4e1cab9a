"""Strong scaling (same work, more ranks) and weak scaling (work grows with the ranks)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.data.facets import (
    DESCRIBED,
    SERIAL,
    VARIANT,
    Facet,
    facets,
    grouped,
    series_names,
    setting,
    title_of,
)
from analysis.data.frame import varying
from analysis.plots import canvas
from analysis.plots.canvas import PlotData
from analysis.plots.lines import HOLLOW, difference

MAX_FACETS = 3


def strong_scaling(scene: PlotData) -> Figure | None:
    """Speed-up against the serial cell of the same work; against its own fewest ranks without."""
    found = facets(scene.cells, "world_size")[:MAX_FACETS]
    if not found:
        return None
    made = canvas.figure(len(found))
    grid = made.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for ax, facet in zip(grid, found, strict=True):
        ratios = speedups(facet)
        marked = oversubscribed(facet.cells)
        _draw(ax, ratios, [float(x) for x in facet.values], bool(_serial(facet)), marked)
        ax.set_title(difference(facet, found))
    grid[0].set_ylabel("speed-up")
    canvas.legend(made, grid, [HOLLOW] if any(oversubscribed(p.cells) for p in found) else [])
    grows = any("experts = ranks" in setting(facet) for facet in found)
    note = " Experts grow with ranks here, so the work is not the same." if grows else ""
    base = "serial (one rank, every core)" if _serial(found[0]) else "its own fewest ranks"
    text = f"Strong scaling: {setting(found[0])}; against {base}.{note}"
    return canvas.finish(made, scene, "strong_scaling", [text], canvas.shown_in(found))


def _serial(facet: Facet) -> dict[float, float]:
    rows = facet.cells[(facet.cells["series"] == SERIAL) & (facet.cells["outcome"] == "measured")]
    return {float(r["x"]): float(r["median_ms"]) for _, r in rows.iterrows()}


def speedups(facet: Facet) -> dict[str, dict[float, float]]:
    """Per strategy: ranks -> baseline's duration over its own."""
    serial = _serial(facet)
    found: dict[str, dict[float, float]] = {}
    for name in facet.series:
        rows = facet.cells[(facet.cells["series"] == name) & (facet.cells["median_ms"] > 0)]
        times = {float(r["x"]): float(r["median_ms"]) for _, r in rows.iterrows()}
        if name == SERIAL or not times:
            continue
        base = serial or dict.fromkeys(times, times[min(times)])
        found[name] = {x: base[x] / t for x, t in sorted(times.items()) if x in base}
    return found


def oversubscribed(cells: pd.DataFrame) -> set[tuple[str, float]]:
    """Series and ranks of the cells whose time has waiting for a core in it."""
    names = cells["series"] if "series" in cells else cells["strategy"]
    both = zip(names, cells["world_size"], cells["flags"], strict=True)
    return {(str(n), float(r)) for n, r, flags in both if "oversubscribed" in flags}


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
    found = [1.0]
    while found[0] > min(values):
        found.insert(0, found[0] / 2)
    while found[-1] < max(values):
        found.append(found[-1] * 2)
    return found


def weak_scaling(scene: PlotData) -> Figure | None:
    """Efficiency t(fewest ranks) / t(ranks) of cells whose batch grows as their ranks do."""
    groups = weak_groups(scene.cells)
    if not groups:
        return None
    made = canvas.figure()
    ax = made.subplots()
    for name, rows in groups.items():
        times = {float(r["world_size"]): float(r["median_ms"]) for r in rows}
        points = {x: times[min(times)] / times[x] for x in sorted(times)}
        marked = {(name, x) for _, x in oversubscribed(pd.DataFrame(rows))}
        _line(ax, name, points, canvas.look(name, list(groups)), marked)
    ax.axhline(1.0, color="#777777", linewidth=1, label="ideal")
    every = {float(r["world_size"]) for rows in groups.values() for r in rows}
    canvas.number_axis(ax, sorted(every))
    ax.set_ylim(bottom=0)
    ax.set_xlabel("ranks (batch grows with them)")
    ax.set_ylabel("efficiency")
    shown = pd.DataFrame([r for rows in groups.values() for r in rows])
    canvas.legend(made, [ax], [HOLLOW] if oversubscribed(shown) else [])
    text = "Weak scaling: the same tokens per rank; 1 is a duration that does not grow."
    return canvas.finish(made, scene, "weak_scaling", [text], shown)


def weak_groups(cells: pd.DataFrame) -> dict[str, list[pd.Series[Any]]]:
    """Per series and tokens per rank, all else equal: its cells by ranks, two sizes or more."""
    rows = cells[(cells["outcome"] == "measured") & (cells["strategy"] != SERIAL)]
    rows = rows.assign(series=series_names(rows), each=rows["batch_size"] / rows["world_size"])
    follow = ("batch_size", "world_size", "threads")
    names = ["series", "each", *(n for n in varying(rows, (*DESCRIBED, "host")) if n not in follow)]
    groups = [(dict(fixed), part) for fixed, part in grouped(rows, names)]
    groups = [(fixed, part) for fixed, part in groups if part["world_size"].nunique() > 1]
    told = [n for n in names[2:] if n not in VARIANT and n not in ("strategy", "topk")]
    told = [n for n in told if len({fixed[n] for fixed, _ in groups}) > 1]
    found = {}
    for fixed, part in groups:
        words = [f"{fixed['each']:g} per rank", *(f"{title_of(n)} {fixed[n]}" for n in told)]
        ordered = part.drop_duplicates("world_size").sort_values("world_size")
        found[f"{fixed['series']} ({', '.join(words)})"] = [row for _, row in ordered.iterrows()]
    return found
