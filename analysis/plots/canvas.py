"""What all pictures share: the style, the look of a series, captions, banners, saving."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from analysis import numbers
from analysis.data.facets import Facet
from analysis.data.series import series_order
from analysis.plots import STYLE
from analysis.text import captions

# Strategy -> colour, marker, line: each of the three tells them apart on its own.
LOOKS: dict[str, tuple[str, str, str]] = {
    "serial": ("#000000", "x", ":"),
    "simple": ("#E69F00", "o", "-"),
    "dp": ("#999999", "v", "-."),
    "tp": ("#0072B2", "s", "--"),
    "ep": ("#009E73", "^", "-"),
    "ep_tp": ("#CC79A7", "D", "--"),
    "dp_ep": ("#D55E00", "P", "-."),
    "fsdp": ("#56B4E9", "h", ":"),
}
SPARE = ("#8C564B", "#7A5195", "#B15928", "#1B4F72", "#6A994E", "#A4133C")
MARKERS = "*<>pXdH8"
CAPTION_SIZE = 7.0
DODGE = 0.03  # of the axis between neighbouring series, so that error bars do not hide each other


@dataclass(frozen=True)
class PlotData:
    """What a picture is made from."""

    frame: pd.DataFrame
    cells: pd.DataFrame
    sources: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    metric: str = ""
    group: str = ""


def styled() -> AbstractContextManager[None]:
    """Matplotlib's defaults and our style, whatever the user's own matplotlibrc says."""
    return mpl.rc_context(fname=STYLE)  # type: ignore[no-any-return]


def look(series: str, among: Sequence[str] = ()) -> dict[str, Any]:
    """Colour, marker and line of a series; a strategy's first form has the strategy's own."""
    strategy = series.split(" ")[0]
    forms = [s for s in sorted(among, key=series_order) if s.split(" ")[0] == strategy]
    place = forms.index(series) if series in forms else 0
    if place == 0 and strategy in LOOKS:
        color, marker, line = LOOKS[strategy]
    else:
        color = SPARE[(place + sum(map(ord, strategy))) % len(SPARE)]
        marker, line = MARKERS[place % len(MARKERS)], ("-", "--", "-.", ":")[place % 4]
    return {"color": color, "marker": marker, "linestyle": line}


def figure(columns: int = 1, rows: int = 1, width: float = 0.0, height: float = 3.6) -> Figure:
    """An empty figure; the pixels are Agg's, no display is needed."""
    size = (width or (6.0 if columns == 1 else 4.2 * columns), height * rows)
    return Figure(figsize=size, layout="constrained")


def finish(
    fig: Figure,
    scene: PlotData,
    name: str,
    extra: Sequence[str] = (),
    shown: pd.DataFrame | None = None,
) -> Figure:
    """Caption below and banners above, outside the plot: saving grows the picture to hold them.

    Both describe only the cells `shown`, where a plot does not show all of them.
    """
    wide = int(fig.get_figwidth() * 17.5)
    cells = scene.cells if shown is None else shown
    frame = captions.attempts(scene.frame, cells)
    below = _wrapped(caption_lines(scene, name, extra, frame, cells), wide)
    above = _wrapped(captions.banners(frame), wide)
    _freeze(fig)
    gap = 0.08 / fig.get_figheight()
    _outside(fig, -gap, below, "top", {"color": "#444444"})
    _outside(fig, 1 + gap, above, "bottom", {"color": "#7A0000", "weight": "bold"})
    return fig


def _freeze(fig: Figure) -> None:
    """Lays out once and keeps it, so that text outside does not move the legend."""
    fig.draw_without_rendering()
    # set_layout_engine("none") leaves a placeholder, for which savefig lays out once more per file.
    fig._layout_engine = None  # type: ignore[attr-defined]
    for box in fig.legends:
        corner = box.get_window_extent().transformed(fig.transFigure.inverted()).p0
        box.set_loc("lower left")
        box.borderaxespad = 0.0
        box.set_bbox_to_anchor((corner[0], corner[1]), transform=fig.transFigure)


def _outside(fig: Figure, y: float, lines: Sequence[str], side: str, look: dict[str, Any]) -> None:
    if lines:
        text = fig.text(
            0.01, y, "\n".join(lines), size=CAPTION_SIZE, va=side, linespacing=1.3, **look
        )  # type: ignore[call-arg]
        text.set_parse_math(False)  # a "$" in a name is a dollar sign


def caption_lines(
    scene: PlotData, name: str, extra: Sequence[str], frame: pd.DataFrame, cells: pd.DataFrame
) -> list[str]:
    """The lines below a plot: its own, then machine, engine, statistics, flags, command."""
    chosen = (("--group", scene.group), ("--metric", scene.metric))
    words = [word for option, value in chosen if value for word in (option, value)]
    again = captions.command("plot", scene.sources, "--name", name, *words, *scene.options)
    return [*extra, *captions.lines(frame, cells, again)]


def shown_in(facets: Sequence[Facet]) -> pd.DataFrame:
    """The cells of several facets, each once."""
    rows = pd.concat([facet.cells for facet in facets], ignore_index=True)
    return rows.drop_duplicates(["cell_id", "host", "metric"], ignore_index=True)


def _wrapped(lines: Sequence[str], width: int) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(line, width)]


def legend(fig: Figure, axes: Sequence[Axes], extra: Sequence[Any] = ()) -> None:
    """One legend for all facets, above them."""
    keys: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        keys |= {label: h for h, label in zip(handles, labels, strict=True) if label not in keys}
    keys |= {handle.get_label(): handle for handle in extra}
    widest = 0.58 + 0.076 * max((len(name) for name in keys), default=0)
    columns = max(1, min(len(keys), int(fig.get_figwidth() / widest)))
    if sum(0.58 + 0.076 * len(name) for name in keys) < fig.get_figwidth():
        columns = len(keys)
    fig.legend(list(keys.values()), list(keys), loc="outside upper left", ncols=columns)


def number_axis(ax: Axes, values: Sequence[float], which: str = "x", log: bool = True) -> None:
    """Ticks at the values that were measured; a logarithmic axis where they span enough."""
    positive = [v for v in values if v > 0]
    if log and len(positive) == len(values) and max(positive) >= 4 * min(positive):
        getattr(ax, f"set_{which}scale")("log", base=2)
    axis = getattr(ax, f"{which}axis")
    axis.set_minor_locator(NullLocator())
    getattr(ax, f"set_{which}ticks")(list(values), [numbers.ratio(v) for v in values])


def duration_axis(ax: Axes, values: Sequence[float]) -> None:
    """From zero, or logarithmic where the values span more than a factor of ten."""
    if values and min(values) > 0 and max(values) > 10 * min(values):
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: numbers.short(v, 1)))
        ax.yaxis.set_minor_formatter(NullFormatter())
    else:
        ax.set_ylim(bottom=0)


def save(fig: Figure, folder: Path, name: str) -> list[Path]:
    """PNG and SVG; nothing in the files changes when the data do not."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    whole = fig.get_tightbbox().padded(mpl.rcParams["savefig.pad_inches"])  # once for both
    fig.savefig(paths[0], bbox_inches=whole)
    fig.savefig(paths[1], bbox_inches=whole, metadata={"Date": None})
    return paths
