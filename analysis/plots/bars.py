"""Stacked bars: where the time of a step goes, and how much memory it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.data.facets import SERIAL, VARIANT, series_names, series_order, sort_key, title_of
from analysis.data.frame import hashable, varying
from analysis.plots import canvas
from analysis.plots.canvas import PlotData
from analysis.stats.summarize import load_of

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
    """What tells the cells apart beside their series, in words: "batch size 8, top-k 2"."""
    cells = (
        cells if "load" in cells else cells.assign(load=[load_of(r) for _, r in cells.iterrows()])
    )
    tested = cells[cells["strategy"] != SERIAL]
    names = [n for n in varying(cells if tested.empty else tested, NAMED) if n not in VARIANT]
    return [", ".join(f"{title_of(n)} {row[n]}" for n in names) for _, row in cells.iterrows()]


def bar_names(cells: pd.DataFrame) -> list[str]:
    """The series and what else tells the bars apart."""
    both = zip(series_names(cells), settings(cells), strict=True)
    return [f"{s}  ({w})" if w else s for s, w in both]


def _setting_key(row: pd.Series[Any], ranks: dict[Any, int]) -> tuple[Any, ...]:
    """Sorts by setting; a serial cell goes with the first spread-out ones that do its work."""
    work = tuple(sort_key(hashable(row[n])) for n in NAMED if n != "world_size")
    size = ranks.get(work, 1) if row["strategy"] == SERIAL else int(row["world_size"])
    return (*work, size)


def groups(cells: pd.DataFrame) -> list[pd.DataFrame]:
    """Cells by setting, each in the order of the strategies. Where not all fit: of the settings
    with most cells as many as do, spread over their range."""
    tested = cells[cells["strategy"] != SERIAL]
    ranks: dict[Any, int] = {}
    for _, row in tested.iterrows():
        *work, size = _setting_key(row, {})
        ranks[tuple(work)] = min(size, ranks.get(tuple(work), size))
    found: dict[Any, list[int]] = {}
    for position, (_, row) in enumerate(cells.iterrows()):
        found.setdefault(_setting_key(row, ranks), []).append(position)
    chosen = sorted(found)
    if len(cells) > MAX_BARS:
        most = max(len(positions) for positions in found.values())
        chosen = _spread([k for k in chosen if len(found[k]) == most], MAX_BARS // most)
    return [_in_order(cells.iloc[found[key]]) for key in chosen]


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
            tested = part[part["strategy"] != SERIAL]
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

    def left_out(self, every: pd.DataFrame) -> list[str]:
        left = len(every) - len(self.cells)
        return [f"{len(self.cells)} of {len(every)} cells; --filter chooses others."] * bool(left)


def phases(scene: PlotData) -> Figure | None:
    """Phases of a step, mean over ranks, from their own passes; the rest is named."""
    every = scene.cells[[bool(p) for p in scene.cells["phase_ms"]]]
    if every.empty:
        return None
    rows = Rows(every)
    made = canvas.figure(width=7.0, height=1.4 + 0.29 * rows.height)
    ax = made.subplots()
    cells = rows.cells
    names = list(dict.fromkeys([*PHASES, *(n for p in cells["phase_ms"] for n in p)]))
    left = [0.0] * len(cells)
    for name in names:
        widths = [float(p.get(name, 0.0)) for p in cells["phase_ms"]]
        if any(widths):
            color, hatch = PHASES.get(name, ("#999999", "--"))
            ax.barh(rows.places, widths, left=left, color=color, hatch=hatch,
                    edgecolor="white", linewidth=0.4, label=name)  # fmt: skip
            left = [a + b for a, b in zip(left, widths, strict=True)]
    rest = [max(0.0, (t or 0.0) - a) for t, a in zip(cells["phase_total_ms"], left, strict=True)]
    if any(r > 0.01 * a for r, a in zip(rest, left, strict=True)):
        ax.barh(rows.places, rest, left=left, color="white", edgecolor="#444444",
                hatch="||", linewidth=0.6, label="rest")  # fmt: skip
    rows.label([ax])
    ax.set_xlabel("ms per step, mean over ranks")
    canvas.legend(made, [ax])
    text = "Phases from separate, instrumented passes: their sum is not the headline duration."
    return canvas.finish(made, scene, "phases", [text, *rows.left_out(every)], cells)


def memory(scene: PlotData) -> Figure | None:
    """Peak, weights and a step's tensors of the largest rank in MiB, each on an axis of its own."""
    every = scene.cells[pd.to_numeric(scene.cells["peak_bytes_max"]).notna()]
    if every.empty:
        return None
    rows = Rows(every)
    made = canvas.figure(width=8.0, height=1.2 + 0.29 * rows.height)
    axes = made.subplots(1, 3, sharey=True)
    columns = (("peak_bytes_max", "peak of the process", "#56B4E9", ""),
               ("weights_bytes_max", "weights", "#D55E00", "//"),
               ("step_bytes_max", "most a step adds", "#009E73", "xx"))  # fmt: skip
    for ax, (name, title, color, hatch) in zip(axes, columns, strict=True):
        values = [float(v) / 2**20 for v in pd.to_numeric(rows.cells[name]).fillna(0)]
        ax.barh(rows.places, values, color=color, hatch=hatch, edgecolor="white", linewidth=0.4)
        ax.set_title(title)
        ax.set_xlabel("MiB, largest rank")
    rows.label(list(axes))
    methods = sorted({str(m) for m in scene.frame["memory_method"] if m})
    texts = [f"Peak memory by {', '.join(methods)}.", *rows.left_out(every)]
    return canvas.finish(made, scene, "memory", texts, rows.cells)
