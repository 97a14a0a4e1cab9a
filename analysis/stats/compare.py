"""`compare`: two sweeps, or the values of one column (strategies, commits) within the sources."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis import numbers
from analysis.data.facets import (
    COMPANIONS,
    DESCRIBED,
    SERIAL,
    VARIANT,
    serial_of,
    series_names,
    series_order,
    sort_key,
    title_of,
)
from analysis.data.frame import hashable, varying
from analysis.data.schema import CONFIG, LOAD_PARTS
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
    """Two cells and what can be said of them."""

    cell: str
    names: tuple[str, str]
    medians_ms: tuple[float, float]
    found: Verdict | None
    cell_ids: tuple[str, str]
    metric: str = ""

    def ratio(self, digits: int = 3) -> str:
        """B / A with its interval."""
        if not self.found:
            return "-"
        back = self.found.inverted()
        return f"{back.ratio:.{digits}f} [{back.low:.{digits}f}, {back.high:.{digits}f}]"

    def row(self, threshold: float) -> list[str]:
        return [
            self.cell,
            *self.names,
            *(numbers.short(v) for v in self.medians_ms),
            self.ratio(),
            verdict.sentence(*self.names, self.found, threshold),
        ]


Pair = tuple[str, tuple[str, str], pd.DataFrame, pd.Series, pd.DataFrame, pd.Series]  # type: ignore[type-arg]


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
    cells_a = cells_a.assign(group_name=series_names(cells_a))
    found: list[Pair] = []
    for cell in sorted((c for _, c in cells_a.iterrows()), key=_order):
        alike = (cells_b["cell_id"] == cell["cell_id"]) & (cells_b["metric"] == cell["metric"])
        match = cells_b[alike]
        if not match.empty:
            found.append((_words(cell, cells_a), names, a, cell, b, match.iloc[0]))
    return _judged(found, threshold, f"{names[0]} and {names[1]}")


def _order(cell: pd.Series[Any]) -> tuple[Any, ...]:
    values = [sort_key(hashable(cell[n])) for n in DESCRIBED]
    return (series_order(str(cell["group_name"])), *values)


def column(frame: pd.DataFrame, name: str, threshold: float) -> list[Comparison]:
    """Cells that differ in this column only; the strategies meet each other and serial."""
    if name in COMMIT:
        frame = frame.assign(git_sha=[_commit(row) for _, row in frame.iterrows()])
        name = "git_sha"
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


def _commit(row: pd.Series[Any]) -> str:
    return str(row["git_sha"])[:10] + (f"+{row['git_dirty']}" if row["git_dirty"] else "")


def beside(frame: pd.DataFrame, cells: pd.DataFrame, threshold: float) -> list[Comparison]:
    """At every setting the fastest of our strategies (A) against the fastest peer (B); `cells` are
    those of the frame (`summarize`).

    Raises InputError where no setting has both.
    """
    named = _named(cells, "strategy")
    tested = named[(named["strategy"] != SERIAL) & (named["outcome"] == "measured")]
    found: list[Pair] = []
    for members in _alike(tested, "strategy"):
        sides = [[c for c in members if _is_peer(c) == side] for side in (False, True)]
        if all(sides):
            a, b = (min(side, key=lambda cell: float(cell["median_ms"])) for side in sides)
            names = (str(a["group_name"]), str(b["group_name"]))
            found.append((_words(b, tested, "strategy"), names, frame, a, frame, b))
    if not found:
        raise InputError(
            "beside: no setting has both a strategy of ours and a peer; allowed are sweeps of "
            "both, such as strategy=simple,peer_transformers or experiment=peers_cpu"
        )
    return _judged(found, threshold, "ours and peers")


def _is_peer(cell: pd.Series[Any]) -> bool:
    return str(cell["strategy"]).startswith(PEER)


def _by_config(frame: pd.DataFrame, name: str) -> list[Pair]:
    cells = _named(summarize(frame), name)
    tested = cells[cells["strategy"] != SERIAL] if name == "strategy" else cells
    found: list[Pair] = []
    for members in _alike(tested, name):
        if name == "strategy":
            members = [*(row for _, row in serial_of(cells, members[0]).iterrows()), *members]
        for a, b in itertools.combinations(members, 2):
            names = (str(a["group_name"]), str(b["group_name"]))
            if names[0] != names[1]:
                found.append((_words(b, tested, name), names, frame, a, frame, b))
    return found


def _named(cells: pd.DataFrame, name: str) -> pd.DataFrame:
    """With what the cells are called where they are compared by this column."""
    if name == "strategy":
        return cells.assign(group_name=series_names(cells))
    shown = "load" if name == "workload" else name
    return cells.assign(group_name=[f"{name}={hashable(v)}" for v in cells[shown]])


def _alike(cells: pd.DataFrame, name: str) -> list[list[pd.Series[Any]]]:
    """Cells that are the same in all but this column and what goes with it, in order."""
    free = {name, *COMPANIONS.get(name, ())} | (set(VARIANT) if name == "strategy" else set())
    free |= set(LOAD_PARTS) if name == "workload" else set()
    same = [c for c in (*CONFIG, "host", "label", "metric") if c not in free]
    groups: dict[tuple[Any, ...], list[pd.Series[Any]]] = {}
    for _, cell in cells.iterrows():
        groups.setdefault(tuple(hashable(cell[c]) for c in same), []).append(cell)
    ordered = sorted(groups.items(), key=lambda item: [sort_key(v) for v in item[0]])
    return [
        sorted(members, key=lambda cell: series_order(str(cell["group_name"])))
        for _, members in ordered
    ]


def _words(cell: pd.Series[Any], cells: pd.DataFrame, without: str = "") -> str:
    """The settings that tell this cell from its neighbours; its series first, if not compared."""
    left_out = {without, "topk", "weight_seed"}
    if not without or without == "strategy":
        left_out |= {"strategy", *VARIANT}
    if without == "workload":
        left_out.add("load")
    names = _by_model(cells, [n for n in varying(cells, DESCRIBED) if n not in left_out])
    words = [] if without or len(set(cells["group_name"])) == 1 else [str(cell["group_name"])]
    bare = ("strategy", "model", "dtype", "load")  # whose values say what they are
    words += [str(cell[n]) if n in bare else f"{title_of(n)} {cell[n]}" for n in names]
    return ", ".join(words) or str(cell["cell_id"])


def _by_model(cells: pd.DataFrame, names: list[str]) -> list[str]:
    """With the model's name in place of the sizes that follow from it."""
    models = cells["model"].fillna("")
    if models.nunique() < 2 or not models.all():
        return names
    sizes = [n for n in SIZES if n in names and cells.groupby(models)[n].nunique().max() == 1]
    return ["model", *(n for n in names if n not in sizes)] if sizes else names


