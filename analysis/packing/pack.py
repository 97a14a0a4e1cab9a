"""`pack`: a sweep in one file, NAME.moebench, that says nothing about who measured it or where."""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.data.frame import filtered, to_frame
from analysis.errors import InputError, SourceWarning
from analysis.output import cannot_write
from analysis.packing import pictures, rows
from analysis.sources import API_PREFIX, LATEST, is_wandb, packed
from analysis.text.captions import STAMP, short_machine
from runners.host.identity import names_here
from runners.packed import container, packed_file, parts
from runners.packed.container import SUFFIX, PackedError
from runners.packed.guard import guard_of
from runners.packed.names import ALLOWED_NAME, NAME, file_name
from runners.records import flat_row, record, sweep_folder
from runners.records.record import Record
from runners.records.sealed import RecordError

USUAL_NAME = "sweep"  # the default of the knob `name`, which says nothing about anybody
# Fields that no picture shows; where others were left out, pictures are drawn anew.
NOT_SHOWN = re.compile(
    r"(notes|meta\.overrides|calibration\.left_out)(\[\d*\])?|error\..*|gate\.(.*\.)?detail|sweep"
    r"|environment\.(system|boot|variables\..*)"
)
MOST_SHOWN = 8  # fields in a line
INDEX = re.compile(r"\[\d+\]")
README = """\
A sweep of moe-bench, a benchmark of ways to parallelise a Mixture-of-Experts layer.

    python -m analysis show {name}{suffix}            tables, and what they say
    python -m analysis reproduce {name}{suffix}       the same cells, measured on another machine

pictures/ has its plots. records/ has every attempt; docs/packed-files.md of the project says how.
"""


@dataclass
class Contents:
    """What goes into a file, and the paths of the fields that were left out."""

    about: dict[str, Any]
    parts: dict[str, bytes]
    left_out: list[str] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    kept_pictures: Callable[[], dict[str, bytes]] = dict  # that the sweep ended with


def run(options: argparse.Namespace) -> int:
    """Packs the one source of the options and prints what was written; raises InputError."""
    source = _one_source(options.sources)
    target = _target(options.output, source)
    try:
        container.check_method(options.compression)
        contents = _contents(source, target.stem, options.filter)
        if not options.no_pictures:
            contents.pictures = contents.kept_pictures() or _drawn(contents, target)
        data = _bytes(contents, target.stem, options.compression)
        _write(target, data)
    except (PackedError, RecordError) as error:
        raise InputError(f"pack: {error}") from error
    print(target)
    for line in summary(contents, len(data)):
        print(line)
    return 0


def _one_source(sources: Sequence[str]) -> str:
    if len(sources) > 1:
        raise InputError(
            f"pack: {len(sources)} sources; allowed is one sweep a file; pack each by itself"
        )
    source = str(sources[0]) if sources else str(LATEST)
    if packed_file.is_packed(source):
        raise InputError(f"{source}: is packed already; allowed are a sweep folder or W&B runs")
    return source


def _target(output: str, source: str) -> Path:
    """The file to write; by default it is named after the sweep. Raises InputError for a name that
    a file cannot have, and for one that names this machine or its user."""
    path = Path(output) if output else Path(file_name(_name_of(source)) + SUFFIX)
    if path.suffix != SUFFIX:
        raise InputError(f"-o {output}: allowed are names that end in {SUFFIX}; rename it")
    if not NAME.fullmatch(path.stem):
        raise InputError(f"-o {output}: {ALLOWED_NAME} before {SUFFIX}; rename it")
    if not guard_of(names_here()).harmless(path.stem):
        raise InputError(
            f"-o {path}: has a name of this machine or its user in it, which would be handed on; "
            f"allowed are others; give -o NAME{SUFFIX}"
        )
    return path


def _name_of(source: str) -> str:
    if source.startswith(API_PREFIX):
        return source.removeprefix(API_PREFIX).partition("?")[0].rpartition("/")[2]
    return STAMP.sub("", Path(source).resolve().name)


def _contents(source: str, name: str, filters: Sequence[str]) -> Contents:
    """Raises InputError, and RecordError for a record that cannot be packed."""
    if source.startswith(API_PREFIX) or is_wandb(Path(source)):
        return _of_rows(source, name, filters)
    return _of_folder(Path(source), name, filters)


