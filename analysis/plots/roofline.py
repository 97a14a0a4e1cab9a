"""Arithmetic rate against intensity, under the roof that was calibrated on the same machine."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from analysis import numbers
from analysis.data.cell_summary import CellSummary, cells_frame
from analysis.data.series import series_order
from analysis.plots import canvas
from analysis.plots.bars import bar_names, in_order
from analysis.plots.canvas import PlotData
from analysis.plots.drawing import Drawing, Row, Values
from analysis.stats.roofline import Bound, bounded, flops, matrix_rate, read_rate, weight_bytes


def roofline(scene: PlotData) -> Drawing | None:
    """Cells with a calibration: useful and repeated FLOPs of all ranks over bytes of weights."""
    limited = bounded(scene.cells)
    if not limited:
        return None
    fig = canvas.figure()
    ax = fig.subplots()
    names = sorted({name for name, _, _ in limited}, key=series_order)
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
    about = "Arithmetic rate of a step against its intensity, under the calibrated roofs."
    notes = ["Roofs: calibrated matrix rate and bandwidth of all ranks together on this machine."]
    measured = cells_frame(cell for _, cell, _ in limited)
    return canvas.finish(
        fig, scene, "roofline", about, notes, shown=measured, values=_values(measured, limited)
    )


def _values(measured: pd.DataFrame, limited: Sequence[tuple[str, CellSummary, Bound]]) -> Values:
    names = bar_names(measured)
    rows = [
        Row((names[position], *(numbers.short(v, 4) for v in _figures(cell)),
             f"{limit.compute_fraction:.1%}"), (cell.cell_id,))
        for position, (_, cell, limit) in ((i, limited[i]) for i in in_order(measured))
    ]  # fmt: skip
    header = ("cell", "FLOP per byte", "GFLOP/s", "median ms", "of its compute limit")
    return Values(header, tuple(rows))


def _figures(cell: CellSummary) -> tuple[float, float, float]:
    """Intensity, rate in GFLOP/s, and median time in ms."""
    rate = flops(cell) / cell.median_ms / 1e6
    return flops(cell) / weight_bytes(cell), rate, cell.median_ms


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
