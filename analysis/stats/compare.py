"""`compare`: two sweeps, or the values of one column (strategies, commits) within the sources."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from analysis import numbers
from analysis.data.cell_summary import CellSummary, measured, summaries
from analysis.data.facets import COMPANIONS, DESCRIBED, sort_key, title_of
from analysis.data.frame import hashable, varying
from analysis.data.schema import CONFIG, LOAD_PARTS
from analysis.data.series import VARIANT, serial_of, series_names, series_order, without_serial
from analysis.errors import InputError
from analysis.stats import pairing, verdict
from analysis.stats.summarize import summarize
from analysis.stats.verdict import Verdict
from moe.spec import PEER

HEADER = ("cell", "A", "B", "A ms", "B ms", "B / A", "verdict")
SIZES = ("dim", "hidden", "dim_out", "num_experts", "topk_requested", "activation")
COMMIT = ("git_sha", "git_dirty")


@dataclass(frozen=True)
class Comparison:
    """Two cells, A and B, and the verdict of A against B; none where there are too few samples."""

    cell: str
    names: tuple[str, str]
    medians_ms: tuple[float, float]
    verdict: Verdict | None
    cell_ids: tuple[str, str]
    metric: str = ""

    def ratio(self, digits: int = 3) -> str:
        """B / A with its interval."""
        if not self.verdict:
            return "-"
        back = self.verdict.inverted()
        return f"{back.ratio:.{digits}f} [{back.low:.{digits}f}, {back.high:.{digits}f}]"

    def row(self, threshold: float) -> list[str]:
        return [
            self.cell,
            *self.names,
            *(numbers.short(v) for v in self.medians_ms),
            self.ratio(),
            verdict.sentence(*self.names, self.verdict, threshold),
        ]


class Pair(NamedTuple):
    """Two cells to compare, A and B: what they share, their names, and each with its frame."""

    setting: str
    names: tuple[str, str]
    frames: tuple[pd.DataFrame, pd.DataFrame]
    cells: tuple[CellSummary, CellSummary]


def two_names(sources: Sequence[str]) -> tuple[str, str]:
    """Names of two sources: of folders their last parts, where these differ."""
    names = [Path(s).resolve().name if Path(s).exists() else s for s in sources]
    return (names[0], names[1]) if names[0] != names[1] else (sources[0], sources[1])


def sweeps(
    a: pd.DataFrame, b: pd.DataFrame, names: tuple[str, str], threshold: float
) -> list[Comparison]:
    """Cells that both frames measured, as the same metric; raises InputError where there is
    none."""
    cells_a, cells_b = summarize(a), summarize(b)
    kinds_a, kinds_b = (set(cells["metric"]) for cells in (cells_a, cells_b))
    if not kinds_a & kinds_b:
        raise InputError(
            f"compare {names[0]} and {names[1]}: their times are not the same metric: "
            f"{'/'.join(sorted(kinds_a))} and {'/'.join(sorted(kinds_b))}; allowed are sources "
            "that were measured alike; measure the older one again"
        )
    matches = {(other.cell_id, other.metric): other for other in reversed(summaries(cells_b))}
    pairs = [
        Pair(title, names, (a, b), (cell, match))
        for cell, title in titles(cells_a).items()
        if (match := matches.get((cell.cell_id, cell.metric)))
    ]
    return _judged(pairs, threshold, f"{names[0]} and {names[1]}")


def titles(cells: pd.DataFrame) -> dict[CellSummary, str]:
    """What tells each cell from the others, in words; the cells in the order of their series."""
    series = _named(cells, "strategy")
    several = len(set(series.values())) > 1
    names = _telling(cells)
    return {
        cell: _words(cell, names, first=series[cell] if several else "")
        for cell in sorted(series, key=lambda cell: _order(series[cell], cell))
    }


def _order(name: str, cell: CellSummary) -> tuple[Any, ...]:
    return (series_order(name), *(sort_key(hashable(cell.value(n))) for n in DESCRIBED))


def column(frame: pd.DataFrame, name: str, threshold: float) -> list[Comparison]:
    """Comparisons of cells that differ in this column only; strategies also with serial.

    Raises InputError where the column has one value, or no two such cells were measured.
    """
    if name in COMMIT:
        commits = zip(*(frame[n] for n in COMMIT), strict=True)
        frame = frame.assign(git_sha=[f"{s[:10]}+{d}" if d else s[:10] for s, d in commits])
        name = COMMIT[0]
    if name not in CONFIG:
        parts = [
            (str(v), part.reset_index(drop=True)) for v, part in frame.groupby(name, sort=False)
        ]
        if len(parts) < 2:
            raise InputError(
                f"--group {name}: all attempts have the same one; allowed are columns that vary; "
                "give more sources or another column"
            )
        return [
            comparison
            for (x, a), (y, b) in itertools.pairwise(parts)
            for comparison in sweeps(a, b, (x[:12], y[:12]), threshold)
        ]
    return _judged(_by_config(frame, name), threshold, f"--group {name}")


def beside(frame: pd.DataFrame, cells: pd.DataFrame, threshold: float) -> list[Comparison]:
    """At every setting the fastest of our strategies (A) against the fastest peer (B); `cells` are
    those of the frame (`summarize`).

    Raises InputError where no setting has both.
    """
    names = _named(cells, "strategy")
    tested = measured(without_serial(cells))
    settings = _telling(tested, "strategy")
    pairs = []
    for members in _alike(tested, "strategy", names):
        sides = [[c for c in members if _is_peer(c) == side] for side in (False, True)]
        if all(sides):
            a, b = (min(side, key=lambda cell: cell.median_ms) for side in sides)
            setting = _words(b, settings)
            pairs.append(Pair(setting, (names[a], names[b]), (frame, frame), (a, b)))
    if not pairs:
        raise InputError(
            "beside: no setting has both a strategy of ours and a peer; allowed are sweeps of "
            "both, such as strategy=simple,peer_transformers or experiment=peers_cpu"
        )
    return _judged(pairs, threshold, "ours and peers")


def _is_peer(cell: CellSummary) -> bool:
    return cell.strategy.startswith(PEER)


def _by_config(frame: pd.DataFrame, name: str) -> list[Pair]:
    """Every two cells that differ in this column only."""
    cells = summarize(frame)
    names = _named(cells, name)
    tested = without_serial(cells) if name == "strategy" else cells
    settings = _telling(tested, name)
    pairs = []
    for members in _alike(tested, name, names):
        if name == "strategy":
            members = [*summaries(serial_of(cells, members[0])), *members]
        for a, b in itertools.combinations(members, 2):
            if names[a] != names[b]:
                setting = _words(b, settings)
                pairs.append(Pair(setting, (names[a], names[b]), (frame, frame), (a, b)))
    return pairs


def _named(cells: pd.DataFrame, name: str) -> dict[CellSummary, str]:
    """What every cell is called where cells are compared by this column."""
    if name == "strategy":
        return dict(zip(summaries(cells), series_names(cells), strict=True))
    shown = "load" if name == "workload" else name
    return {cell: f"{name}={hashable(cell.value(shown))}" for cell in summaries(cells)}


def _alike(
    cells: pd.DataFrame, name: str, names: dict[CellSummary, str]
) -> list[list[CellSummary]]:
    """Cells that are the same in all but this column and its companions, sorted by their names."""
    free = {name, *COMPANIONS.get(name, ())} | (set(VARIANT) if name == "strategy" else set())
    free |= set(LOAD_PARTS) if name == "workload" else set()
    same = [c for c in (*CONFIG, "host", "label", "metric") if c not in free]
    groups: dict[tuple[Any, ...], list[CellSummary]] = {}
    for cell in summaries(cells):
        groups.setdefault(tuple(hashable(cell.value(c)) for c in same), []).append(cell)
    ordered = sorted(groups.items(), key=lambda item: [sort_key(v) for v in item[0]])
    return [sorted(members, key=lambda cell: series_order(names[cell])) for _, members in ordered]


def _telling(cells: pd.DataFrame, without: str = "") -> list[str]:
    """Columns that tell these cells apart, but for the column `without` that is compared."""
    left_out = {without, "topk", "weight_seed"}
    if not without or without == "strategy":
        left_out |= {"strategy", *VARIANT}
    if without == "workload":
        left_out.add("load")
    return _by_model(cells, [n for n in varying(cells, DESCRIBED) if n not in left_out])


def _words(cell: CellSummary, names: Sequence[str], first: str = "") -> str:
    """The cell's values in these columns; `first`, where given, leads."""
    bare = ("strategy", "model", "dtype", "load")  # whose values say what they are
    settings = ((n, cell.value(n)) for n in names)
    words = [first] if first else []
    words += [str(value) if n in bare else f"{title_of(n)} {value}" for n, value in settings]
    return ", ".join(words) or cell.cell_id


