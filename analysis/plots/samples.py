"""Every long block in the order it was taken, with the warm-up: whether the times are steady."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.data.frame import plain
from analysis.plots import canvas
from analysis.plots.bars import bar_names
from analysis.plots.canvas import PlotData

MAX_TRACES = 12
COLUMNS = 3


def traces(scene: PlotData) -> Figure | None:
    """Small multiples, one per attempt; the least steady ones where there are many."""
    frame = scene.frame
    if "sample_ms" not in frame:
        return None
    frame = frame[frame["median_duration_ms"].notna()]
    names = dict(zip(frame.index, bar_names(frame), strict=True))
    order = sorted(frame.index, key=lambda i: -_spread(frame.loc[i]))[:MAX_TRACES]
    if not order:
        return None
    rows = math.ceil(len(order) / COLUMNS)
    fig = canvas.figure(COLUMNS, rows, width=9.5, height=1.9)
    grid = fig.subplots(rows, COLUMNS, squeeze=False)
    for ax, index in zip(grid.flat, order, strict=False):
        _trace(ax, frame.loc[index], names[index])
    for ax in list(grid.flat)[len(order) :]:
        ax.set_visible(False)
    fig.supxlabel("sample, in the order taken", size=10)
    fig.supylabel("ms per step", size=10)
    hidden = len(frame) - len(order)
    text = "Points: mean of a block, its start included. Grey: warm-up. Line: time of a step." + (
        f" The {len(order)} most scattered of {len(frame)} attempts." if hidden else ""
    )
    return canvas.finish(fig, scene, "traces", [text])


def _spread(attempt: Any) -> float:
    """Standard deviation of the attempt's times over their mean."""
    deviation = plain(attempt.std_duration_ms)
    return float(deviation or 0.0) / float(attempt.avg_duration_ms)


def _trace(ax: Axes, attempt: Any, name: str) -> None:
    taken = zip(attempt.sample_ms, attempt.sample_kind, strict=True)
    blocks = [(value, kind) for value, kind in taken if kind in ("warmup", "long", "fixed")]
    values = [value for value, _ in blocks]
    ax.plot(range(len(values)), values, color="#0072B2", marker=".", markersize=4, linewidth=0.8)
    for x, (_, kind) in enumerate(blocks):
        if kind == "warmup":
            ax.axvspan(x - 0.5, x + 0.5, color="#cccccc", linewidth=0)
    ax.axhline(float(attempt.median_duration_ms), color="#D55E00", linewidth=1)
    ax.set_ylim(bottom=0)
    label = ax.set_title("\n".join(textwrap.wrap(name, 38)), size=7.5, weight="normal")
    label.set_parse_math(False)
    ax.tick_params(labelsize=7)
