"""Coloured grids: the fastest strategy by two axes, and the slots of every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from analysis.data.cell_summary import summaries
from analysis.data.facets import Facet, axes, facets, setting, sort_key, title_of, x_label
from analysis.data.frame import ALIASES, hashable
from analysis.data.series import SERIAL, series_order
from analysis.plots import canvas
from analysis.plots.bars import bar_names
from analysis.plots.canvas import PlotData
from analysis.stats.comparisons import Place, Standings

MAX_ROWS = 16
MAX_WRITTEN = 16  # ranks up to which every tile of the skew map has its number
TIED = "#D9D9D9"


def crossover(scene: PlotData) -> Figure | None:
    """The strategy shown to be fastest at every place of two axes, and how far it is ahead of the
    next; grey where none is shown to be. --group AXIS,AXIS chooses columns and rows."""
    lines, rows = crossed(scene.cells, scene.group)
    if not lines:
        return None
    standings = Standings(scene.frame, lines)
    columns = sorted({x for facet in lines for x in facet.values}, key=sort_key)
    width, height = max(6.0, 1.25 * len(columns) + 3.2), 1.5 + 0.62 * len(lines)
    fig = canvas.figure(width=width, height=height)
    ax = fig.subplots()
    used: dict[str, str] = {}
    for y, facet in enumerate(lines):
        for place in standings.places(facet):
            _place(ax, columns.index(place.x), y, place, standings, used)
    ax.set_xlim(-0.5, len(columns) - 0.5)
    ax.set_ylim(len(lines) - 0.5, -0.5)
    ax.set_xticks(range(len(columns)), [x_label(lines[0], x) for x in columns])
    ax.set_yticks(range(len(lines)), [_row(facet, rows) for facet in lines], size=9)
    ax.set_xlabel(title_of(lines[0].axis))
    if len(rows) == 1:
        ax.set_ylabel(title_of(rows[0]))
    ax.grid(visible=False)
    fig.legend(handles=[_key(n, c) for n, c in used.items()], loc="outside upper left", ncols=4)
    text = (
        f"Fastest strategy by {' and '.join(title_of(n) for n in (lines[0].axis, *rows))}, with "
        "its lead on the next; grey: no difference shown among those named. "
        f"All {standings.comparisons} comparisons together at 95% (Bonferroni)."
    )
    extra = [text, f"Everywhere: {everywhere}."] if (everywhere := _common(lines)) else [text]
    return canvas.finish(fig, scene, "crossover", extra, canvas.shown_in(lines))


def crossed(cells: pd.DataFrame, group: str = "") -> tuple[list[Facet], list[str]]:
    """Facets of the first axis with two or more strategies, and the columns in which these facets
    differ, by which they are sorted. `group` is "AXIS,AXIS"; without it the sweep's first axis."""
    chosen = [ALIASES.get(name, name) for name in group.split(",") if name] or axes(cells)
    lines = facets(cells, chosen[0]) if chosen else []
    lines = [f for f in lines if len([s for s in f.series if s != SERIAL]) > 1]
    names = list(dict.fromkeys(n for f in lines for n, _ in f.fixed))
    rows = [n for n in names if n not in ("topk", "host") and len(_values(lines, n)) > 1]
    order = [n for n in chosen[1:] if n in rows] + [n for n in rows if n not in chosen[1:]]
    lines.sort(key=lambda f: [sort_key(dict(f.fixed).get(n, "")) for n in order])
    return lines[:MAX_ROWS], order


def _values(among: Sequence[Facet], name: str) -> set[Any]:
    return {hashable(dict(facet.fixed).get(name)) for facet in among}


def _place(
    ax: Axes, x: int, y: int, place: Place, standings: Standings, used: dict[str, str]
) -> None:
    if len(place.cells) < 2:  # no second series to compare with
        alone = "\n".join([*place.cells, "only"]) if place.cells else ""
        ax.text(x, y, alone, ha="center", va="center", size=8)
        return
    leaders = standings.leaders(place)
    single = len(leaders) == 1
    color = canvas.look(leaders[0])["color"] if single else TIED
    used[leaders[0] if single else "no difference shown"] = color
    ax.add_patch(_tile(x, y, color, "" if single else "//"))
    words = [*leaders, f"{standings.lead(place):.2f}x"] if single else _lines(leaders)
    ax.text(x, y, "\n".join(words), ha="center", va="center", size=8.5, color=_ink(color))