def _by_model(cells: pd.DataFrame, names: list[str]) -> list[str]:
    """With the model's name in place of the sizes that follow from it."""
    models = cells["model"].fillna("")
    if models.nunique() < 2 or not models.all():
        return names
    sizes = [n for n in SIZES if n in names and cells.groupby(models)[n].nunique().max() == 1]
    return ["model", *(n for n in names if n not in sizes)] if sizes else names


def _judged(pairs: Sequence[Pair], threshold: float, what: str) -> list[Comparison]:
    """Verdicts with intervals that hold together; raises InputError where no pair was measured."""
    usable = [pair for pair in pairs if all(cell.measured for cell in pair.cells)]
    if not usable:
        raise InputError(
            f"compare {what}: no cell was measured in both; allowed are sources that share cells; "
            "see python -m analysis status"
        )
    return [
        Comparison(
            setting,
            names,
            (a.median_ms, b.median_ms),
            pairing.compare(
                pairing.series(frames[0], a),
                pairing.series(frames[1], b),
                comparisons=len(usable),
                threshold=threshold,
            ),
            (a.cell_id, b.cell_id),
            a.metric,
        )
        for setting, names, frames, (a, b) in usable
    ]


def summary(comparisons: Sequence[Comparison], threshold: float) -> list[str]:
    """Lines: the count of each verdict; what the intervals cover and the noise threshold."""
    counts = Counter(c.verdict.word if c.verdict else "too few samples" for c in comparisons)
    words = {
        verdict.FASTER: "A faster",
        verdict.SLOWER: "B faster",
        verdict.SAME: "shown to be the same",
        verdict.UNDECIDED: "no difference shown",
    }
    listed = ", ".join(f"{words.get(w, w)} in {n}" for w, n in counts.most_common())
    bases = sorted({verdict.scope(c.verdict) for c in comparisons if c.verdict})
    unpaired = sum(not c.verdict.paired for c in comparisons if c.verdict)
    apart = f"; {unpaired} are of cells that share no launch" if unpaired else ""
    kinds = "/".join(dict.fromkeys(c.metric for c in comparisons))
    return [
        f"Of {len(comparisons)} comparisons of the duration of a step, {kinds}: {listed}.",
        "B / A is the geometric mean of the ratios of times in the same round or launch, so it may "
        "differ from the ratio of the medians.",
        f"Intervals of B / A hold together at 95% (Bonferroni over {len(comparisons)}), "
        f"{' or '.join(bases)}{apart}; a difference counts only if it is surely over "
        f"{threshold:.0%}.",
    ]


def ratio_rows(comparisons: Sequence[Comparison]) -> list[tuple[str, float, float, float, str]]:
    """(name, B / A, low, high, word of A's verdict) of every comparison with a finite ratio."""
    rows = []
    for c in comparisons:
        if c.verdict and math.isfinite(c.verdict.ratio):
            back = c.verdict.inverted()
            name = f"{c.cell}: {c.names[1]} / {c.names[0]}"
            rows.append((name, back.ratio, back.low, back.high, c.verdict.word))
    return rows
