"""Every long block in the order it was taken, with the warm-up: whether the times are steady."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from matplotlib.axes import Axes

from analysis import numbers
from analysis.data.frame import plain
from analysis.plots import canvas
from analysis.plots.bars import bar_names, in_order
from analysis.plots.canvas import PlotData
from analysis.plots.drawing import Drawing, Row, Values

MAX_TRACES = 12
COLUMNS = 3


def traces(scene: PlotData) -> Drawing | None:
    """Small multiples, one per attempt, by strategy and setting; the least steady ones where there
    are many."""
    frame = scene.frame
    if "sample_ms" not in frame:
        return None
    frame = frame[frame["median_duration_ms"].notna()]
    names = dict(zip(frame.index, bar_names(frame), strict=True))
    scattered = sorted(frame.index, key=lambda i: -_spread(frame.loc[i]))[:MAX_TRACES]
    if not scattered:
        return None
    order = [i for i in (frame.index[n] for n in in_order(frame)) if i in scattered]
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
    about = "Every sample in the order taken (grey: warm-up); line: the time of a step"
    about += f"; the {len(order)} most scattered of {len(frame)} attempts." if hidden else "."
    notes = ["A point is the mean of a block, its start included."]
    values = Values(("attempt", "median ms", "samples", "deviation / mean"), tuple(
        Row((f"{names[i]} launch {frame.launch[i]}", numbers.short(frame.median_duration_ms[i], 4),
             str(len(_blocks(frame.loc[i]))), f"{_spread(frame.loc[i]):.1%}"),
            (str(frame.cell_id[i]),))
        for i in order
    ))  # fmt: skip
    return canvas.finish(fig, scene, "traces", about, notes, values=values)


def _spread(attempt: Any) -> float:
    """Standard deviation of the attempt's times over their mean; 0 where that is 0."""
    deviation, mean = plain(attempt.std_duration_ms), float(attempt.avg_duration_ms)
    return float(deviation or 0.0) / mean if mean else 0.0


def _blocks(attempt: Any) -> list[tuple[float, str]]:
    """(time, kind) of the warm-up and of the long blocks."""
    taken = zip(attempt.sample_ms, attempt.sample_kind, strict=True)
    return [(value, kind) for value, kind in taken if kind in ("warmup", "long", "fixed")]


def _trace(ax: Axes, attempt: Any, name: str) -> None:
    blocks = _blocks(attempt)
    values = [value for value, _ in blocks]
    ax.plot(range(len(values)), values, color="#0072B2", marker=".", markersize=4, linewidth=0.8)
    for x, (_, kind) in enumerate(blocks):
        if kind == "warmup":
            ax.axvspan(x - 0.5, x + 0.5, color="#cccccc", linewidth=0)
    ax.axhline(float(attempt.median_duration_ms), color="#D55E00", linewidth=1)
    ax.set_ylim(bottom=0)
    series, _, setting = name.removesuffix(")").partition("  (")
    lines = [*textwrap.wrap(series, 40), *textwrap.wrap(setting, 44)]
    label = ax.set_title("\n".join(lines), size=7.5, weight="normal")
    label.set_parse_math(False)
    ax.tick_params(labelsize=7)