def _lines(names: Sequence[str]) -> list[str]:
    """One a line, or three where there are too many for a tile."""
    each = 1 if len(names) <= 3 else 3
    return [", ".join(names[n : n + each]) for n in range(0, len(names), each)]


def _tile(x: int, y: int, color: str, hatch: str) -> Patch:
    return Rectangle(
        (x - 0.48, y - 0.46), 0.96, 0.92, facecolor=color, hatch=hatch, edgecolor="white"
    )


def _key(name: str, color: str) -> Patch:
    return Patch(
        facecolor=color, label=name, hatch="" if color != TIED else "//", edgecolor="white"
    )


def _ink(color: str) -> str:
    """Black or white, whichever can be read on the colour."""
    red, green, blue = to_rgb(color)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _row(facet: Facet, names: Sequence[str]) -> str:
    """What tells this row from the others; its values alone where one column does."""
    fixed = dict(facet.fixed)
    if len(names) == 1:
        return str(fixed.get(names[0], "-"))
    return "\n".join(f"{title_of(n)} {fixed.get(n, '-')}" for n in names) or setting(facet)


def _common(among: Sequence[Facet]) -> str:
    """The settings that all facets share."""
    sets = [setting(facet).split(", ") for facet in among]
    return ", ".join(word for word in sets[0] if all(word in other for other in sets))


def skew(scene: PlotData) -> Figure | None:
    """Slots of every rank over the mean; lambda, the busiest rank's, at the end of the row."""
    uneven = [len(c.rank_slots) > 1 and sum(c.rank_slots) > 0 for c in summaries(scene.cells)]
    cells = scene.cells[uneven]
    cells = cells.drop_duplicates(["strategy", "dispatcher", "load", "batch_size", "topk",
                                   "world_size", "tokens", "expert_placement"])  # fmt: skip
    every = summaries(cells)
    order = sorted(range(len(every)), key=lambda i: -(every[i].skew_lambda or 0.0))
    chosen = sorted(order[:MAX_ROWS], key=lambda i: series_order(every[i].strategy))
    if not chosen:
        return None
    cells, shown = cells.iloc[chosen], [every[i] for i in chosen]
    widest = max(len(cell.rank_slots) for cell in shown)
    table = [
        [v * len(slots) / sum(slots) for v in slots] + [float("nan")] * (widest - len(slots))
        for slots in (cell.rank_slots for cell in shown)
    ]
    fig = canvas.figure(width=7.5, height=1.4 + 0.32 * len(cells))
    ax = fig.subplots()
    brightest = max(2.0, *(v for row in table for v in row if v == v))
    image = ax.imshow(table, aspect="auto", vmin=0, vmax=brightest, interpolation="nearest")
    if widest <= MAX_WRITTEN:
        _write(ax, table, brightest)
    ax.set_yticks(range(len(cells)), bar_names(cells), size=9)
    for y, cell in enumerate(shown):
        ax.text(widest - 0.4, y, f" λ {cell.skew_lambda:.2f}", va="center", size=9)
    ax.set_xticks(range(widest))
    ax.set_xlabel("rank")
    ax.grid(visible=False)
    fig.colorbar(image, ax=ax, label="slots / mean", pad=0.14)
    text = "Slots of a rank over the mean of the ranks; λ is the busiest rank's."
    left_out = len(every) - len(shown)
    text += f" The {len(shown)} most uneven of {len(every)} cells." if left_out else ""
    return canvas.finish(fig, scene, "skew", [text], cells)


def _write(ax: Axes, table: list[list[float]], brightest: float) -> None:
    for y, row in enumerate(table):
        for x, value in enumerate(row):
            if value == value:
                ink = "black" if value > 0.55 * brightest else "white"
                ax.text(x, y, f"{value:.2f}", ha="center", va="center", size=7.5, color=ink)