def _of_folder(folder: Path, name: str, filters: Sequence[str]) -> Contents:
    if not (folder / "cells").is_dir():
        raise InputError(
            f"{folder}: no sweep folder; allowed are a sweep folder, which has cells/ in it, "
            "offline W&B runs or wandb:entity/project; name one"
        )
    attempts, damaged = record.read_all(folder)
    for text in damaged:
        warnings.warn(f"{text}; left out", SourceWarning, stacklevel=2)
    if filters:
        attempts = _filtered(attempts, filters)
    if not attempts:
        raise InputError(f"{folder}: holds no readable attempt; name a sweep that has ended")
    plan = _plan(folder, {one.cell_id for one in attempts} if filters else None)
    names = names_here()
    lines, origins, left_out = parts.of_records(attempts, name, names)
    planned = parts.of_plan(plan, name, names) if plan else {}
    cannot_run = [] if filters else [words for words, _ in sweep_folder.read_refused(folder)]
    refused = parts.of_refused(cannot_run, names)
    command = str(plan.get("command", "")) if plan else ""
    about = parts.about(origins, name, command, names)
    contents = Contents(about, {**planned, **refused, **lines}, left_out)
    if not filters and all(map(NOT_SHOWN.fullmatch, left_out)):
        contents.kept_pictures = lambda: _kept(folder, name, attempts)
    return contents


def _filtered(attempts: Sequence[Record], filters: Sequence[str]) -> list[Record]:
    frame = filtered(to_frame([flat_row.row(one) for one in attempts]), filters)
    wanted = set(frame["attempt_id"])
    return [one for one in attempts if one.attempt_id in wanted]


def _plan(folder: Path, cell_ids: set[str] | None) -> dict[str, Any] | None:
    """The sweep's plan, of these cells alone where some are given; None without one to be read."""
    try:
        plan = sweep_folder.read_plan(folder)
        cells = [c for c in plan["cells"] if cell_ids is None or c["cell_id"] in cell_ids]
        return {**plan, "cells": cells}
    except FileNotFoundError:
        return None
    except (OSError, RecordError, LookupError, TypeError) as error:
        warnings.warn(f"{folder}: its plan is left out: {error}", SourceWarning, stacklevel=2)
        return None


def _of_rows(source: str, name: str, filters: Sequence[str]) -> Contents:
    """W&B runs know neither the plan nor the command of their sweep."""
    names = names_here()
    attempts, left_out = rows.of_runs(source, name, filters, names)
    if not attempts:
        raise InputError(f"{source}: none of its runs can be packed; pack the sweep's own folder")
    about = parts.about([rows.origin(row) for row in attempts], name, "", names)
    return Contents(about, parts.of_rows(attempts), left_out)


def _kept(folder: Path, name: str, attempts: Sequence[Record]) -> dict[str, bytes]:
    """The pictures in a sweep's folder, where their captions say no more than the packed records
    do: the name of the file or the usual one, and one machine."""
    machines = {short_machine(_machine(one)) for one in attempts}
    newest = max(path.stat().st_mtime_ns for path in record.paths(folder))
    if len(machines) > 1:
        return {}
    (machine,) = machines
    return pictures.kept(folder, newest, [f"Sweep {n}; {machine}." for n in (USUAL_NAME, name)])


def _drawn(contents: Contents, target: Path) -> dict[str, bytes]:
    """The pictures of what is packed, which takes a minute for a thousand cells."""
    print("pack: drawing the pictures anew (--no-pictures leaves them out)", file=sys.stderr)
    read = packed_file.of_bytes(_bytes(contents, target.stem, "deflate"), str(target))
    return pictures.drawn(packed.rows_of(read, samples=True), target.name)


def _machine(one: Record) -> dict[str, Any]:
    return {**flat_row.machine_columns(one.environment), "device": one.cell.placement.device}


def _bytes(contents: Contents, name: str, method: str) -> bytes:
    text = README.format(name=name, suffix=SUFFIX).encode()
    shown = {f"pictures/{key}.png": data for key, data in contents.pictures.items()}
    return container.write(contents.about, {"README.txt": text, **contents.parts, **shown}, method)


def _write(target: Path, data: bytes) -> None:
    """In one step, so that nobody sees half a file; raises InputError where that is impossible."""
    unfinished = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(data)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(target, error) from error


def summary(contents: Contents, size: int) -> list[str]:
    """What is in the file, and what is not."""
    about = contents.about
    lines = [
        f"{about['cells']} cells in {about['attempts']} attempts, {len(contents.pictures)} "
        f"pictures, {size / 1e6:.2f} MB"
    ]
    if contents.left_out:
        counts = Counter(INDEX.sub("[]", path) for path in contents.left_out)
        shown = [f"{path} ({count})" for path, count in counts.most_common(MOST_SHOWN)]
        more = f", and {len(counts) - MOST_SHOWN} more" if len(counts) > MOST_SHOWN else ""
        lines.append(
            "left out, as they may hold names, paths or secrets (field, how often): "
            f"{', '.join(shown)}{more}"
        )
    return lines
