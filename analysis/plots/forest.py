"""Ratios with their intervals, one line each: two sweeps, or the strategies of one."""

from __future__ import annotations

from matplotlib.figure import Figure

from analysis import numbers
from analysis.errors import InputError
from analysis.plots import canvas
from analysis.plots.canvas import PlotData
from analysis.stats import compare
from analysis.stats.verdict import FASTER, NOISE_THRESHOLD, SLOWER

MAX_ROWS = 30
LOOKS = {FASTER: ("#D55E00", "s"), SLOWER: ("#0072B2", "o")}


def forest(scene: PlotData) -> Figure | None:
    """B / A: left of 1, B is faster; hollow where no difference is shown."""
    return _figure(scene, "forest", *_comparisons(scene))


def beside(scene: PlotData) -> Figure | None:
    """The same of the fastest of ours (A) and the fastest of other systems (B), by setting."""
    try:
        comparisons = compare.beside(scene.frame, scene.cells, NOISE_THRESHOLD)
    except InputError:
        return None
    return _figure(
        scene, "beside", comparisons, "A: the fastest of ours. B: the fastest other system"
    )


def _figure(
    scene: PlotData, name: str, comparisons: list[compare.Comparison], what: str
) -> Figure | None:
    every = compare.ratio_rows(comparisons)
    rows = every[:MAX_ROWS]
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
    text = f"{what}. Rows: B / A. Hollow: no difference shown; grey: within the noise threshold. "
    text += f"Intervals hold together at 95% (Bonferroni over {len(comparisons)})."
    left = len(every) - len(rows)
    text += f" {len(rows)} of {len(every)} comparisons; --filter chooses others." if left else ""
    return canvas.finish(fig, scene, name, [text])


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
