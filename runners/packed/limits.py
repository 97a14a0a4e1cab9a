"""Bounds on a record that came in a file: what nobody can have measured would keep a reader busy
for hours."""

from __future__ import annotations

from typing import Any

from moe.knob import knobs
from moe.spec import Cell
from runners.records.record import Record
from runners.records.sealed import RecordError

MOST = 2**31 - 1  # of a whole number, as in a config
MOST_RANKS = 8192
MOST_EXPERTS = 4096


def check(one: Record) -> None:
    """Raises RecordError for a cell out of bounds, and for samples of other ranks than its own."""
    check_cell(one.cell)
    ranks = one.cell.placement.world_size
    if one.samples.start_ns and len(one.samples.start_ns[0]) != ranks:
        raise RecordError(
            f"samples of {len(one.samples.start_ns[0])} ranks: the cell has {ranks} of them"
        )
    for name in ("traffic", "memory", "host_waits"):
        _at_most(f"items of {name}", len(getattr(one, name) or ()), ranks)


def check_cell(cell: Cell) -> None:
    """Raises RecordError, naming field, value and what is allowed, for a cell out of bounds."""
    for name, part in vars(cell).items():
        _check_numbers(name, part)
    _check_numbers("layer.router", cell.layer.router)
    ranks, experts = cell.placement.world_size, cell.layer.num_experts
    _at_most("placement.world_size", ranks, MOST_RANKS)
    _at_most("layer.num_experts", experts, MOST_EXPERTS)
    _at_most("layer.topk", cell.layer.topk, experts)
    _at_most("placement.nodes", cell.placement.nodes, ranks)


def _check_numbers(path: str, part: Any) -> None:
    for field, known in knobs(type(part)):
        value = getattr(part, field.name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            fits = known.least <= value <= MOST
            if not fits and value not in (known.words or {}).values():
                raise RecordError(
                    f"cell.{path}.{field.name}={value!s:.30}: allowed are {known.least:g} to {MOST}"
                )


def _at_most(what: str, value: int, most: int) -> None:
    if value > most:
        raise RecordError(f"{what}={value}: allowed are at most {most}")
