"""`cells=FILE`: the cells of a packed file or of a sweep's folder, as jobs of a new sweep."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.config.cell_overrides import Recorded, overrides_of
from runners.errors import ConfigError
from runners.host.project_paths import BENCH
from runners.packed.container import PackedError
from runners.packed.packed_file import is_packed, read_packed
from runners.records import emulation, flat_row, record
from runners.records.record import Record
from runners.records.sealed import RecordError
from runners.records.sweep_folder import MISSING_EMULATED, read_plan

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


def jobs(source: str, words: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Overrides of every job: each cell of the source with each choice among `words`, which are
    the overrides typed beside it, by their keys, and win.

    Raises ConfigError for a source that cannot be used.
    """
    recorded = recorded_cells(source)
    traced = any(one.cell.workload.kind == "trace" for one in recorded)
    listed = []
    for one in recorded:
        try:
            own = overrides_of(one)
        except ConfigError as error:
            raise ConfigError(f"{KNOB}={source}: cell {one.cell_id}: {error}") from None
        without_trace = traced and one.cell.workload.kind != "trace"
        typed = {k: v for k, v in words.items() if not (without_trace and k == TRACE)}
        kept = [override for path, override in own.items() if not _replaced(path, typed)]
        listed += [[*kept, *choice] for choice in itertools.product(*typed.values())]
    return listed


def _replaced(path: str, typed: Iterable[str]) -> bool:
    if path in typed:
        return True
    starts = [start for group in typed for start in REPLACED.get(group, ())]
    return path not in OF_CELL and any(_is_below(path, start) for start in starts)


def _is_below(path: str, start: str) -> bool:
    return path.startswith(start) if start.endswith(".") else path == start


def recorded_cells(source: str) -> list[Recorded]:
    """Every distinct cell of a source, as its newest attempt has it, in the order of its plan.

    A damaged record is named on standard error and left out. Raises ConfigError for a source that
    cannot be read, holds no record, or has times of an emulated cluster.
    """
    attempts, order = _attempts(source)
    if any(emulated for _, emulated, _ in attempts):
        raise ConfigError(
            f"{KNOB}={source}: its times are of an emulated cluster; allowed are cells of real "
            f"ranks; measure {MISSING_EMULATED}"
        )
    newest: dict[str, tuple[tuple[str, int], Recorded]] = {}
    for age, _, one in attempts:
        if one.cell_id not in newest or age >= newest[one.cell_id][0]:
            newest[one.cell_id] = age, one
    if not newest:
        raise ConfigError(f"{KNOB}={source}: holds no whole record; {ALLOWED}; name another")
    place = {cell_id: number for number, cell_id in enumerate(order)}
    ids = sorted(newest, key=lambda cell_id: place.get(cell_id, len(place)))
    return [newest[cell_id][1] for cell_id in ids]


Attempt = tuple[tuple[str, int], bool, Recorded]  # (created, launch), whether emulated, the cell


def _attempts(source: str) -> tuple[list[Attempt], list[str]]:
    """All attempts, and the ids of the cells as they were planned."""
    path = Path(source)
    if (path / "cells").is_dir():
        attempts = [_of_record(one) for one in _records(path)]
        try:
            plan: Mapping[str, Any] = read_plan(path)
        except (OSError, ValueError):
            plan = {}
        return attempts, _planned(plan)
    if is_packed(source):
        return _packed(source)
    why = "holds no cells" if path.exists() else "there is no such file or folder"
    raise ConfigError(f"{KNOB}={source}: {why}; {ALLOWED}; name one of them")


def _records(folder: Path) -> Iterable[Record]:
    for path in record.paths(folder):
        try:
            yield record.read(path)
        except RecordError as error:
            _warn(f"{error}; left out")


def _packed(source: str) -> tuple[list[Attempt], list[str]]:
    try:
        packed = read_packed(source)
    except PackedError as error:
        raise ConfigError(f"{KNOB}={error}") from error
    for text in packed.damaged:
        _warn(text)
    attempts = [_of_record(one) for one in packed.records]
    attempts += [_of_row(row) for row in packed.rows]
    return attempts, _planned(packed.plan or {})


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
