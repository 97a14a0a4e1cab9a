"""Coloured grids: the fastest strategy by two axes, and the slots of every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch, Rectangle

from analysis.data.cell_summary import summaries
from analysis.data.facets import (
    Facet,
    axes,
    facets,
    setting,
    shared_setting,
    sort_key,
    title_of,
    x_label,
)
from analysis.data.frame import ALIASES, hashable
from analysis.data.series import SERIAL, series_order
from analysis.plots import canvas
from analysis.plots.bars import bar_names, in_order
from analysis.plots.canvas import PlotData
from analysis.plots.drawing import Drawing, Row, Values
from analysis.stats.comparisons import Place, Standings
from analysis.stats.skew import always_even

MAX_ROWS = 16
MAX_WRITTEN = 16  # ranks up to which every tile of the skew map has its number
TIED, NO_DIFFERENCE = "#D9D9D9", "no difference shown"


def crossover(scene: PlotData) -> Drawing | str | None:
    """The strategy shown to be fastest at every place of two axes, and how far it is ahead of the
    next; grey where none is shown to be. A sentence where that is the same at every place.
    --group AXIS,AXIS chooses columns and rows."""
    lines, rows = crossed(scene.cells, scene.group)
    if not lines:
        return None
    standings = Standings(scene.frame, lines)
    tiles = [
        _tile(y, place, standings)
        for y, facet in enumerate(lines)
        for place in standings.places(facet)
    ]
    met = [tile for tile in tiles if tile.leaders]
    axis_names = [title_of(name) for name in (lines[0].axis, *rows)]
    if not met:
        return None
    if sentence := _without_map(met, axis_names):
        return sentence
    columns = sorted({x for facet in lines for x in facet.values}, key=sort_key)
    width, height = max(6.0, 1.25 * len(columns) + 3.2), 1.5 + 0.62 * len(lines)
    fig = canvas.figure(width=width, height=height)
    ax = fig.subplots()
    every = sorted({name for facet in lines for name in facet.series}, key=series_order)
    used: dict[str, str] = {}
    for tile in tiles:
        _paint(ax, columns.index(tile.place.x), tile, every, used)
    ax.set_xlim(-0.5, len(columns) - 0.5)
    ax.set_ylim(len(lines) - 0.5, -0.5)
    ax.set_xticks(range(len(columns)), [x_label(lines[0], x) for x in columns])
    ax.set_yticks(range(len(lines)), [_row(facet, rows) for facet in lines], size=9)
    if not rows:  # a single row, whose settings the caption names
        ax.set_yticks([])
    ax.set_xlabel(axis_names[0])
    if len(rows) == 1:
        ax.set_ylabel(axis_names[1])
    ax.grid(visible=False)
    keys = [_key(n, used[n]) for n in (*every, NO_DIFFERENCE) if n in used]
    fig.legend(handles=keys, loc="outside upper left", ncols=4)
    about = f"Fastest by {' and '.join(axis_names)}, and its lead on the next"
    about += f"; {everywhere}." if (everywhere := shared_setting(lines)) else "."
    notes = [
        "Grey: no difference shown among those named. "
        f"All {standings.comparisons} comparisons together at 95% (Bonferroni)."
    ]
    values = _crossover_values(lines, tiles, axis_names, rows)
    return canvas.finish(fig, scene, "crossover", about, notes, canvas.shown_in(lines), values)


@dataclass(frozen=True)
class Tile:
    """One place of the map: its row, and the strategies that none is shown to beat there; none
    of them where there are not two to compare."""

    y: int
    place: Place
    leaders: tuple[str, ...]
    lead: float


def _tile(y: int, place: Place, standings: Standings) -> Tile:
    if len(place.cells) < 2:
        return Tile(y, place, (), 1.0)
    leaders = tuple(standings.leaders(place))
    return Tile(y, place, leaders, standings.lead(place, leaders[0]))


def _without_map(met: Sequence[Tile], axis_names: Sequence[str]) -> str:
    """What to say in place of a map of one colour; nothing where a map has more to show."""
    ends = {tile.leaders if len(tile.leaders) == 1 else () for tile in met}
    if len(ends) > 1:
        return ""
    count, named = len(met), " and ".join(axis_names)
    places = f"all {count} settings of {named}" if count > 1 else f"the one setting of {named}"
    if leader := ends.pop():
        sentence = f"{leader[0]} is fastest at {places}"
    else:
        places = places.replace("all", "any of the", 1) if count > 1 else places
        sentence = f"No strategy is shown to be fastest at {places}"
    return f"{sentence}, so there is no map of who wins where."


def _crossover_values(
    lines: Sequence[Facet], tiles: Sequence[Tile], axis_names: Sequence[str], rows: Sequence[str]
) -> Values:
    listed = [
        Row((x_label(lines[0], tile.place.x),
             *(str(dict(lines[tile.y].fixed).get(name, "-")) for name in rows),
             ", ".join(tile.leaders) or "-", f"{tile.lead:.2f}x" if tile.leaders else "-"),
            tuple(cell.cell_id for cell in tile.place.cells.values()))
        for tile in tiles
    ]  # fmt: skip
    return Values((*axis_names, "not shown to be beaten", "lead on the next"), tuple(listed))


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


def _paint(ax: Axes, x: int, tile: Tile, every: Sequence[str], used: dict[str, str]) -> None:
    if not tile.leaders:
        alone = "\n".join([*tile.place.cells, "only"]) if tile.place.cells else ""
        ax.text(x, tile.y, alone, ha="center", va="center", size=8)
        return
    first, single = tile.leaders[0], len(tile.leaders) == 1
    color = canvas.fill(first, every) if single else TIED
    used[first if single else NO_DIFFERENCE] = color
    hatch = "" if single else "//"
    ax.add_patch(Rectangle(
        (x - 0.48, tile.y - 0.46), 0.96, 0.92, facecolor=color, hatch=hatch, edgecolor="white"
    ))  # fmt: skip
    words = [first, f"{tile.lead:.2f}x"] if single else _lines(tile.leaders)
    ax.text(x, tile.y, "\n".join(words), ha="center", va="center", size=8.5, color=_ink(color))


def _lines(names: Sequence[str]) -> list[str]:
    """One a line, or three where there are too many for a tile."""
    each = 1 if len(names) <= 3 else 3
    return [", ".join(names[n : n + each]) for n in range(0, len(names), each)]


def _key(name: str, color: str) -> Patch:
    return Patch(
        facecolor=color, label=name, hatch="" if color != TIED else "//", edgecolor="white"
    )


def _ink(color: str) -> str:
    """Black or white, whichever can be read on the colour."""
    red, green, blue = (part**2.2 for part in to_rgb(color))
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else "white"


def _row(facet: Facet, names: Sequence[str]) -> str:
    """What tells this row from the others; its values alone where one column does."""
    fixed = dict(facet.fixed)
    if len(names) == 1:
        return str(fixed.get(names[0], "-"))
    return "\n".join(f"{title_of(n)} {fixed.get(n, '-')}" for n in names) or setting(facet)


def skew(scene: PlotData) -> Drawing | None:
    """Slots of every rank over the mean; lambda, the busiest rank's, at the end of the row. Only
    strategies that give a rank more slots than another in some cell."""
    every = scene.cells[_skewed(scene.cells)]
    every = every.drop_duplicates(["strategy", "dispatcher", "load", "batch_size", "topk",
                                   "world_size", "tokens", "expert_placement"])  # fmt: skip
    uneven = summaries(every)
    most = sorted(range(len(uneven)), key=lambda i: -(uneven[i].skew_lambda or 0.0))[:MAX_ROWS]
    if not (chosen := [i for i in in_order(every) if i in most]):
        return None
    cells, shown = every.iloc[chosen], [uneven[i] for i in chosen]
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
    names, places = bar_names(cells), range(len(cells))
    ax.set_yticks(places, names, size=9)
    ends = ax.secondary_yaxis("right")
    ends.set_yticks(places, [f"λ {cell.skew_lambda:.2f}" for cell in shown], size=9)
    ends.tick_params(length=0)
    ends.spines["right"].set_visible(False)
    ax.set_xticks(range(widest))
    ax.set_xlabel("rank")
    ax.grid(visible=False)
    fig.colorbar(image, ax=ax, label="slots / mean")
    left_out = len(uneven) - len(shown)
    about = "Slots of a rank over the mean of the ranks; λ is the busiest rank's"
    about += f"; the {len(shown)} most uneven of {len(uneven)} cells." if left_out else "."
    texts = [" ".join(f"{v:.2f}" for v in row if v == v) for row in table]
    values = Values(("cell", "λ", "slots / mean, rank by rank"), tuple(
        Row((name, f"{cell.skew_lambda:.2f}", text), (cell.cell_id,))
        for name, cell, text in zip(names, shown, texts, strict=True)
    ))  # fmt: skip
    return canvas.finish(fig, scene, "skew", about, shown=cells, values=values)


def _skewed(cells: pd.DataFrame) -> list[bool]:
    """Whether each cell's strategy can have, and in some cell has, ranks with more slots than
    others."""
    uneven = {c.strategy for c in summaries(cells) if len(set(c.rank_slots)) > 1}
    return [
        c.strategy in uneven
        and not always_even(c.strategy)
        and len(c.rank_slots) > 1
        and sum(c.rank_slots) > 0
        for c in summaries(cells)
    ]


def _write(ax: Axes, table: list[list[float]], brightest: float) -> None:
    for y, row in enumerate(table):
        for x, value in enumerate(row):
            if value == value:
                ink = "black" if value > 0.55 * brightest else "white"
                ax.text(x, y, f"{value:.2f}", ha="center", va="center", size=7.5, color=ink)
