"""`cells=FILE`: the cells of a packed file or of a sweep's folder, as jobs of a new sweep."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from runners.config.cell_overrides import Recorded, overrides_of
from runners.errors import ConfigError
from runners.host.project_paths import BENCH
from runners.packed.container import PackedError
from runners.packed.packed_file import is_packed, read_packed
from runners.plan import ISOLATIONS
from runners.records import emulation, flat_row, record
from runners.records.record import Record
from runners.records.sweep_folder import read_plan

KNOB = "cells"
TRACE = "workload.trace"
ALLOWED = "allowed are a packed file NAME.moebench, its https:// address, or a sweep's folder"
# What a choice of a file in conf/ replaces of a cell's own overrides. Of `measure`, graph and cache
# stay: they are part of what the cell is.
REPLACED = {
    "model": ("model.", "num_experts", "topk", "topk_overflow"),
    "strategy": ("strategy.",),
    "workload": ("workload.",),
    "measure": ("measure.",),
}
OF_CELL = ("measure.graph", "measure.cache")
MOST_NAMED = 3  # cells of a warning


@dataclass(frozen=True)
class Recordings:
    """The cells of a source, and the isolation of the sweep that measured them."""

    cells: Sequence[Recorded]
    isolation: str = ISOLATIONS[0]

    def jobs_of(self, one: Recorded, words: Mapping[str, Sequence[str]]) -> list[list[str]]:
        """As `jobs`, of one of the cells; raises ConfigError where no overrides give it."""
        own = overrides_of(one)
        if self.isolation != ISOLATIONS[0]:
            own["isolation"] = f"isolation={self.isolation}"
        without_trace = self._traced and one.cell.workload.kind != "trace"
        typed = {k: v for k, v in words.items() if not (without_trace and k == TRACE)}
        kept = [override for path, override in own.items() if not _replaced(path, typed)]
        return [[*kept, *choice] for choice in itertools.product(*typed.values())]

    @cached_property
    def _traced(self) -> bool:
        return any(one.cell.workload.kind == "trace" for one in self.cells)


def jobs(source: str, words: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Overrides of every job: each cell of the source with each choice among `words`, which are
    the overrides typed beside it, by their keys, and win.

    Raises ConfigError for a source that cannot be used.
    """
    recorded = recordings(source)
    listed = []
    for one in recorded.cells:
        try:
            listed += recorded.jobs_of(one, words)
        except ConfigError as error:
            raise ConfigError(f"{KNOB}={source}: cell {one.cell_id}: {error}") from None
    return listed


def _replaced(path: str, typed: Iterable[str]) -> bool:
    if path in typed:
        return True
    starts = [start for group in typed for start in REPLACED.get(group, ())]
    return path not in OF_CELL and any(_is_below(path, start) for start in starts)


def _is_below(path: str, start: str) -> bool:
    return path.startswith(start) if start.endswith(".") else path == start


def recordings(source: str) -> Recordings:
    """Every distinct cell of a source, as its newest attempt has it, in the order of its plan.

    Damaged records, and cells of an emulated cluster, are named on standard error and left out.
    Raises ConfigError for a source that cannot be read, or holds no record of real ranks.
    """
    attempts, plan = _attempts(source)
    newest: dict[str, tuple[tuple[str, int], Recorded]] = {}
    emulated = []
    for age, is_emulated, one in attempts:
        if is_emulated:
            emulated.append(one.cell_id)
        elif one.cell_id not in newest or age >= newest[one.cell_id][0]:
            newest[one.cell_id] = age, one
    if emulated and not newest:
        raise ConfigError(
            f"{KNOB}={source}: its times are of an emulated cluster; allowed are cells of real "
            "ranks; measure its cells with python -m benchmarks.emulate, or name another source"
        )
    if not newest:
        raise ConfigError(f"{KNOB}={source}: holds no whole record; {ALLOWED}; name another")
    if left_out := [each for each in dict.fromkeys(emulated) if each not in newest]:
        more = f" and {len(left_out) - MOST_NAMED} more" if len(left_out) > MOST_NAMED else ""
        _warn(
            f"{source}: of an emulated cluster, left out: {', '.join(left_out[:MOST_NAMED])}{more}"
        )
    place = {cell_id: number for number, cell_id in enumerate(_planned(plan))}
    ids = sorted(newest, key=lambda cell_id: place.get(cell_id, len(place)))
    isolation = plan.get("isolation")
    return Recordings(
        [newest[cell_id][1] for cell_id in ids],
        isolation if isolation in ISOLATIONS else ISOLATIONS[0],
    )


Attempt = tuple[tuple[str, int], bool, Recorded]  # (created, launch), whether emulated, the cell


def _attempts(source: str) -> tuple[list[Attempt], Mapping[str, Any]]:
    """All attempts, and the plan; empty where there is none."""
    path = Path(source)
    if (path / "cells").is_dir():
        records, damaged = record.read_all(path)
        for text in damaged:
            _warn(f"{text}; left out")
        attempts = [_of_record(one) for one in records]
        try:
            plan: Mapping[str, Any] = read_plan(path)
        except (OSError, ValueError):
            plan = {}
        return attempts, plan
    if is_packed(source):
        return _packed(source)
    why = "holds no cells" if path.exists() else "there is no such file or folder"
    raise ConfigError(f"{KNOB}={source}: {why}; {ALLOWED}; name one of them")


def _packed(source: str) -> tuple[list[Attempt], Mapping[str, Any]]:
    try:
        packed = read_packed(source)
    except PackedError as error:
        raise ConfigError(f"{KNOB}={error}") from error
    for text in packed.damaged:
        _warn(text)
    attempts = [_of_record(one) for one in packed.records]
    attempts += [_of_row(row) for row in packed.rows]
    return attempts, packed.plan or {}


def _of_record(one: Record) -> Attempt:
    model, scale = str(one.meta.get("model") or ""), one.meta.get("scale") or 1
    emulated = emulation.KEY in one.environment
    recorded = Recorded(one.cell, dict(one.measure), one.label, model, scale)
    return (one.created, one.launch), emulated, recorded


def _of_row(row: Mapping[str, Any]) -> Attempt:
    """Of a run of W&B, which has the fields of a record side by side."""
    model, scale = str(row.get("model") or ""), row.get("scale") or 1
    label = str(row.get("label") or "")
    recorded = Recorded(flat_row.cell_of(row), row.get("measure") or {}, label, model, scale)
    age = str(row.get("created") or ""), int(row.get("launch") or 0)
    return age, bool(row.get("emulated")), recorded


def _planned(plan: Mapping[str, Any]) -> list[str]:
    cells = plan.get("cells")
    known = cells if isinstance(cells, list) else []
    return [str(cell["cell_id"]) for cell in known if isinstance(cell, dict) and "cell_id" in cell]


def _warn(text: str) -> None:
    print(f"warning: {' '.join(text.split())}", file=sys.stderr)


def without_multirun(source: object) -> ConfigError:
    """The error of `cells` in a run of one cell."""
    return ConfigError(
        f"{KNOB}={source}: allowed with several cells is a multirun; type {BENCH} -m "
        f"{KNOB}={source}"
    )
