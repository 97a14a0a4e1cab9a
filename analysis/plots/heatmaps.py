"""Coloured grids: which strategy wins where, and which rank has how much to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from analysis.data.facets import (
    SERIAL,
    Facet,
    axes,
    facets,
    series_order,
    setting,
    sort_key,
    title_of,
    x_label,
)
from analysis.data.frame import ALIASES, hashable
from analysis.plots import canvas
from analysis.plots.bars import bar_names
from analysis.plots.canvas import PlotData
from analysis.stats.comparisons import Place, Standings

MAX_ROWS = 16
MAX_WRITTEN = 16  # ranks up to which every tile of the skew map bears its number
TIED = "#D9D9D9"


def crossover(scene: PlotData) -> Figure | None:
    """The strategy shown to be fastest at every place of two axes, and how far it is ahead of the
    next; grey where none is shown to be. --group AXIS,AXIS chooses columns and rows."""
    found, rows = crossed(scene.cells, scene.group)
    if not found:
        return None
    standings = Standings(scene.frame, found)
    columns = sorted({x for p in found for x in p.values}, key=sort_key)
    made = canvas.figure(width=max(6.0, 1.25 * len(columns) + 3.2), height=1.5 + 0.62 * len(found))
    ax = made.subplots()
    used: dict[str, str] = {}
    for y, facet in enumerate(found):
        for place in standings.places(facet):
            _place(ax, columns.index(place.x), y, place, standings, used)
    ax.set_xlim(-0.5, len(columns) - 0.5)
    ax.set_ylim(len(found) - 0.5, -0.5)
    ax.set_xticks(range(len(columns)), [x_label(found[0], x) for x in columns])
    ax.set_yticks(range(len(found)), [_row(facet, rows) for facet in found], size=9)
    ax.set_xlabel(title_of(found[0].axis))
    if len(rows) == 1:
        ax.set_ylabel(title_of(rows[0]))
    ax.grid(visible=False)
    made.legend(handles=[_key(n, c) for n, c in used.items()], loc="outside upper left", ncols=4)
    text = (
        f"Fastest strategy by {' and '.join(title_of(n) for n in (found[0].axis, *rows))}, with "
        "its lead on the next; grey: no difference shown among those named. "
        f"All {standings.comparisons} comparisons together at 95% (Bonferroni)."
    )
    extra = [text, f"Everywhere: {everywhere}."] if (everywhere := _common(found)) else [text]
    return canvas.finish(made, scene, "crossover", extra, canvas.shown_in(found))


def crossed(cells: pd.DataFrame, group: str = "") -> tuple[list[Facet], list[str]]:
    """Facets of the first axis in the order of what differs between them, and the names of that;
    only facets where strategies meet."""
    chosen = [ALIASES.get(name, name) for name in group.split(",") if name] or axes(cells)
    found = facets(cells, chosen[0]) if chosen else []
    found = [p for p in found if len([s for s in p.series if s != SERIAL]) > 1]
    names = list(dict.fromkeys(n for p in found for n, _ in p.fixed))
    rows = [n for n in names if n not in ("topk", "host") and len(_values(found, n)) > 1]
    order = [n for n in chosen[1:] if n in rows] + [n for n in rows if n not in chosen[1:]]
    found.sort(key=lambda p: [sort_key(dict(p.fixed).get(n, "")) for n in order])
    return found[:MAX_ROWS], order


def _values(found: Sequence[Facet], name: str) -> set[Any]:
    return {hashable(dict(p.fixed).get(name)) for p in found}


def _place(
    ax: Axes, x: int, y: int, place: Place, standings: Standings, used: dict[str, str]
) -> None:
    if len(place.cells) < 2:  # nobody to win against
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


def _common(found: Sequence[Facet]) -> str:
    """What holds in every tile."""
    sets = [setting(facet).split(", ") for facet in found]
    return ", ".join(word for word in sets[0] if all(word in other for other in sets))


def skew(scene: PlotData) -> Figure | None:
    """Slots of every rank over the mean; lambda, the busiest rank's, at the end of the row."""
    cells = scene.cells[[len(slots) > 1 and sum(slots) > 0 for slots in scene.cells["rank_slots"]]]
    cells = cells.drop_duplicates(["strategy", "dispatcher", "load", "batch_size", "topk",
                                   "world_size", "tokens", "expert_placement"])  # fmt: skip
    every = len(cells)
    order = sorted(range(every), key=lambda i: -float(cells["skew_lambda"].iloc[i] or 0.0))
    chosen = sorted(order[:MAX_ROWS], key=lambda i: series_order(str(cells["strategy"].iloc[i])))
    cells = cells.iloc[chosen]
    if cells.empty:
        return None
    widest = max(len(slots) for slots in cells["rank_slots"])
    table = [
        [v * len(slots) / sum(slots) for v in slots] + [float("nan")] * (widest - len(slots))
        for slots in cells["rank_slots"]
    ]
    made = canvas.figure(width=7.5, height=1.4 + 0.32 * len(cells))
    ax = made.subplots()
    brightest = max(2.0, *(v for row in table for v in row if v == v))
    shown = ax.imshow(table, aspect="auto", vmin=0, vmax=brightest, interpolation="nearest")
    if widest <= MAX_WRITTEN:
        _write(ax, table, brightest)
    ax.set_yticks(range(len(cells)), bar_names(cells), size=9)
    for y, value in enumerate(cells["skew_lambda"]):
        ax.text(widest - 0.4, y, f" λ {value:.2f}", va="center", size=9)
    ax.set_xticks(range(widest))
    ax.set_xlabel("rank")
    ax.grid(visible=False)
    made.colorbar(shown, ax=ax, label="slots / mean", pad=0.14)
    text = "Slots of a rank over the mean of the ranks; λ is the busiest rank's."
    text += f" The {len(cells)} most uneven of {every} cells." if len(cells) < every else ""
    return canvas.finish(made, scene, "skew", [text], cells)


def _write(ax: Axes, table: list[list[float]], brightest: float) -> None:
    for y, row in enumerate(table):
        for x, value in enumerate(row):
            if value == value:
                ink = "black" if value > 0.55 * brightest else "white"
                ax.text(x, y, f"{value:.2f}", ha="center", va="center", size=7.5, color=ink)
