"""Arithmetic rate against intensity, under the roof that was calibrated on the same machine."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from analysis.data.facets import series_names
from analysis.plots import canvas
from analysis.plots.canvas import PlotData
from analysis.stats.roofline import bound, flops, matrix_rate, read_rate, weight_bytes


def roofline(scene: PlotData) -> Figure | None:
    """Cells with a calibration: useful and repeated FLOPs of all ranks over bytes of weights."""
    named = scene.cells.assign(series=series_names(scene.cells))
    rows: list[Any] = [row for _, row in named.iterrows()]
    rows = [row for row in rows if bound(row)]
    if not rows:
        return None
    made = canvas.figure(height=4.0)
    ax = made.subplots()
    names = sorted({str(row["series"]) for row in rows})
    for name in names:
        mine = [row for row in rows if row["series"] == name]
        x = [flops(row) / weight_bytes(row) for row in mine]
        y = [flops(row) / row["median_ms"] * 1e3 for row in mine]
        style = canvas.look(name, names) | {"linestyle": ""}
        ax.plot(x, y, label=name, **style)
    _roofs(ax, rows)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("FLOP per byte of weights")
    ax.set_ylabel("FLOP/s, all ranks")
    canvas.legend(made, [ax])
    text = "Roofs: calibrated matrix rate and bandwidth of all ranks together on this machine."
    return canvas.finish(made, scene, "roofline", [text])


def _roofs(ax: Any, rows: list[Any]) -> None:
    """One roof per dtype and bandwidth, drawn over the cells' range of intensity."""
    intensities = [flops(row) / weight_bytes(row) for row in rows]
    low, high = min(intensities) / 4, max(intensities) * 8
    seen: set[str] = set()
    for row in rows:
        rate, read = matrix_rate(row), read_rate(row)
        name = f"{rate:.3g} {read:.3g}"
        if name in seen:
            continue
        ridge = rate / read
        points = sorted({low, min(max(ridge, low), high), high})
        heights = [min(rate, read * p) for p in points]
        dashes = ("-", "--", "-.", ":")[len(seen) % 4]
        label = "_" if seen else "calibrated roofs"
        ax.plot(points, heights, color="#555555", linewidth=1.1, linestyle=dashes, label=label)
        seen.add(name)
