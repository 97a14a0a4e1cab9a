"""What `reproduce` says before anything is measured: what was measured there, and how to, here."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.data.cell_summary import summaries
from analysis.data.series import series_order
from analysis.packing import environment_differences as differences
from analysis.packing.environment_differences import Difference
from analysis.packing.this_machine import Possible, word
from analysis.publish.reproduce import facts
from analysis.stats.summarize import summarize
from analysis.text import status
from analysis.text.render import COMMAND
from runners.host import project_paths
from runners.packed.texts import WITHHELD

MOST_NAMED = 3  # cells that a reason names


def words_of(source: str, overrides: Sequence[str]) -> list[str]:
    """Arguments of the bench that measure the source's cells here."""
    return ["-m", word("cells", source), *overrides]


def measured(frame: pd.DataFrame) -> list[str]:
    """Lines: what was measured, with what, where."""
    cells = summaries(summarize(frame))
    outcomes = Counter(cell.outcome for cell in cells)
    strategies = sorted({cell.strategy for cell in cells}, key=series_order)
    counts = ", ".join(f"{n} {outcome}" for outcome, n in outcomes.most_common())
    return [
        f"{len(cells)} cells ({counts}) of {', '.join(strategies)}.",
        *(f"{name}: {value}" for name, value in facts(frame)),
    ]


def commands(source: str, overrides: Sequence[str]) -> list[str]:
    """Lines: the command that measures the same cells here, and that of the sweep itself where its
    record of it is whole."""
    lines = ["The same cells, here:", COMMAND + command(words_of(source, overrides))]
    whole = [text for text in sorted(status.sweep_commands([source])) if _is_whole(text)]
    if whole:
        lines += ["The sweep was started by", *(f"{COMMAND}{text}" for text in whole)]
    return lines


def command(words: Sequence[str]) -> str:
    """The bench with these arguments, as it is typed."""
    return f"{project_paths.BENCH} {shlex.join(words)}"


def _is_whole(command: str) -> bool:
    """Whether a command says all that was typed: nothing was withheld as it might be private."""
    return bool(command) and WITHHELD not in command and "[key]" not in command


def impossible(frame: pd.DataFrame, possible: Possible) -> list[str]:
    """Lines: which cells cannot run here, and why, a reason a line."""
    titles = {cell.cell_id: cell.strategy for cell in summaries(summarize(frame))}
    by_reason: dict[str, list[str]] = {}
    for cell_id, reason in possible.refusals.items():
        if reason is not None:
            by_reason.setdefault(reason, []).append(f"{titles.get(cell_id, '')} {cell_id}".strip())
    lines = []
    for reason, cells in by_reason.items():
        more = f" and {len(cells) - MOST_NAMED} more" if len(cells) > MOST_NAMED else ""
        lines.append(f"Cannot run here: {', '.join(cells[:MOST_NAMED])}{more}: {reason}")
    return lines


def environment_here(frame: pd.DataFrame, possible: Possible) -> list[str]:
    """Lines: what differs of the environments, as far as this machine's is known beforehand."""
    rows = differences.rows_of(frame)
    here: Mapping[str, object] = possible.environment
    related = differences.relation(rows, [{"environment": here}])
    return [related, *in_order(differences.of_environments(rows, here))]


def environments_recorded(there: pd.DataFrame, here: pd.DataFrame) -> list[str]:
    """Lines: what differs of the environments that both sweeps recorded."""
    related = differences.relation(differences.rows_of(there), differences.rows_of(here))
    return [related, *in_order(differences.of_sweeps(there, here))]


def in_order(found: Sequence[Difference]) -> list[str]:
    """Lines of the differences, those that could explain most first."""
    if not found:
        return ["Nothing that is recorded of the environments differs."]
    return [
        "The environments differ in this, what could explain most first:",
        *(one.line() for one in found),
    ]
