"""Stacked bars: where the time of a step goes, and how much memory it takes."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.frame import hashable, varying
from analysis.panels import VARIANT, series_names, series_order, sort_key, title_of
from analysis.plots import canvas
from analysis.plots.canvas import Scene

MAX_BARS = 18
PHASES = {
    "router": ("#56B4E9", ""),
    "permute": ("#F0E442", "//"),
    "dispatch": ("#0072B2", ""),
    "wait": ("#D9D9D9", ".."),
    "experts": ("#E69F00", ""),
    "combine": ("#CC79A7", "\\\\"),
    "unpermute": ("#009E73", "xx"),
}
NAMED = ("batch_size", "topk", "world_size", "tokens", "mode", "dtype", "workload")


def bar_names(cells: pd.DataFrame) -> list[str]:
    """The series and what else tells the bars apart."""
    names = [n for n in varying(cells, NAMED) if n not in VARIANT]
    words = []
    for _, row in cells.iterrows():
        words.append(", ".join(f"{title_of(n)} {row[n]}" for n in names))
    series = series_names(cells)
    return [f"{s}  ({w})" if w else s for s, w in zip(series, words, strict=True)]


def _chosen(cells: pd.DataFrame) -> pd.DataFrame:
    """Bars in the order of the strategies, then of their settings; at most as many as fit."""
    keys = [
        (series_order(str(row["strategy"])), *(sort_key(hashable(row[n])) for n in NAMED))
        for _, row in cells.iterrows()
    ]
    order = sorted(range(len(cells)), key=lambda i: keys[i])
    step = max(1, -(-len(order) // MAX_BARS))
    return cells.iloc[order[::step][::-1]]


def _left_out(shown: pd.DataFrame, cells: pd.DataFrame) -> list[str]:
    left = len(cells) - len(shown)
    return [f"{len(shown)} of {len(cells)} cells; --filter chooses others."] if left else []


def phases(scene: Scene) -> Figure | None:
    """Phases of a step, mean over ranks, from their own passes; the rest is named."""
    every = scene.cells[[bool(p) for p in scene.cells["phase_ms"]]]
    cells = _chosen(every)
    if cells.empty:
        return None
    made = canvas.figure(width=7.0, height=1.4 + 0.32 * len(cells))
    ax = made.subplots()
    names = list(dict.fromkeys([*PHASES, *(n for p in cells["phase_ms"] for n in p)]))
    left = [0.0] * len(cells)
    for name in names:
        widths = [float(p.get(name, 0.0)) for p in cells["phase_ms"]]
        if any(widths):
            color, hatch = PHASES.get(name, ("#999999", "--"))
            ax.barh(range(len(cells)), widths, left=left, color=color, hatch=hatch,
                    edgecolor="white", linewidth=0.4, label=name)  # fmt: skip
            left = [a + b for a, b in zip(left, widths, strict=True)]
    rest = [max(0.0, (t or 0.0) - a) for t, a in zip(cells["phase_total_ms"], left, strict=True)]
    if any(r > 0.01 * a for r, a in zip(rest, left, strict=True)):
        ax.barh(range(len(cells)), rest, left=left, color="white", edgecolor="#444444",
                hatch="||", linewidth=0.6, label="rest")  # fmt: skip
    ax.set_yticks(range(len(cells)), bar_names(cells))
    ax.set_xlabel("ms per step, mean over ranks")
    ax.grid(axis="y", visible=False)
    canvas.legend(made, [ax])
    text = "Phases from separate, instrumented passes: their sum is not the headline duration."
    return canvas.finish(made, scene, "phases", [text, *_left_out(cells, every)], cells)


def memory(scene: Scene) -> Figure | None:
    """Peak and weights of the largest rank, in MiB."""
    every = scene.cells[pd.to_numeric(scene.cells["peak_bytes_max"]).notna()]
    cells = _chosen(every)
    if cells.empty:
        return None
    made = canvas.figure(width=7.0, height=1.4 + 0.3 * len(cells))
    ax = made.subplots()
    places = range(len(cells))
    peak = [float(v) / 2**20 for v in cells["peak_bytes_max"]]
    weights = [float(v or 0) / 2**20 for v in cells["weights_bytes_max"]]
    ax.barh(places, peak, color="#56B4E9", label="peak of the process")
    ax.barh(places, weights, color="#D55E00", hatch="//", edgecolor="white", label="weights")
    ax.set_yticks(places, bar_names(cells))
    ax.set_xlabel("MiB, largest rank")
    ax.grid(axis="y", visible=False)
    canvas.legend(made, [ax])
    methods = sorted({str(m) for m in scene.frame["memory_method"] if m})
    texts = [f"Peak memory by {', '.join(methods)}.", *_left_out(cells, every)]
    return canvas.finish(made, scene, "memory", texts, cells)
