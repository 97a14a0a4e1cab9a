"""`status`: cells of each sweep by outcome, against its plan; failures with their logs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.data.frame import plain
from runners.host import project_paths
from runners.packed.packed_file import is_packed, read_packed
from runners.records import sweep_folder
from runners.records.record import GOOD

COUNTED = ("measured", "checked", "wrong", "failed")  # outcomes with a column of their own
HEADER = ("sweep", "planned", *COUNTED, "other", "missing", "launches", "timed s")
HINTS = {
    "missing": "resume={folder} measures it",
    "stale": "measured by other code, versions or machine; resume_mode=stale measures it anew",
}


def rows(frame: pd.DataFrame, sources: Sequence[str | Path]) -> list[list[str]]:
    """One line per sweep; planned and missing are a dash where there is no plan to be seen."""
    plans = planned(sources)
    lines = []
    for sweep, part in frame.groupby("sweep", sort=False):
        best = _best(part)
        counts = Counter(best.values())
        other = sum(counts.values()) - sum(counts[o] for o in COUNTED)
        wanted = plans.get(str(sweep))
        missing = "-" if wanted is None else str(len(wanted - set(best)))
        lines.append([
            str(sweep), "-" if wanted is None else str(len(wanted)),
            *(str(counts[o]) for o in COUNTED), str(other), missing,
            str(part["launch"].nunique()), f"{part['timed_seconds'].sum():.1f}",
        ])  # fmt: skip
    return lines


def _best(part: pd.DataFrame) -> dict[str, str]:
    """The last outcome of every cell, in order of launch."""
    ordered = part.sort_values("launch", kind="stable")
    return {str(c): str(o) for c, o in zip(ordered["cell_id"], ordered["outcome"], strict=True)}


def planned(sources: Sequence[str | Path]) -> dict[str, set[str]]:
    """Ids of the cells each sweep set out to measure, from its plan.json where it has one."""
    planned_ids: dict[str, set[str]] = {}
    for plan in _plans(sources):
        try:
            ids = {str(cell["cell_id"]) for cell in plan["cells"]}
            planned_ids.setdefault(str(plan["name"]), ids)
        except (KeyError, TypeError):
            continue
    return planned_ids


def _plans(sources: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The plan.json of every source, or of the sweeps in it; unreadable ones are left out."""
    plans = []
    for source in filter(is_packed, sources):
        if plan := read_packed(source).plan:
            plans.append(plan)
    for folder in _folders(sources):
        try:
            plan = json.loads((folder / sweep_folder.PLAN).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(plan, dict):
            plans.append(plan)
    return plans


def _folders(sources: Sequence[str | Path]) -> list[Path]:
    """Every source that is a folder, and the folders directly in it."""
    folders = [Path(source) for source in sources if not is_packed(source)]
    return [folder for path in folders for folder in (path, *sorted(path.glob("*/")))]


def unfinished(sources: Sequence[str | Path]) -> list[tuple[str, str]]:
    """(state, line) of every planned cell without an attempt (missing), or whose attempts are of
    other code or another machine (stale), and of every plan that cannot be read (damaged)."""
    folders = [folder for folder in _folders(sources) if (folder / sweep_folder.PLAN).is_file()]
    if not folders:
        return []
    versions, lines = sweep_folder.versions_here(project_paths.CLONE), []
    for folder in folders:
        try:
            cells = sweep_folder.cells(folder, versions)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            lines.append(("damaged", f"damaged: {error}; set aside"))
            continue
        for cell in cells:
            if cell.state in HINTS:
                hint = HINTS[cell.state].format(folder=folder)
                if sweep_folder.is_emulated(folder):  # which bench.py does not resume
                    hint = f"measure {sweep_folder.MISSING_EMULATED}"
                log = f"; log {cell.log}" if cell.log else ""
                where = f"{folder.name} {cell.strategy} {cell.cell_id}"
                lines.append((cell.state, f"{cell.state}: {where}: {hint}{log}"))
    return lines


def failures(frame: pd.DataFrame) -> list[str]:
    """One line per attempt that lacks a time: what, why, where to look."""
    lines = []
    broken: list[Any] = list(frame[~frame["outcome"].isin(GOOD)].itertuples())
    for row in broken:
        why = row.error_message or _gate_text(row)
        log = f"; log {row.error_log}" if row.error_log else ""
        place = f"{row.sweep} {row.strategy} {row.attempt_id}"
        lines.append(" ".join(f"{row.outcome}: {place}: {why}{log}".split()))
    return lines


def _gate_text(attempt: Any) -> str:
    error, limit = plain(attempt.gate_error), plain(attempt.gate_tolerance)
    if error is not None and limit is not None:
        detail = attempt.gate_detail or "outputs disagree with the oracle"
        return f"{detail}; error before timing {error:.2g}, allowed {limit:.2g}"
    return "; ".join(str(n) for n in attempt.notes) or "no reason recorded"


def refused(sources: Sequence[str | Path]) -> list[tuple[str, str]]:
    """(overrides, reason) of the cells that the sweeps left out because they cannot run; a packed
    file has no reasons."""
    packed = [(words, "") for s in filter(is_packed, sources) for words in read_packed(s).refused]
    return packed + [
        pair for folder in _folders(sources) for pair in sweep_folder.read_refused(folder)
    ]


def sweep_commands(sources: Sequence[str | Path]) -> set[str]:
    """The command lines that started the sweeps, from their plans."""
    return {str(plan.get("command") or "") for plan in _plans(sources)}


def isolations(sources: Sequence[str | Path]) -> dict[str, str]:
    """The isolation of each sweep, where its plan says it."""
    return {
        str(plan.get("name")): str(plan["isolation"])
        for plan in _plans(sources)
        if plan.get("isolation")
    }
