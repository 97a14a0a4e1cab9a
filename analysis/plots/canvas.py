"""What all pictures share: the style, the look of a series, captions, banners, saving."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

from analysis import numbers
from analysis.data.facets import Facet
from analysis.data.looks import form_look, form_number, look_of
from analysis.plots import STYLE
from analysis.plots.drawing import Account, Drawing, Values
from analysis.text import captions

CAPTION_SIZE = 7.0
GAP = 4.0  # pixels around a text that was moved
ELLIPSIS = "\u2026"
WIDTH, HEIGHT = 6.0, 3.6  # inches of a picture of one panel
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
    """Colour, marker and line of a series; forms of a strategy, told apart from others `among` the
    series, share its colour."""
    strategy, number = _numbered(series, among)
    return dict(zip(("color", "marker", "linestyle"), form_look(strategy, number), strict=True))


def fill(series: str, among: Sequence[str] = ()) -> str:
    """The colour of an area that stands for a series: forms are shades of the strategy's colour."""
    strategy, number = _numbered(series, among)
    target, share = ((0, 0.0), (1, 0.45), (0, 0.35), (1, 0.7))[number % 4]
    red, green, blue = (c + (target - c) * share for c in to_rgb(look_of(strategy)[0]))
    return to_hex((red, green, blue))


def _numbered(series: str, among: Sequence[str]) -> tuple[str, int]:
    strategy, _, form = series.partition(" ")
    names = (name.partition(" ") for name in among)
    return strategy, form_number(form, {other for one, _, other in names if one == strategy})


def figure(columns: int = 1, rows: int = 1, width: float = 0.0, height: float = HEIGHT) -> Drawing:
    """An empty figure; the pixels are Agg's, no display is needed."""
    size = (width or (WIDTH if columns == 1 else 4.2 * columns), height * rows)
    return Drawing(figsize=size, layout="constrained")


def finish(
    fig: Drawing,
    scene: PlotData,
    name: str,
    about: str,
    notes: Sequence[str] = (),
    shown: pd.DataFrame | None = None,
    values: Values | None = None,
) -> Drawing:
    """One line below and one per banner above, outside the plot: saving grows the picture to hold
    them. All else that is to be known goes into the account.

    It describes only the cells `shown`, where a plot does not show all of them.
    """
    cells = scene.cells if shown is None else shown
    frame = captions.attempts(scene.frame, cells)
    about = captions.labelled(about, frame)
    fig.account = Account(
        name=name,
        about=about,
        source=captions.source(frame),
        notes=tuple(notes),
        banners=tuple(captions.short_banners(frame)),
        provenance=tuple(captions.lines(frame, cells, command(scene, name))),
        values=values or Values(),
    )
    _freeze(fig)
    _keep_inside(fig)
    step = CAPTION_SIZE * 1.5 / 72 / fig.get_figheight()
    gray, red = {"color": "#444444"}, {"color": "#7A0000", "weight": "bold"}
    _outside(fig, -step / 2, "top", about, fig.account.source, gray)
    for number, banner in enumerate(reversed(fig.account.banners)):
        _outside(fig, 1 + step * (number + 0.5), "bottom", banner, "", red)
    return fig


def command(scene: PlotData, name: str) -> str:
    """The command line that draws this picture again."""
    chosen = (("--group", scene.group), ("--metric", scene.metric))
    words = [word for option, value in chosen if value for word in (option, value)]
    return captions.command("plot", scene.sources, "--name", name, *words, *scene.options)


def _freeze(fig: Drawing) -> None:
    """Lays out once and keeps it, so that text outside does not move the legend."""
    fig.draw_without_rendering()
    # set_layout_engine("none") leaves a placeholder, for which savefig lays out once more per file.
    fig._layout_engine = None  # type: ignore[attr-defined]
    for box in fig.legends:
        corner = box.get_window_extent().transformed(fig.transFigure.inverted()).p0
        box.set_loc("lower left")
        box.borderaxespad = 0.0
        box.set_bbox_to_anchor((corner[0], corner[1]), transform=fig.transFigure)


def _keep_inside(fig: Drawing) -> None:
    """Moves each text sideways into its axes, and up where it would lie on another."""
    placed: list[Bbox] = []
    for text in fig.kept_inside:
        frame, box = fig.bbox if text.axes is None else text.axes.bbox, text.get_window_extent()
        shift = max(frame.x0 + GAP - box.x0, 0) or min(frame.x1 - GAP - box.x1, 0)
        box = box.translated(shift, 0)
        while lower := [other for other in placed if other.overlaps(box)]:
            box = box.translated(0, max(other.y1 for other in lower) + GAP - box.y0)
        placed.append(box)
        moved = box.p0 - text.get_window_extent().p0
        x, y = text.get_transform().transform(text.get_position()) + moved
        text.set_position(tuple(text.get_transform().inverted().transform((x, y))))


def _outside(fig: Drawing, y: float, side: str, text: str, tail: str, look: dict[str, Any]) -> None:
    """One line as wide as the figure at most: `text` loses words at its end, then `tail` does."""
    label = fig.text(0.01, y, f"{text} {tail}".strip(), size=CAPTION_SIZE, va=side, **look)  # type: ignore[call-arg]
    label.set_parse_math(False)  # a "$" in a name is a dollar sign
    words, ending = text.split(), tail.split()
    while label.get_window_extent().x1 > fig.bbox.x1 and len(words) + len(ending) > 1:
        (words if len(words) > 1 else ending).pop()
        label.set_text(" ".join([" ".join(words).rstrip(",;:.") + ELLIPSIS, *ending]))
    fig.framing.append(label)


def shown_in(facets: Sequence[Facet]) -> pd.DataFrame:
    """The cells of several facets, each once."""
    rows = pd.concat([facet.cells for facet in facets], ignore_index=True)
    return rows.drop_duplicates(["cell_id", "host", "metric"], ignore_index=True)


def legend(fig: Drawing, axes: Sequence[Axes], extra: Sequence[Any] = ()) -> None:
    """One legend for all facets, above them."""
    keys: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        keys |= {label: h for h, label in zip(handles, labels, strict=True) if label not in keys}
    keys |= {handle.get_label(): handle for handle in extra}
    widths = [0.58 + 0.076 * len(name) for name in keys]  # inches
    columns = len(keys) or 1
    while columns > 1 and _legend_width(widths, columns) >= fig.get_figwidth():
        columns -= 1
    fig.legend(list(keys.values()), list(keys), loc="outside upper left", ncols=columns)


def _legend_width(widths: Sequence[float], columns: int) -> float:
    """In inches. Entries fill the columns from the top, the first ones with one more if need be."""
    short, longer = divmod(len(widths), columns)
    rows = [short + (column < longer) for column in range(columns)]
    ends = [sum(rows[: column + 1]) for column in range(columns)]
    return sum(max(widths[end - n : end]) for n, end in zip(rows, ends, strict=True))


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


def save(fig: Drawing, folder: Path, name: str) -> list[Path]:
    """PNG and SVG; nothing in the files changes when the data do not."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    whole = fig.get_tightbbox().padded(mpl.rcParams["savefig.pad_inches"])  # once for both
    known = fig.account.metadata()
    fig.savefig(paths[0], bbox_inches=whole, metadata=known)
    fig.savefig(paths[1], bbox_inches=whole, metadata={**known, "Date": None})
    return paths
