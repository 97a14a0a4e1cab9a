"""A figure against an axis, a line per strategy: the reference's four plots, and any other axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Text

from analysis import numbers
from analysis.data.cell_summary import summaries
from analysis.data.facets import Facet, axes, facets, shared_setting, title_of, x_label
from analysis.data.frame import ALIASES
from analysis.plots import canvas
from analysis.plots.canvas import PlotData
from analysis.plots.drawing import Drawing, Row, Values
from analysis.text.tables import DURATION, THROUGHPUT, Entry, Metric, entry, metric_of

MAX_COLUMNS = 3
AXIS_LABELS = {"batch_size": "batch size (tokens)"}  # with the unit
HOLLOW = Line2D(
    [], [], color="#444444", marker="o", markerfacecolor="white", linestyle="",
    label="hollow: oversubscribed",
)  # fmt: skip


def _plot(name: str, axis: str, metric: Metric) -> Callable[[PlotData], Drawing | None]:
    return lambda scene: against(scene, axis, metric, name)


speed_vs_top_k = _plot("speed_vs_top_k", "topk_requested", DURATION)
speed_vs_ranks = _plot("speed_vs_ranks", "world_size", DURATION)
speed_vs_batch = _plot("speed_vs_batch", "batch_size", DURATION)
throughput_vs_topk = _plot("throughput_vs_topk", "topk_requested", THROUGHPUT)
throughput_vs_batch = _plot("throughput_vs_batch", "batch_size", THROUGHPUT)
throughput_vs_total_ranks = _plot("throughput_vs_total_ranks", "world_size", THROUGHPUT)


def axis(scene: PlotData) -> Drawing | None:
    """Any figure against any axis with bands: --group AXIS, --metric COLUMN. Without either the
    first axis that no other plot shows."""
    metric = metric_of(scene.metric) if scene.metric else DURATION
    first = scene.group.split(",")[0]
    group = ALIASES.get(first, first)
    own = ("topk_requested", "batch_size", "world_size")
    chosen = [group] if group else axes(scene.cells)
    if not group and not scene.metric:
        chosen = [name for name in chosen if name not in own]
    return against(scene, chosen[0], metric, "axis", bands=True) if chosen else None


def against(
    scene: PlotData, axis: str, metric: Metric, name: str, bands: bool = False
) -> Drawing | None:
    """Facets side by side; None where the sweep has nothing along this axis."""
    if metric.column not in scene.cells:
        return None
    drawn = facets(scene.cells, axis)[:MAX_COLUMNS]
    if not drawn:
        return None
    fig = canvas.figure(len(drawn))
    grid = fig.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    names = sorted({series for facet in drawn for series in facet.series})
    for ax, facet in zip(grid, drawn, strict=True):
        draw(ax, facet, metric, names, bands)
        fig.kept_inside += _without_time(ax, facet, metric)
        ax.set_title(difference(facet, drawn))
    heading = metric.heading.replace("10^3", "10³")
    grid[0].set_ylabel(heading)
    shown = [entry(cell, metric) for facet in drawn for cell in summaries(facet.cells)]
    _heights(grid[0], shown, metric)
    canvas.legend(fig, grid, _notes(shown))
    about = "; ".join(filter(None, [f"{heading} by {title_of(axis)}", shared_setting(drawn)]))
    mean = "median" if metric.column == "median_ms" else "mean" if metric.low else "value"
    notes = [f"Shown: {mean} and its interval; lines only guide the eye."]
    values = _values(drawn, metric, heading)
    return canvas.finish(
        fig, scene, name, f"{about}.", notes, shown=canvas.shown_in(drawn), values=values
    )


def _values(drawn: Sequence[Facet], metric: Metric, heading: str) -> Values:
    """A row for every cell: panels from the left, then series by series along the axis."""
    panels = [difference(facet, drawn).replace("\n", ", ") for facet in drawn]
    rows = [
        Row((*([panel] if any(panels) else []), series, str(x), *entry_texts(point)),
            (point.cell_id,))
        for panel, facet in zip(panels, drawn, strict=True)
        for series in facet.series
        for x in facet.values
        if (point := entry(facet.at(x, series), metric)).outcome
    ]  # fmt: skip
    header = ("series", title_of(drawn[0].axis), heading, "interval", "outcome")
    return Values(("panel", *header) if any(panels) else header, tuple(rows))


def entry_texts(point: Entry) -> tuple[str, str, str]:
    """Value, interval and outcome."""
    value = numbers.short(point.value, 4)
    ends = (numbers.like(end, value) for end in (point.low, point.high))
    known = math.isfinite(point.low) or math.isfinite(point.high)
    return value, " to ".join(ends) if known else "-", point.outcome


def _notes(shown: Sequence[Entry]) -> list[Line2D]:
    return [HOLLOW] if any("oversubscribed" in e.flags for e in shown) else []


def _heights(ax: Axes, shown: Sequence[Entry], metric: Metric) -> None:
    values = [e.value for e in shown if math.isfinite(e.value)]
    canvas.duration_axis(ax, values)


def draw(ax: Axes, facet: Facet, metric: Metric, names: Sequence[str], bands: bool) -> None:
    """One facet: every series dodged a little, so that error bars stay apart."""
    values, places = facet.values, _places(facet)
    if all(isinstance(v, (int, float)) for v in values):
        canvas.number_axis(ax, [places[v] for v in values])
    log = ax.get_xscale() == "log"
    labels = [x_label(facet, v).replace(" (", "\n(").replace(" ran ", "\nran ") for v in values]
    ax.set_xticks([places[v] for v in values], labels)
    drawn = facet.series
    for number, series in enumerate(drawn):
        shift = canvas.DODGE * (number - (len(drawn) - 1) / 2) / 2
        x = [_dodged(places[v], shift, log, list(places.values())) for v in values]
        entries = [entry(facet.at(v, series), metric) for v in values]
        _series(ax, x, entries, canvas.look(series, names), series, bands)
    ax.set_xlabel(AXIS_LABELS.get(facet.axis, title_of(facet.axis)))


def _without_time(ax: Axes, facet: Facet, metric: Metric) -> list[Text]:
    """Cells that failed or were wrong, in words at their place."""
    labels = []
    for value, x in _places(facet).items():
        outcomes = [(s, entry(facet.at(value, s), metric).outcome) for s in facet.series]
        words = [f"{s}: {outcome}" for s, outcome in outcomes if outcome not in ("measured", "")]
        if words:
            look: dict[str, Any] = {"size": 7.5, "color": "#7A0000", "ha": "center", "va": "bottom"}
            look["bbox"] = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}
            label = ax.text(
                x, 0.02, "\n".join(words), transform=ax.get_xaxis_transform(), zorder=6, **look
            )
            label.set_parse_math(False)
            label.set_in_layout(False)
            labels.append(label)
    return labels


def _places(facet: Facet) -> dict[Any, float]:
    """Axis value -> place: numbers are their own, others are counted."""
    values = facet.values
    numeric = all(isinstance(v, (int, float)) for v in values)
    return {v: float(v) if numeric else float(i) for i, v in enumerate(values)}


def difference(facet: Facet, among: Sequence[Facet]) -> str:
    """What is fixed in this facet and differs in its neighbours; nothing for a single one."""
    words = [
        f"{title_of(name)} {value}"
        for name, value in facet.fixed
        if name not in ("topk", "host")
        and any(dict(other.fixed).get(name) != value for other in among)
    ]
    return "\n".join(words[:3])


def _dodged(x: float, shift: float, log: bool, values: Sequence[float]) -> float:
    if log:
        return float(x * (max(values) / min(values)) ** shift)
    return x + shift * (max(values) - min(values) or 1.0)


def _series(
    ax: Axes, x: Sequence[float], shown: Sequence[Entry], style: dict[str, Any], name: str,
    bands: bool,
) -> None:  # fmt: skip
    known = [(a, e) for a, e in zip(x, shown, strict=True) if math.isfinite(e.value)]
    if known:
        xs, entries = [a for a, _ in known], [e for _, e in known]
        y = [e.value for e in entries]
        ax.plot(xs, y, label=name, markeredgecolor=style["color"], **style)
        low, high = zip(*(_ends(e) for e in entries), strict=True)
        if bands:
            ax.fill_between(xs, low, high, color=style["color"], alpha=0.18, linewidth=0)
        errors = [[v - a for v, a in zip(y, low, strict=True)],
                  [b - v for v, b in zip(y, high, strict=True)]]  # fmt: skip
        ax.errorbar(xs, y, yerr=errors, fmt="none", ecolor=style["color"], elinewidth=1.2, zorder=4)
        hollow = [(a, e.value) for a, e in known if "oversubscribed" in e.flags]
        if hollow and style["marker"] != "x":
            marks = {"marker": style["marker"], "markeredgecolor": style["color"]}
            ax.plot(*zip(*hollow, strict=True), linestyle="", markerfacecolor="white", **marks)


def _ends(point: Entry) -> tuple[float, float]:
    """The interval, or no height where there is none; an estimate outside it is not hidden."""
    low = point.low if math.isfinite(point.low) else point.value
    high = point.high if math.isfinite(point.high) else point.value
    return min(low, point.value), max(high, point.value)
