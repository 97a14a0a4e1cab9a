"""What `reproduce` says before anything is measured: what was measured there, and how to, here."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis import numbers
from analysis.data.cell_summary import summaries
from analysis.data.series import series_order
from analysis.packing import environment_differences as differences
from analysis.packing.environment_differences import Difference
from analysis.packing.side_by_side import Pairing
from analysis.packing.this_machine import Possible, word
from analysis.publish.reproduce import facts
from analysis.stats.summarize import summarize
from analysis.text import status
from analysis.text.render import COMMAND
from runners.host import project_paths
from runners.packed.texts import WITHHELD
from runners.records import emulation

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
        f"{numbers.counted(len(cells), 'cell')} ({counts}) of {', '.join(strategies)}.",
        *(f"{name}: {value}" for name, value in facts(frame)),
    ]


def commands(source: str, overrides: Sequence[str], of_all: int = 0) -> list[str]:
    """Lines: the command that measures the same cells here, and that of the sweep itself where its
    record of it is whole. `of_all` is the number of cells where a filter shows only some."""
    first = "The same cells, here:"
    if of_all:
        first = f"--filter is not of this command, which measures all {of_all} cells, here:"
    lines = [first, COMMAND + command(words_of(source, overrides))]
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
    """Lines: which cells of the frame cannot run here, and why, a reason a line."""
    titles = {cell.cell_id: cell.strategy for cell in summaries(summarize(frame))}
    by_reason: dict[str, list[str]] = {}
    for cell_id, reason in possible.refusals.items():
        if reason is not None and cell_id in titles:
            by_reason.setdefault(reason, []).append(f"{titles[cell_id]} {cell_id}")
    return [f"Cannot run here: {_few(cells)}: {reason}" for reason, cells in by_reason.items()]


def _few(cells: Sequence[str]) -> str:
    more = f" and {len(cells) - MOST_NAMED} more" if len(cells) > MOST_NAMED else ""
    return f"{', '.join(cells[:MOST_NAMED])}{more}"


def emulated(frame: pd.DataFrame) -> list[str]:
    """Lines: which cells are left out, as their times are of another clock than this machine's."""
    ids = dict.fromkeys(
        f"{row.strategy} {row.cell_id}"
        for row in frame.itertuples() if not is_real(row.emulation)
    )  # fmt: skip
    if not ids:
        return []
    return [f"Left out, as their times are of an emulated cluster: {_few(list(ids))}"]


def is_real(emulation_of_row: Any) -> bool:
    """Whether an attempt is of real ranks, by its column `emulation`."""
    return emulation.of_values(emulation_of_row) is None


def compared(frame: pd.DataFrame, pairs: Sequence[Pairing]) -> pd.DataFrame:
    """The attempts with a time of cells that both sides have a time of; all attempts where there
    are none."""
    ids = {pair.cell.cell_id for pair in pairs if pair.comparison}
    kept = frame[frame["cell_id"].isin(ids) & (frame["outcome"] == "measured")]
    return kept if len(kept) else frame


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


def in_order(differences: Sequence[Difference]) -> list[str]:
    """Lines of the differences, those that could explain most first."""
    if not differences:
        return ["Nothing that is recorded of the environments differs."]
    return [
        "The environments differ in this, what could explain most first:",
        *(one.line() for one in differences),
    ]
