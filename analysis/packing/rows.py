"""W&B runs as the rows of a packed file: of a project on a server, or of offline logs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from analysis.data.frame import filtered, newest, to_frame
from analysis.errors import SourceWarning
from analysis.sources import load_rows
from analysis.sources.packed_rows import portable_row
from analysis.sources.wandb_rows import NoRow
from runners.packed.parts import Origin

Row = dict[str, Any]
IDENTITY = ("host", "sweep", "attempt_id")


def of_runs(
    source: str, name: str, filters: Sequence[str], names: Iterable[str]
) -> tuple[list[Row], list[str]]:
    """(rows with their samples, paths of what was left out of them) of W&B runs.

    Their sweep is called `name`; several are NAME-1, NAME-2 ..., in the order of their own names.
    `names` are those of this machine and its user. A row that cannot be packed is a SourceWarning.
    Raises SourceError, and InputError for a filter that leaves nothing.
    """
    rows = newest(load_rows([source], samples=True))
    if filters:
        rows = _filtered(rows, filters)
    sweeps = _sweep_names(rows, name)
    kept: list[Row] = []
    left_out: list[str] = []
    for row in rows:
        try:
            portable, withheld = portable_row({**row, "sweep": sweeps[row["sweep"]]}, names)
        except NoRow as error:
            warnings.warn(
                f"{source}: attempt {row['attempt_id']} of sweep {row['sweep']} left out: "
                f"{error.fault}",
                SourceWarning,
                stacklevel=2,
            )
            continue
        kept.append(portable)
        left_out += withheld
    return kept, left_out


def _filtered(rows: Sequence[Row], filters: Sequence[str]) -> list[Row]:
    frame = filtered(to_frame(rows), filters)
    wanted = set(zip(*(frame[column] for column in IDENTITY), strict=True))
    return [row for row in rows if tuple(row[column] or "" for column in IDENTITY) in wanted]


def _sweep_names(rows: Iterable[Row], name: str) -> dict[str, str]:
    """Names in the file by the sweeps' own; numbers of one width, so that both sort alike."""
    sweeps = sorted({row["sweep"] for row in rows})
    if len(sweeps) == 1:
        return {sweeps[0]: name}
    width = len(str(len(sweeps)))
    return {sweep: f"{name}-{number:0{width}}" for number, sweep in enumerate(sweeps, 1)}


def origin(row: Row) -> Origin:
    """What the manifest says of a row's attempt."""
    return Origin(
        row["cell_id"], row["created"], row["project_version"], row["git_sha"], row["git_dirty"]
    )
