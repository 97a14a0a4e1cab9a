"""Arithmetic rate against intensity, under the roof that was calibrated on the same machine."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.data.cell_summary import CellSummary
from analysis.plots import canvas
from analysis.plots.canvas import PlotData
from analysis.stats.roofline import bounded, flops, matrix_rate, read_rate, weight_bytes


def roofline(scene: PlotData) -> Figure | None:
    """Cells with a calibration: useful and repeated FLOPs of all ranks over bytes of weights."""
    limited = bounded(scene.cells)
    if not limited:
        return None
    fig = canvas.figure(height=4.0)
    ax = fig.subplots()
    names = sorted({name for name, _, _ in limited})
    for name in names:
        cells = [cell for series, cell, _ in limited if series == name]
        x = [flops(cell) / weight_bytes(cell) for cell in cells]
        y = [flops(cell) / cell.median_ms * 1e3 for cell in cells]
        style = canvas.look(name, names) | {"linestyle": ""}
        ax.plot(x, y, label=name, **style)
    _roofs(ax, [cell for _, cell, _ in limited])
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("FLOP per byte of weights")
    ax.set_ylabel("FLOP/s, all ranks")
    canvas.legend(fig, [ax])
    text = "Roofs: calibrated matrix rate and bandwidth of all ranks together on this machine."
    return canvas.finish(fig, scene, "roofline", [text])


def _roofs(ax: Axes, cells: Sequence[CellSummary]) -> None:
    """One roof per dtype and bandwidth, drawn over the cells' range of intensity."""
    intensities = [flops(cell) / weight_bytes(cell) for cell in cells]
    low, high = min(intensities) / 4, max(intensities) * 8
    seen: set[str] = set()
    for cell in cells:
        rate, read = matrix_rate(cell), read_rate(cell)
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