def _judged(found: Sequence[Pair], threshold: float, what: str) -> list[Comparison]:
    usable = [p for p in found if p[3]["outcome"] == p[5]["outcome"] == "measured"]
    if not usable:
        raise InputError(
            f"compare {what}: no cell was measured in both; allowed are sources that share cells; "
            "see python -m analysis status"
        )
    return [
        Comparison(
            words,
            names,
            (float(a["median_ms"]), float(b["median_ms"])),
            pairing.compare(
                pairing.series(frame_a, a),
                pairing.series(frame_b, b),
                comparisons=len(usable),
                threshold=threshold,
            ),
            (str(a["cell_id"]), str(b["cell_id"])),
            str(a["metric"]),
        )
        for words, names, frame_a, a, frame_b, b in usable
    ]


def summary(found: Sequence[Comparison], threshold: float) -> list[str]:
    """The count of each verdict, then how it was decided."""
    counts = Counter(c.found.word if c.found else "too few samples" for c in found)
    words = {
        verdict.FASTER: "A faster",
        verdict.SLOWER: "B faster",
        verdict.SAME: "shown to be the same",
        verdict.UNDECIDED: "no difference shown",
    }
    said = ", ".join(f"{words.get(w, w)} in {n}" for w, n in counts.most_common())
    bases = sorted({verdict.scope(c.found) for c in found if c.found})
    unpaired = sum(not c.found.paired for c in found if c.found)
    kinds = "/".join(dict.fromkeys(c.metric for c in found))
    return [
        f"Of {len(found)} comparisons of the duration of a step, {kinds}: {said}.",
        f"Intervals of the ratio hold together at 95% (Bonferroni over {len(found)}), "
        f"{' or '.join(bases)}; {unpaired} unpaired; a difference counts from {threshold:.0%}.",
    ]


def ratio_rows(found: Sequence[Comparison]) -> list[tuple[str, float, float, float, str]]:
    """(name, B / A, low, high, verdict word of A) for the forest plot."""
    rows = []
    for c in found:
        if c.found and math.isfinite(c.found.ratio):
            back = c.found.inverted()
            name = f"{c.cell}: {c.names[1]} / {c.names[0]}"
            rows.append((name, back.ratio, back.low, back.high, c.found.word))
    return rows
