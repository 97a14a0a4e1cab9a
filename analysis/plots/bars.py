"""Stacked bars: where the time of a step goes, and how much memory it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis import numbers
from analysis.data.cell_summary import CellSummary, load_of, summaries
from analysis.data.facets import sort_key, title_of
from analysis.data.frame import hashable, varying
from analysis.data.series import SERIAL, VARIANT, series_names, series_order, without_serial
from analysis.plots import canvas
from analysis.plots.canvas import PlotData
from analysis.plots.drawing import Drawing, Row, Values

MAX_BARS = 24
PHASES = {
    "router": ("#56B4E9", ""),
    "permute": ("#F0E442", "//"),
    "dispatch": ("#0072B2", ""),
    "wait": ("#D9D9D9", ".."),
    "experts": ("#E69F00", ""),
    "combine": ("#CC79A7", "\\\\"),
    "unpermute": ("#009E73", "xx"),
    "backward": ("#8C564B", "//"),
    "gradients": ("#D55E00", ".."),
    "other": ("#999999", ""),
}
NAMED = ("batch_size", "topk", "world_size", "num_experts", "dim", "tokens", "mode", "dtype",
         "load", "cache")  # fmt: skip


def settings(cells: pd.DataFrame) -> list[str]:
    """What tells cells or attempts apart beside their series: "batch size 8, top-k 2"."""
    cells = _with_load(cells)
    tested = without_serial(cells)
    names = [n for n in varying(cells if tested.empty else tested, NAMED) if n not in VARIANT]
    columns = [[f"{title_of(n)} {value}" for value in cells[n]] for n in names]
    return [", ".join(words) for words in zip(*columns, strict=True)] or [""] * len(cells)


def _with_load(cells: pd.DataFrame) -> pd.DataFrame:
    """With the workload's column, which attempts do not have."""
    if "load" in cells:
        return cells
    rows = [{str(k): v for k, v in row.items()} for _, row in cells.iterrows()]
    return cells.assign(load=[load_of(row) for row in rows])


def in_order(cells: pd.DataFrame) -> list[int]:
    """Positions of cells or attempts by series, then by the values of their settings."""
    columns = [[sort_key(hashable(v)) for v in column] for column in
               (_with_load(cells)[name] for name in NAMED)]  # fmt: skip
    keys = list(zip(map(series_order, series_names(cells)), *columns, strict=True))
    return sorted(range(len(cells)), key=keys.__getitem__)


def bar_names(cells: pd.DataFrame) -> list[str]:
    """The series and what else tells the bars apart."""
    both = zip(series_names(cells), settings(cells), strict=True)
    return [f"{s}  ({w})" if w else s for s, w in both]


def _setting_key(cell: CellSummary, ranks: dict[Any, int]) -> tuple[Any, ...]:
    """Sorts by setting; a serial cell goes with the first spread-out ones that do its work."""
    work = tuple(sort_key(hashable(cell.value(n))) for n in NAMED if n != "world_size")
    return (*work, ranks.get(work, 1) if cell.strategy == SERIAL else cell.world_size)


