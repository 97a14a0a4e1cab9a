"""Strong scaling (same work, more ranks) and weak scaling (work grows with the ranks)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.frame import hashable
from analysis.panels import SERIAL, Panel, panels, setting
from analysis.plots import canvas
from analysis.plots.canvas import Scene
from analysis.plots.lines import difference

MAX_PANELS = 3


def strong_scaling(scene: Scene) -> Figure | None:
    """Speed-up against the serial cell of the same work; against its own fewest ranks without."""
    found = panels(scene.cells, "world_size")[:MAX_PANELS]
    if not found:
        return None
    made = canvas.figure(len(found))
    grid = made.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for ax, panel in zip(grid, found, strict=True):
        ratios = speedups(panel)
        _draw(ax, ratios, [float(x) for x in panel.values], bool(_serial(panel)))
        ax.set_title(difference(panel, found))
    grid[0].set_ylabel("speed-up")
    canvas.legend(made, grid)
    grows = any("experts = ranks" in setting(panel) for panel in found)
    note = " Experts grow with ranks here, so the work is not the same." if grows else ""
    base = "serial (one rank, every core)" if _serial(found[0]) else "its own fewest ranks"
    text = f"Strong scaling: {setting(found[0])}; against {base}.{note}"
    return canvas.finish(made, scene, "strong_scaling", [text], canvas.shown_in(found))


def _serial(panel: Panel) -> dict[float, float]:
    rows = panel.cells[(panel.cells["series"] == SERIAL) & (panel.cells["outcome"] == "measured")]
    return {float(r["x"]): float(r["median_ms"]) for _, r in rows.iterrows()}


def speedups(panel: Panel) -> dict[str, dict[float, float]]:
    """Per strategy: ranks -> baseline's duration over its own."""
    serial = _serial(panel)
    found: dict[str, dict[float, float]] = {}
    for name in panel.series:
        rows = panel.cells[(panel.cells["series"] == name) & (panel.cells["median_ms"] > 0)]
        times = {float(r["x"]): float(r["median_ms"]) for _, r in rows.iterrows()}
        if name == SERIAL or not times:
            continue
        base = serial or dict.fromkeys(times, times[min(times)])
        found[name] = {x: base[x] / t for x, t in sorted(times.items()) if x in base}
    return found


def _draw(
    ax: Axes, ratios: dict[str, dict[float, float]], ranks: Sequence[float], serial: bool
) -> None:
    for name, points in ratios.items():
        ax.plot(list(points), list(points.values()), label=name, **canvas.look(name, list(ratios)))
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


def weak_scaling(scene: Scene) -> Figure | None:
    """Efficiency t(fewest ranks) / t(ranks) of cells whose batch grows as their ranks do."""
    groups = weak_groups(scene.cells)
    if not groups:
        return None
    made = canvas.figure()
    ax = made.subplots()
    every: set[float] = set()
    for name, times in groups.items():
        first = times[min(times)]
        every |= set(times)
        values = [first / times[x] for x in sorted(times)]
        ax.plot(sorted(times), values, label=name, **canvas.look(name.split(",")[0], ()))
    ax.axhline(1.0, color="#777777", linewidth=1, label="ideal")
    canvas.number_axis(ax, sorted(every))
    ax.set_ylim(bottom=0)
    ax.set_xlabel("ranks (batch grows with them)")
    ax.set_ylabel("efficiency")
    canvas.legend(made, [ax])
    text = "Weak scaling: the same tokens per rank; 1 is a duration that does not grow."
    return canvas.finish(made, scene, "weak_scaling", [text])


def weak_groups(cells: pd.DataFrame) -> dict[str, dict[float, float]]:
    """Per strategy and tokens per rank, at one shape of layer: ranks -> ms, two sizes or more."""
    names = ("num_experts", "topk", "dim", "hidden", "dtype", "tokens", "mode", "cache", "host")
    found: dict[tuple[object, ...], dict[float, float]] = {}
    rows = cells[(cells["outcome"] == "measured") & (cells["strategy"] != SERIAL)]
    for _, row in rows.iterrows():
        each = row["batch_size"] / row["world_size"]
        key = (row["strategy"], row["dispatcher"], each, *(hashable(row[n]) for n in names))
        found.setdefault(key, {})[float(row["world_size"])] = float(row["median_ms"])
    return {f"{k[0]}, {k[2]:g} per rank": v for k, v in found.items() if len(v) > 1}
