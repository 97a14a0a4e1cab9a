"""`status`: cells of each sweep by outcome, against its plan; failures with their logs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.data.frame import plain

HEADER = (
    "sweep",
    "planned",
    "measured",
    "wrong",
    "failed",
    "other",
    "missing",
    "launches",
    "timed s",
)


def rows(frame: pd.DataFrame, sources: Sequence[str | Path]) -> list[list[str]]:
    """One line per sweep; planned and missing are a dash where there is no plan to be seen."""
    plans = planned(sources)
    found = []
    for sweep, part in frame.groupby("sweep", sort=False):
        best = _best(part)
        counts = Counter(best.values())
        other = sum(counts.values()) - sum(counts[o] for o in ("measured", "wrong", "failed"))
        wanted = plans.get(str(sweep))
        missing = "-" if wanted is None else str(len(wanted - set(best)))
        found.append([
            str(sweep), "-" if wanted is None else str(len(wanted)),
            *(str(counts[o]) for o in ("measured", "wrong", "failed")), str(other), missing,
            str(part["launch"].nunique()), f"{part['timed_seconds'].sum():.1f}",
        ])  # fmt: skip
    return found


def _best(part: pd.DataFrame) -> dict[str, str]:
    """The last outcome of every cell, in order of launch."""
    ordered = part.sort_values("launch", kind="stable")
    return {str(c): str(o) for c, o in zip(ordered["cell_id"], ordered["outcome"], strict=True)}


def planned(sources: Sequence[str | Path]) -> dict[str, set[str]]:
    """Ids of the cells each sweep set out to measure, from its plan.json where it has one."""
    found = {}
    for plan in _plans(sources):
        try:
            found[str(plan["name"])] = {str(cell["cell_id"]) for cell in plan["cells"]}
        except (KeyError, TypeError):
            continue
    return found


def _plans(sources: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The plan.json of every source, or of the sweeps in it; unreadable ones are left out."""
    found = []
    folders = [folder for s in sources for folder in (Path(s), *sorted(Path(s).glob("*/")))]
    for folder in folders:
        try:
            plan = json.loads((folder / "plan.json").read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(plan, dict):
            found.append(plan)
    return found


def failures(frame: pd.DataFrame) -> list[str]:
    """One line per attempt without a time: what, why, where to look."""
    lines = []
    for _, row in frame[frame["outcome"] != "measured"].iterrows():
        why = row["error_message"] or _gate(row)
        log = f"; log {row['error_log']}" if row["error_log"] else ""
        place = f"{row['sweep']} {row['strategy']} {row['attempt_id']}"
        lines.append(" ".join(f"{row['outcome']}: {place}: {why}{log}".split()))
    return lines


def _gate(row: pd.Series[Any]) -> str:
    error, limit = plain(row["gate_error"]), plain(row["gate_tolerance"])
    if error is not None and limit is not None:
        detail = row["gate_detail"] or "outputs disagree with the oracle"
        return f"{detail}; error before timing {error:.2g}, allowed {limit:.2g}"
    return "; ".join(str(n) for n in row["notes"]) or "no reason recorded"


def sweep_commands(sources: Sequence[str | Path]) -> set[str]:
    """The command lines that started the sweeps, from their plans."""
    return {str(plan.get("command") or "") for plan in _plans(sources)}
