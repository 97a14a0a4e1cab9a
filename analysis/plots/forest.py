"""Ratios with their intervals, one line each: two sweeps, or the strategies of one."""

from __future__ import annotations

import math

from analysis import numbers
from analysis.data.series import series_order
from analysis.errors import InputError
from analysis.plots import canvas
from analysis.plots.canvas import PlotData
from analysis.plots.drawing import Drawing, Row, Values
from analysis.stats import compare
from analysis.stats.verdict import FASTER, NOISE_THRESHOLD, SLOWER

MAX_ROWS = 30
LOOKS = {FASTER: ("#D55E00", "s"), SLOWER: ("#0072B2", "o")}


def forest(scene: PlotData) -> Drawing | None:
    """B / A: left of 1, B is faster; hollow where no difference is shown."""
    return _figure(scene, "forest", *_comparisons(scene))


def beside(scene: PlotData) -> Drawing | None:
    """The same of the fastest of ours (A) and the fastest of other systems (B), by setting."""
    try:
        comparisons = compare.beside(scene.frame, scene.cells, NOISE_THRESHOLD)
    except InputError:
        return None
    return _figure(
        scene, "beside", comparisons, "A the fastest of ours, B the fastest other system"
    )


def _figure(
    scene: PlotData, name: str, comparisons: list[compare.Comparison], what: str
) -> Drawing | None:
    every = [c for c in comparisons if c.verdict and math.isfinite(c.verdict.ratio)]
    drawn = sorted(every[:MAX_ROWS], key=lambda c: [series_order(name) for name in c.names])
    rows = compare.ratio_rows(drawn)
    if not rows:
        return None
    longest = max(len(row[0]) for row in rows)
    fig = canvas.figure(width=7.5 + 0.05 * max(0, longest - 50), height=1.3 + 0.26 * len(rows))
    ax = fig.subplots()
    ax.axvspan(1 / (1 + NOISE_THRESHOLD), 1 + NOISE_THRESHOLD, color="#e4e4e4", linewidth=0)
    ax.axvline(1.0, color="#555555", linewidth=1)
    for y, (_, ratio, low, high, word) in enumerate(rows):
        color, marker = LOOKS.get(word, ("#555555", "D"))
        face = color if word in LOOKS else "white"
        ax.errorbar(ratio, y, xerr=[[ratio - low], [high - ratio]], fmt=marker, color=color,
                    markerfacecolor=face, markersize=6)  # fmt: skip
    ax.set_yticks(range(len(rows)), [row[0] for row in rows], size=8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ends = [e for row in rows for e in row[2:4]]
    if max(ends) > 3 * min(ends):
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda value, _: numbers.ratio(value))
    ax.set_xlabel("\u2190 B is faster      duration of B / duration of A      A is faster \u2192")
    ax.grid(axis="y", visible=False)
    about = f"{what}: rows are B / A; hollow: no difference shown; grey: within the noise."
    notes = [f"Intervals hold together at 95% (Bonferroni over {len(comparisons)})."]
    if len(every) > len(rows):
        notes.append(f"{len(rows)} of {len(every)} comparisons; --filter chooses others.")
    return canvas.finish(fig, scene, name, about, notes, values=_values(drawn))


def _values(drawn: list[compare.Comparison]) -> Values:
    ends = zip(drawn, compare.ratio_rows(drawn), strict=True)
    rows = [
        Row((c.cell, *c.names, *(numbers.short(ms, 4) for ms in c.medians_ms), f"{ratio:.3f}",
             f"{low:.3f} to {high:.3f}", f"A {word}"), c.cell_ids)
        for c, (_, ratio, low, high, word) in ends
    ]  # fmt: skip
    return Values(("setting", "A", "B", "A ms", "B ms", "B / A", "interval", "verdict"),
                  tuple(rows))  # fmt: skip


def _comparisons(scene: PlotData) -> tuple[list[compare.Comparison], str]:
    sweeps = list(dict.fromkeys(str(s) for s in scene.frame["sweep"]))
    parts = [scene.frame[scene.frame["sweep"] == s].reset_index(drop=True) for s in sweeps]
    try:
        if len(sweeps) == 2:
            names = (sweeps[0], sweeps[1])
            return compare.sweeps(parts[0], parts[1], names, NOISE_THRESHOLD), "Two sweeps"
    except InputError:
        pass  # two sweeps without a cell in common: their strategies are compared instead
    try:
        return compare.column(scene.frame, "strategy", NOISE_THRESHOLD), "Strategies"
    except InputError:
        return [], ""
