"""`beside`: at every setting the fastest of our strategies beside the fastest of other systems."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import pandas as pd

from analysis import numbers
from analysis.data.cell_summary import CellSummary, summaries
from analysis.stats import compare, roofline, verdict
from analysis.stats.compare import Comparison
from runners.records import forced_balance

HEADER = ("setting", "ours", "ms", "of its limit", "MiB", "best peer", "ms", "of its limit", "MiB",
          "peer / ours")  # fmt: skip


def rows(pairs: Sequence[Comparison], cells: pd.DataFrame) -> list[list[str]]:
    """Medians in ms, the fraction of the compute limit reached (`analysis.stats.roofline`), memory
    of the weights and a step on the largest rank, and the ratio of the times with its interval."""
    by_id = {cell.cell_id: cell for cell in summaries(cells)}
    lines = []
    for one in pairs:
        sides = [
            [name, numbers.short(ms), _of_limit(by_id[cell]), mebibytes(by_id[cell])]
            for name, ms, cell in zip(one.names, one.medians_ms, one.cell_ids, strict=True)
        ]
        lines.append([one.cell, *sides[0], *sides[1], one.ratio(digits=2)])
    return lines


def _of_limit(cell: CellSummary) -> str:
    limit = roofline.bound(cell)
    return f"{limit.compute_fraction:.0%}" if limit else "-"


def mebibytes(cell: CellSummary) -> str:
    """Weights and the most that a step adds, of the largest rank, in MiB."""
    weights, step = cell.weights_bytes_max, cell.step_bytes_max
    return "-" if weights is None or step is None else numbers.short((weights + step) / 2**20)


def summary_lines(pairs: Sequence[Comparison], cells: pd.DataFrame, threshold: float) -> list[str]:
    """Lines: how often ours is faster and by how much; what the columns and intervals mean."""
    used = {cell_id for one in pairs for cell_id in one.cell_ids}
    kinds = [c.cell.workload.kind for c in summaries(cells) if c.cell_id in used]
    ratios = [one.verdict.inverted().ratio for one in pairs if one.verdict]
    words = [one.verdict.word if one.verdict else "" for one in pairs]
    lines = []
    if ratios:
        lines.append(
            f"Ours is faster than the best peer at {words.count(verdict.FASTER)} of {len(pairs)} "
            f"settings, slower at {words.count(verdict.SLOWER)}, and at the others no difference "
            f"is shown. The peer takes {statistics.geometric_mean(ratios):.2f} times as long "
            f"(geometric mean; least {min(ratios):.2f}, most {max(ratios):.2f})."
        )
    return [
        *lines,
        *forced_balance.sentences(kinds),
        "Of its limit: the step's arithmetic at the calibrated rate, or its weights at the "
        "calibrated bandwidth, over the median time. MiB: weights and the most that a step adds, "
        "largest rank.",
        *compare.summary(pairs, threshold)[1:],
    ]