def groups(cells: pd.DataFrame) -> list[pd.DataFrame]:
    """Cells by setting, each in the order of the strategies. Where not all fit: of the settings
    with most cells as many as do, spread over their range."""
    ranks: dict[Any, int] = {}
    for cell in summaries(without_serial(cells)):
        *work, size = _setting_key(cell, {})
        ranks[tuple(work)] = min(size, ranks.get(tuple(work), size))
    places: dict[Any, list[int]] = {}
    for position, cell in enumerate(summaries(cells)):
        places.setdefault(_setting_key(cell, ranks), []).append(position)
    chosen = sorted(places)
    if len(cells) > MAX_BARS:
        most = max(len(positions) for positions in places.values())
        chosen = _spread([k for k in chosen if len(places[k]) == most], MAX_BARS // most)
    return [_in_order(cells.iloc[places[key]]) for key in chosen]


def _spread(keys: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of them, the first and the last among them."""
    count = min(max(count, 1), len(keys))
    steps = max(count - 1, 1)
    return [keys[round(n * (len(keys) - 1) / steps)] for n in range(count)]


def _in_order(cells: pd.DataFrame) -> pd.DataFrame:
    names = series_names(cells)
    order = sorted(range(len(cells)), key=lambda i: (series_order(names[i]), i))
    return cells.iloc[order[:MAX_BARS]]


class Rows:
    """Bars from the top, with a heading above every setting where there is more than one."""

    def __init__(self, cells: pd.DataFrame) -> None:
        parts = groups(cells)
        self.cells = pd.concat(parts) if parts else cells
        self.places: list[float] = []
        self.headings: list[tuple[float, str]] = []
        series = series_names(self.cells)
        words = dict(zip(self.cells.index, settings(self.cells), strict=True))
        self.names = series
        y = 0.0
        for part in parts:
            tested = without_serial(part)
            heading = words[(tested if len(tested) else part).index[0]]
            if heading and len(parts) > 1:
                self.headings.append((y, heading))
                y += 0.9
            self.places += [y + n for n in range(len(part))]
            y += len(part) + 0.3
        self.height = y
        self.settings = len(parts)

    def label(self, axes: Sequence[Axes]) -> None:
        axes[0].set_yticks(self.places, self.names)
        for ax in axes:
            ax.set_ylim(self.height - 0.6, -0.7)
            ax.grid(axis="y", visible=False)
        for y, text in self.headings:
            label = axes[0].annotate(
                text, (0, y), xycoords=("axes fraction", "data"), xytext=(4, 0),
                textcoords="offset points", va="center", size=9, weight="bold",
            )  # fmt: skip
            label.set_parse_math(False)

    def values(self, header: Sequence[str], columns: Sequence[Sequence[float]]) -> Values:
        """A row for every bar, with its number in each column."""
        listed = zip(
            self.names, settings(self.cells), summaries(self.cells),
            zip(*columns, strict=True), strict=True,
        )  # fmt: skip
        rows = [
            Row((name, where, *(numbers.short(v, 4) for v in row)), (cell.cell_id,))
            for name, where, cell, row in listed
        ]
        return Values(("series", "setting", *header), tuple(rows))

    def left_out(self, every: pd.DataFrame) -> list[str]:
        left = len(every) - len(self.cells)
        return [f"{len(self.cells)} of {len(every)} cells; --filter chooses others."] * bool(left)


def phases(scene: PlotData) -> Drawing | None:
    """Phases of a step, mean over ranks, from their own passes; the rest is named."""
    every = scene.cells[[bool(cell.phase_ms) for cell in summaries(scene.cells)]]
    if every.empty:
        return None
    rows = Rows(every)
    fig = canvas.figure(width=7.0, height=1.4 + 0.29 * rows.height)
    ax = fig.subplots()
    cells = summaries(rows.cells)
    names = list(dict.fromkeys([*PHASES, *(name for cell in cells for name in cell.phase_ms)]))
    left, columns = [0.0] * len(cells), {}
    for name in names:
        widths = [float(cell.phase_ms.get(name, 0.0)) for cell in cells]
        if any(widths):
            color, hatch = PHASES.get(name, ("#999999", "--"))
            ax.barh(rows.places, widths, left=left, color=color, hatch=hatch,
                    edgecolor="white", linewidth=0.4, label=name)  # fmt: skip
            left = [a + b for a, b in zip(left, widths, strict=True)]
            columns[f"{name} ms"] = widths
    totals = [cell.phase_total_ms or 0.0 for cell in cells]
    rest = [max(0.0, total - a) for total, a in zip(totals, left, strict=True)]
    if any(r > 0.01 * a for r, a in zip(rest, left, strict=True)):
        ax.barh(rows.places, rest, left=left, color="white", edgecolor="#444444",
                hatch="||", linewidth=0.6, label="rest")  # fmt: skip
    rows.label([ax])
    ax.set_xlabel("ms per step, mean over ranks")
    canvas.legend(fig, [ax])
    about = "Phases of a step, mean over ranks."
    note = "From separate, instrumented passes: their sum is not the headline duration."
    values = rows.values([*columns, "all ms"], [*columns.values(), totals])
    notes = [note, *rows.left_out(every)]
    return canvas.finish(fig, scene, "phases", about, notes, shown=rows.cells, values=values)


def memory(scene: PlotData) -> Drawing | None:
    """Peak, weights and a step's tensors of the largest rank in MiB, each on an axis of its own."""
    every = scene.cells[[cell.peak_bytes_max is not None for cell in summaries(scene.cells)]]
    if every.empty:
        return None
    rows = Rows(every)
    fig = canvas.figure(width=8.0, height=1.2 + 0.29 * rows.height)
    axes = fig.subplots(1, 3, sharey=True)
    columns = (("peak_bytes_max", "peak of the process", "#56B4E9", ""),
               ("weights_bytes_max", "weights", "#D55E00", "//"),
               ("step_bytes_max", "most a step adds", "#009E73", "xx"))  # fmt: skip
    cells = summaries(rows.cells)
    sizes = [[(cell.value(name) or 0) / 2**20 for cell in cells] for name, *_ in columns]
    for ax, values, (_, title, color, hatch) in zip(axes, sizes, columns, strict=True):
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.barh(rows.places, values, color=color, hatch=hatch, edgecolor="white", linewidth=0.4)
        ax.set_title(title)
        ax.set_xlabel("MiB, largest rank")
    rows.label(list(axes))
    methods = sorted({str(m) for m in scene.frame["memory_method"] if m})
    about = f"Memory of the largest rank; peak by {', '.join(methods)}."
    shown = rows.values([f"{title} MiB" for _, title, *_ in columns], sizes)
    notes = rows.left_out(every)
    return canvas.finish(fig, scene, "memory", about, notes, shown=rows.cells, values=shown)
