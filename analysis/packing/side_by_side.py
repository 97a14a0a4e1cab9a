"""Each cell of a sweep there beside the same cell here: the ratio of their times, and a verdict."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis import numbers
from analysis.data.cell_summary import CellSummary, summaries
from analysis.errors import InputError
from analysis.stats import compare, verdict
from analysis.stats.compare import Comparison
from analysis.stats.summarize import summarize

NAMES = ("there", "here")
HEADER = ("cell", "there ms", "here ms", "here / there", "verdict")
FASTER, SLOWER, UNDECIDED = verdict.FASTER, verdict.SLOWER, "no difference shown"
NOT_HERE, NOT_THERE = "not measured here", "not measured there"


@dataclass(frozen=True)
class Pairing:
    """A cell there, its comparison with the one here where both have a time, and the verdict of
    here against there; `why` where there is no comparison."""

    cell: CellSummary
    title: str
    word: str
    why: str = ""
    comparison: Comparison | None = None
    launches: tuple[int, int] = (0, 0)  # measured there and here
    expected: bool = False  # measured there and possible here, and yet not measured here

    @property
    def differs(self) -> bool:
        return self.word in (FASTER, SLOWER)

    @property
    def distance(self) -> float:
        """How far the ratio is from 1, as a logarithm."""
        known = self.comparison.verdict if self.comparison else None
        return abs(math.log(known.ratio)) if known else 0.0

    def row(self) -> list[str]:
        """Texts in the order of HEADER."""
        medians = self.comparison.medians_ms if self.comparison else (self.cell.median_ms, math.nan)
        times = [numbers.short(value) if math.isfinite(value) else "-" for value in medians]
        ratio = self.comparison.ratio() if self.comparison else "-"
        return [self.title, *times, ratio, f"{self.word} ({self.why})" if self.why else self.word]


def pairings(
    there: pd.DataFrame,
    here: pd.DataFrame,
    threshold: float,
    refusals: Mapping[str, str | None],
) -> list[Pairing]:
    """A pairing of every cell there; `here` may be empty. `refusals` say why a cell cannot run
    here, by its id."""
    cells, ours = summarize(there), summaries(summarize(here)) if len(here) else []
    compared = _compared(there, here, threshold) if ours else {}
    result = []
    for cell, title in compare.titles(cells).items():
        alike = compared.get((cell.cell_id, cell.metric), [])
        others = [one for one in ours if one.cell_id == cell.cell_id]
        if cell.measured and alike:
            one = alike.pop(0)
            here_too = [other for other in others if other.metric == one.metric]
            launches = cell.launches, max((other.launches for other in here_too), default=0)
            result.append(_judged(cell, title, one, threshold, launches))
            continue
        result.append(_alone(cell, title, others, refusals.get(cell.cell_id)))
    return result


def _compared(
    there: pd.DataFrame, here: pd.DataFrame, threshold: float
) -> dict[tuple[str, str], list[Comparison]]:
    """By cell and metric, in the order of `compare.titles`."""
    # A launch there is none of here, although machine, name and number may be the same.
    here = here.assign(sweep=[f"here: {name}" for name in here["sweep"]])
    try:
        comparisons = compare.sweeps(there, here, NAMES, threshold)
    except InputError:  # no cell was measured in both, or not as the same metric
        return {}
    by_cell: dict[tuple[str, str], list[Comparison]] = {}
    for one in comparisons:
        by_cell.setdefault((one.cell_ids[0], one.metric), []).append(one)
    return by_cell


def _judged(
    cell: CellSummary, title: str, one: Comparison, threshold: float, launches: tuple[int, int]
) -> Pairing:
    if one.verdict is None:
        return Pairing(cell, title, UNDECIDED, "too few samples", one, launches)
    word = one.verdict.inverted().word  # of here against there
    words = {verdict.SAME: f"same within {threshold:.0%}", verdict.UNDECIDED: UNDECIDED}
    return Pairing(cell, title, words.get(word, word), comparison=one, launches=launches)


def _alone(
    cell: CellSummary, title: str, others: Sequence[CellSummary], refusal: str | None
) -> Pairing:
    """A cell that has no time on one of the sides. An attempt here says more than a refusal, which
    is of this machine as it is now."""
    if not cell.measured:
        return Pairing(cell, title, NOT_THERE, _why(cell))
    if timed := [one for one in others if one.measured]:
        return Pairing(
            cell, title, NOT_HERE, f"times are {timed[0].metric}, and {cell.metric} there"
        )
    if refusal and not others:
        return Pairing(cell, title, NOT_HERE, refusal)
    why = _why(others[0]) if others else "no attempt in these records"
    checked = bool(others) and others[0].checked
    return Pairing(cell, title, NOT_HERE, why, expected=not checked)


def _why(cell: CellSummary) -> str:
    if cell.checked:
        return "checked, not timed"
    message = cell.error_message or (cell.gate_detail if cell.outcome == "wrong" else "")
    return f"{cell.outcome}: {message}" if message else cell.outcome


def summary(pairs: Sequence[Pairing], threshold: float) -> list[str]:
    """Lines: the count of each verdict, and what the ratios and intervals are."""
    counts = Counter(pair.word for pair in pairs)
    listed = ", ".join(f"{word} {n}" for word, n in counts.most_common())
    lines = [f"Of {numbers.counted(len(pairs), 'cell')}, here against there: {listed}."]
    judged = [pair for pair in pairs if pair.comparison]
    if judged:
        intervals = (
            "The interval of the ratio holds at 95%" if len(judged) == 1
            else f"Intervals of the {len(judged)} ratios hold together at 95% (Bonferroni)"
        )  # fmt: skip
        bases = " or ".join(sorted(set(filter(None, map(_scope, judged)))))
        lines.append(
            f"A ratio below 1 is faster here. {intervals}, {bases or 'with too few samples'}; a "
            f"difference counts only if it is surely over {threshold:.0%}."
        )
    return lines


def _scope(pair: Pairing) -> str:
    """Text: the launches that a verdict holds for; empty where there is none."""
    known = pair.comparison.verdict if pair.comparison else None
    if known is None:
        return ""
    a, b = pair.launches
    word = "over" if known.basis == "launches" else "within"
    return f"{word} {numbers.counted(a, 'launch', 'launches')} there and {b} here"
