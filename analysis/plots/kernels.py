"""Expert kernels and other systems' layers: rate against tokens, and what uneven splits cost."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.text import Text

from analysis import numbers
from analysis.data.cell_summary import cells_frame
from analysis.data.looks import kernel_look
from analysis.errors import InputError
from analysis.plots import canvas
from analysis.plots.canvas import PlotData
from analysis.plots.drawing import Drawing, Row, Values
from analysis.stats.kernels import (
    Entrant,
    Kernels,
    Setting,
    Uneven,
    limit_rate,
    order,
    rate,
    rate_unit,
)
from analysis.stats.verdict import NOISE_THRESHOLD
from analysis.text import settings
from analysis.text.kernels import percent

MAX_COLUMNS, MAX_ROWS = 3, 4  # of panels
ROOF: dict[str, Any] = {"color": "#555555", "linestyle": (0, (5, 2)), "linewidth": 1.2}
SPREAD = 0.04  # of the axis, over which the marks at one place are spread
WIDE = 6.0  # factor between the ends of an axis of ratios from which it is logarithmic
EDGE = 1.3  # factor beyond the ratios at which the axis ends; intervals may be longer

Key = tuple[str, str]  # column and row of a panel, in words


@dataclass(frozen=True)
class Point:
    """A mark: an entrant at so many tokens; its value, and the ends of its interval."""

    panel: Key
    entrant: Entrant
    tokens: int
    value: float
    low: float
    high: float


def kernels(scene: PlotData) -> list[Drawing] | None:
    """One picture per model: FLOP/s against tokens, a line for every kernel and peer."""
    view = _view(scene)
    if view is None or not _has_kernels(view):
        return None
    models = list(dict.fromkeys(s.fixed.get("model", "") for s in view.settings))
    pictures = []
    for model in models:
        of_model = [s for s in view.settings if s.fixed.get("model", "") == model]
        if len({s.fixed["batch_size"] for s in of_model if s.timed}) > 1:
            pictures.append(_rates(scene, of_model, model if len(models) > 1 else ""))
    return pictures or None


def _view(scene: PlotData) -> Kernels | None:
    try:
        return Kernels(scene.frame, scene.cells)
    except InputError:
        return None


def _has_kernels(view: Kernels) -> bool:
    """Whether some kernel was asked for by name, or a peer, and there are two to compare."""
    entrants = {e.series: e for s in view.settings for e in s.timed}
    named = any(e.is_peer or e.cell.cell.strategy.kernel != "auto" for e in entrants.values())
    return named and len(entrants) > 1


def _rates(scene: PlotData, of_model: list[Setting], model: str) -> Drawing:
    keys = _panels(of_model, ("load",), ("batch_size", "model"))
    unit, per_s = rate_unit([e for s in of_model for e in s.timed])
    points = [
        Point(keys[s, e.graph], e, s.fixed["batch_size"], *(v / unit for v in rate(e.cell)))
        for s in of_model
        for e in s.timed
    ]
    fig, axes = _grid(points, keys.values())
    for key, ax in axes.items():
        own = [p for p in points if p.panel == key]
        roof = {p.tokens: limit_rate(p.entrant.cell) / unit for p in own}
        known = {x: y for x, y in sorted(roof.items()) if math.isfinite(y)}
        if known:
            ax.plot(list(known), list(known.values()), label="roofline", zorder=1, **ROOF)
        _lines(ax, own, points)
        lost = [(s.fixed["batch_size"], e) for s in of_model for e in s.entrants
                if not e.cell.measured and keys[s, e.graph] == key]  # fmt: skip
        fig.kept_inside += _without_time(ax, lost)
        canvas.duration_axis(ax, [p.value for p in own] + list(known.values()))
    _label(fig, axes, per_s)
    about = "FLOP/s of a step (useful ones of the experts) against tokens"
    about += f"; {model}" if model else ""
    notes = ["Roofline: the calibrated limit of this machine; lines only guide the eye.",
             *_cut_note(points, axes)]  # fmt: skip
    shown = cells_frame(e.cell for s in of_model for e in s.entrants)
    option = ["--filter", f"model={model}"] if model else []
    own_scene = dataclasses.replace(scene, options=[*scene.options, *option])
    drawing = canvas.finish(
        fig, own_scene, "kernels", f"{about}.", notes, shown=shown,
        values=_values(points, per_s, [percent(p.entrant.fraction) for p in points],
                       "of the roofline"),
    )  # fmt: skip
    drawing.suffix = suffix(model)
    return drawing


def suffix(model: str) -> str:
    """Of the files' names of a model's picture, where there are several."""
    return f"_{re.sub(r'[^A-Za-z0-9.-]+', '_', model)}" if model else ""


def uneven(scene: PlotData) -> Drawing | None:
    """Time with an uneven workload over the time with forced balance, all else equal."""
    view = _view(scene)
    pairs = [] if view is None else [u for u in view.uneven if u.verdict]
    if view is None or not pairs:
        return None
    keys = _panels([u.setting for u in pairs], ("model",), ("batch_size",))
    points = [
        Point(keys[u.setting, u.entrant.graph], u.entrant, u.setting.fixed["batch_size"],
              *_ratio(u))
        for u in pairs
    ]  # fmt: skip
    fig, axes = _grid(points, keys.values())
    for key, ax in axes.items():
        ax.axhspan(1 / (1 + NOISE_THRESHOLD), 1 + NOISE_THRESHOLD, color="#e4e4e4", linewidth=0)
        ax.axhline(1.0, color="#555555", linewidth=1)
        _lines(ax, [p for p in points if p.panel == key], points)
    _ratio_axis(list(axes.values()), [p.value for p in points])
    _label(fig, axes, "uneven / balanced")
    about = "Time of a step with an uneven workload over that with forced balance."
    notes = [f"Intervals hold together at 95% (Bonferroni over {view.standings.comparisons}) and "
             "may end beyond the axis; grey: within the noise.",
             *_cut_note(points, axes)]  # fmt: skip
    shown = cells_frame(c for u in pairs for c in (u.entrant.cell, u.even.cell))
    words = [u.verdict.word if u.verdict else "" for u in pairs]
    values = _values(points, "uneven / balanced", words, "uneven is")
    return canvas.finish(fig, scene, "uneven", about, notes, shown=shown, values=values)


def _ratio(one: Uneven) -> tuple[float, float, float]:
    assert one.verdict is not None
    return one.verdict.ratio, one.verdict.low, one.verdict.high


def _panels(
    among: Sequence[Setting], across: Sequence[str], free: Sequence[str]
) -> dict[tuple[Setting, bool], Key]:
    """The panel of every setting, with and without a graph: `across` makes columns, what else
    varies rows; a single one that varies makes columns too."""
    graphs = {e.graph for s in among for e in s.entrants}
    varied = [n for n in among[0].fixed if n not in free and len({s.fixed[n] for s in among}) > 1]
    columns = [n for n in varied if n in across] or varied[:1]
    rows = [n for n in varied if n not in columns]
    keys = {}
    for setting in among:
        for graph in (False, True):
            how = ["graph" if graph else "eager"] if len(graphs) > 1 else []
            column, row = (settings.words(setting.fixed, names) for names in (columns, rows))
            keys[setting, graph] = (column, ", ".join(filter(None, [row, *how])))
    return keys


def _grid(points: Sequence[Point], keys: Iterable[Key]) -> tuple[Drawing, dict[Key, Axes]]:
    """A panel for every key that has points, in this order, as far as they are drawn."""
    used = [key for key in dict.fromkeys(keys) if any(p.panel == key for p in points)]
    columns = list(dict.fromkeys(column for column, _ in used))[:MAX_COLUMNS]
    rows = list(dict.fromkeys(row for _, row in used))[:MAX_ROWS]
    fig = canvas.figure(len(columns), len(rows), height=canvas.HEIGHT if len(rows) == 1 else 2.7)
    grid = fig.subplots(len(rows), len(columns), sharey="row", squeeze=False)
    axes = {}
    for line, row in zip(grid, rows, strict=True):
        for ax, column in zip(line, columns, strict=True):
            ax.set_title(", ".join(filter(None, [column, row])), parse_math=False)
            if (column, row) in used:
                axes[column, row] = ax
            else:
                ax.set_axis_off()
    return fig, axes


def _cut_note(points: Sequence[Point], axes: dict[Key, Axes]) -> list[str]:
    every = len({p.panel for p in points})
    return [f"{len(axes)} of {every} panels; --filter chooses others."] * (every > len(axes))


def _lines(ax: Axes, own: Sequence[Point], every: Sequence[Point]) -> None:
    """A line for every entrant, each moved aside a little so that error bars stay apart."""
    names = sorted({p.entrant.name for p in every}, key=order)
    tokens = sorted({p.tokens for p in own})
    canvas.number_axis(ax, tokens)
    reach = max(tokens) / min(tokens)
    for name in names:
        line = sorted((p for p in own if p.entrant.name == name), key=lambda p: p.tokens)
        if not line:
            continue
        shift = SPREAD * (names.index(name) / max(1, len(names) - 1) - 0.5)
        x = [p.tokens * reach**shift for p in line]
        y = [p.value for p in line]
        ends = [(max(p.value - p.low, 0.0), max(p.high - p.value, 0.0)) for p in line]
        bars = [[0.0 if math.isnan(v) else v for v in side] for side in zip(*ends, strict=True)]
        color, marker, dashes = kernel_look(name, names)
        ax.plot(x, y, label=name, color=color, marker=marker, linestyle=dashes)
        ax.errorbar(x, y, yerr=bars, fmt="none", ecolor=color, elinewidth=1.2, zorder=4)


def _without_time(ax: Axes, lost: Sequence[tuple[int, Entrant]]) -> list[Text]:
    """Cells that failed or were wrong, in words at their place."""
    labels = []
    for tokens in sorted({x for x, _ in lost}):
        words = [f"{e.name}: {e.cell.outcome}" for x, e in lost if x == tokens]
        look: dict[str, Any] = {"size": 7, "color": "#7A0000", "ha": "center", "va": "bottom"}
        look["bbox"] = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}
        where = ax.get_xaxis_transform()
        label = ax.text(tokens, 0.03, "\n".join(words), transform=where, zorder=6, **look)
        label.set_parse_math(False)
        label.set_in_layout(False)
        labels.append(label)
    return labels


def _ratio_axis(axes: Sequence[Axes], values: Sequence[float]) -> None:
    """The same for all panels, from the values: intervals may be longer."""
    low, high = min([*values, 1.0]) / EDGE, max([*values, 1.0]) * EDGE
    for ax in axes:
        if high > WIDE * low:
            ax.set_yscale("log", base=2)
            ax.yaxis.set_major_formatter(lambda value, _: numbers.ratio(value))
        ax.set_ylim(low, high)


def _label(fig: Drawing, axes: dict[Key, Axes], what: str) -> None:
    for ax in axes.values():
        ax.set_xlabel("tokens")
        if ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            ax.set_ylabel(what)
    canvas.legend(fig, list(axes.values()))


def _values(points: Sequence[Point], what: str, last: Sequence[str], heading: str) -> Values:
    """A row for every mark."""
    rows = []
    for point, word in zip(points, last, strict=True):
        value = numbers.short(point.value, 4)
        ends = " to ".join(numbers.like(end, value) for end in (point.low, point.high))
        panel = ", ".join(filter(None, point.panel))
        texts = (panel, point.entrant.name, f"{point.tokens:,}", value, ends, word)
        rows.append(Row(texts, (point.entrant.cell.cell_id,)))
    return Values(("panel", "kernel", "tokens", what, "interval", heading), tuple(rows))
