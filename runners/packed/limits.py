"""Bounds on a record that came in a file: what nobody can have measured would keep a reader busy
for hours."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from moe.knob import knobs
from moe.spec import Cell
from runners.records.record import Record
from runners.records.sealed import RecordError

MOST = 2**31 - 1  # of a whole number, as in a config
MOST_RANKS = 8192
MOST_EXPERTS = 4096
MOST_SAMPLES = 20_000
# What numbers of these parts of a record, and columns of a row, can be: the first whose pattern is
# in the path. Bytes, operations and tokens per second; seconds, and errors of a fit; slots; ns of a
# phase, which may be a difference of two times; bytes, counts and milliseconds.
PARTS = re.compile(
    r"calibration|skew|(rank|expert)_slots|(expert_)?skew_lambda|phases?(_\w+)?|traffic"
    r"|(sent|received|busbw|peak|weights|step)_bytes_\w+|collective_calls_max|memory"
)
BOUNDS = (
    (re.compile(r"calibration\..*_per_s(\.|$)"), 1.0, 1e18),
    (re.compile(r"calibration\..*(_s|_s_per_byte|error)$"), 0.0, 1e9),
    (re.compile(r"slots|skew"), 0.0, 1e15),
    (re.compile(r"phase"), -1e15, 1e18),
    (re.compile(r""), 0.0, 1e18),
)
SHOWN = 100  # characters of a path in an error


def check(one: Record) -> None:
    """Raises RecordError for a cell out of bounds, for samples of other ranks than its own, and for
    measured numbers that nothing can have."""
    check_cell(one.cell)
    check_numbers(vars(one))
    ranks = one.cell.placement.world_size
    if one.samples.start_ns and len(one.samples.start_ns[0]) != ranks:
        raise RecordError(
            f"samples of {len(one.samples.start_ns[0])} ranks: the cell has {ranks} of them"
        )
    _at_most("samples", len(one.samples.steps), MOST_SAMPLES)
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


def check_numbers(values: Mapping[str, Any]) -> None:
    """Raises RecordError, naming field, value and what is allowed, for a number out of bounds in
    the parts of a record, or the columns of a row, that PARTS names. Others are not looked at."""
    for path, value in _numbers(values):
        least, most = _bounds(path)
        if not least <= value <= most:
            raise RecordError(
                f"{ascii(path)[1:-1][:SHOWN]}={value!s:.30}: allowed are {least:g} to {most:g}"
            )


@functools.lru_cache(10_000)  # the records of a file have the same paths
def _bounds(path: str) -> tuple[float, float]:
    return next((low, high) for known, low, high in BOUNDS if known.search(path))


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Numbers and their paths; not recursive, as a row's mappings may be of any depth."""
    below = [(name, value) for name, value in values.items() if PARTS.fullmatch(name)]
    while below:
        path, value = below.pop()
        if isinstance(value, Mapping):
            below += [(f"{path}.{name}", item) for name, item in value.items()]
        elif isinstance(value, list | tuple):
            below += [(f"{path}[{n}]", item) for n, item in enumerate(value)]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path, value
