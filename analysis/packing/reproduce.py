"""`reproduce`: the cells of a packed file, an address or a sweep's folder, measured here and set
beside what was measured there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

import analysis
from analysis import numbers
from analysis.data.frame import filtered
from analysis.errors import InputError, SourceError
from analysis.output import write_file, write_output
from analysis.packing import explanations, reproduction, side_by_side, this_machine
from analysis.packing.schedule import with_schedule
from analysis.packing.side_by_side import Pairing
from analysis.packing.this_machine import BAD_INPUT, INTERRUPTED, Possible
from analysis.sources import LATEST
from analysis.stats.verdict import NOISE_THRESHOLD
from analysis.text import captions, render, status
from runners.records.sweep_folder import PLAN

TABLES = "tables/reproduced.md"  # in the folder of the sweep that --run measured
# Of the sweep that --run makes; an --override wins. Its tables are those that are printed here.
OF_RUN = ("on_invalid=skip", "name=reproduce", "report=false")


def run(options: argparse.Namespace) -> int:
    """Exit code: 0 done, 1 where a cell that could run here was not measured or --run found none
    that can, 2 where the sweep refused what was typed, 130 interrupted. Raises InputError."""
    source = _source(options)
    there, left_out = _frame(source, options)
    possible = this_machine.possible(source, options.override)
    if options.beside:
        here, _ = _frame(options.beside, options)
        return _show(options, Sides(source, there, here, left_out, options.beside), possible)
    if options.run:
        return _run(options, source, there, left_out, possible)
    commands = reproduction.commands(
        source, options.override, len(possible.refusals) if options.filter else 0
    )
    parts = [
        render.lines([*captions.banners(there), *left_out], options.format),
        render.lines(reproduction.measured(there), options.format),
        render.commands(commands, options.format),
        render.lines(reproduction.impossible(there, possible), options.format),
        render.lines(reproduction.environment_here(there, possible), options.format),
    ]
    write_output(_joined(parts), options.output)
    return 0


def _source(options: argparse.Namespace) -> str:
    """Raises InputError for several sources, and for options that exclude each other."""
    if len(options.sources) > 1:
        raise InputError(
            f"reproduce: {len(options.sources)} sources; allowed is one; a second sweep is given "
            "by --with SWEEP, a setting by --override KEY=VALUE"
        )
    if options.run and options.beside:
        raise InputError(
            f"--with {options.beside}: not together with --run, which measures the second side; "
            "leave one out"
        )
    if options.run and options.filter:
        raise InputError(
            f"--filter {options.filter[0]}: not together with --run, which measures all cells; "
            "measure first, then give --with and --filter"
        )
    for text in options.override:
        if not text.partition("=")[1]:
            raise InputError(f"--override {text}: allowed is KEY=VALUE, such as measure=quick")
    return str(options.sources[0]) if options.sources else str(LATEST)


def _frame(source: str, options: argparse.Namespace) -> tuple[pd.DataFrame, list[str]]:
    """The attempts of real ranks that the filter keeps, and lines on those that are left out.
    Raises InputError where none is left."""
    whole = with_schedule(analysis.load(source), status.isolations([source]))
    frame = filtered(whole, options.filter)
    real = frame[[reproduction.is_real(values) for values in frame["emulation"]]]
    if not len(real):
        raise InputError(
            f"reproduce: {source}: its times are of an emulated cluster; allowed are cells of real "
            "ranks; measure its cells with python -m benchmarks.emulate, or name another source "
            "or --filter"
        )
    return real.reset_index(drop=True), reproduction.emulated(frame)


def _run(
    options: argparse.Namespace,
    source: str,
    there: pd.DataFrame,
    left_out: list[str],
    possible: Possible,
) -> int:
    none = there.iloc[:0]
    if not possible.count:
        left_out = [*left_out, "Nothing was measured here: none of these cells can run."]
        _show(options, Sides(source, there, none, left_out), possible)
        return 1
    words = _words(options, source)
    print(f"measuring: {reproduction.command(words)}", file=sys.stderr, flush=True)
    code, folder = this_machine.measure(words)
    if code == BAD_INPUT or folder is None:  # it has said why
        return BAD_INPUT if code == BAD_INPUT else code or 1
    try:
        here = with_schedule(analysis.load(folder), status.isolations([folder]))
    except SourceError:  # interrupted, or every attempt failed, before there was a record
        here = none
    if code == INTERRUPTED:
        print(_interrupted(source, folder, len(here) > 0), file=sys.stderr)
        return INTERRUPTED
    options.output = ""  # the sweep's folder
    return _show(options, Sides(source, there, here, left_out, str(folder)), possible)


def _interrupted(source: str, folder: Path, has_records: bool) -> str:
    """What can be done then; a sweep without a plan had not begun."""
    again = captions.command("reproduce", [source], "--with", str(folder))
    text = "interrupted; "
    text += f"what was measured is shown by: {again}" if has_records else "nothing was measured"
    if not (folder / PLAN).is_file():
        return text
    resume = reproduction.command([this_machine.word("resume", str(folder))])
    return f"{text}\nto go on: {resume}" + ("" if has_records else f"\nand then: {again}")


def _words(options: argparse.Namespace, source: str) -> list[str]:
    """Arguments of the bench; what is typed wins."""
    typed = {text.partition("=")[0] for text in options.override}
    usual = [text for text in OF_RUN if text.partition("=")[0] not in typed]
    if options.output:
        folder = str(Path(options.output).resolve())
        usual.append(this_machine.word("hydra.sweep.dir", folder))
    return [*reproduction.words_of(source, usual), *options.override]


@dataclass(frozen=True)
class Sides:
    """A source, its attempts there and those here; `remarks` are lines on them, `name` is the
    sweep here."""

    source: str
    there: pd.DataFrame
    here: pd.DataFrame
    remarks: Sequence[str] = ()
    name: str = ""


def _show(options: argparse.Namespace, sides: Sides, possible: Possible) -> int:
    """Prints both sides, and writes them into the folder of a sweep that was just measured; the
    exit code."""
    threshold = _threshold(options)
    pairs = side_by_side.pairings(sides.there, sides.here, threshold, possible.refusals)
    text = _both(sides, pairs, threshold)
    write_output(text(options.format), options.output)
    if options.run and sides.name:
        path = write_file(text("markdown"), Path(sides.name) / TABLES)
        print(render.lines(["", f"Written to {path}"], options.format))
    return 1 if any(pair.expected for pair in pairs) else 0


def _both(sides: Sides, pairs: Sequence[Pairing], threshold: float) -> Callable[[str], str]:
    """Both sides in a style."""
    there, here = sides.there, sides.here
    remarks = [*_banners("there", there), *_banners("here", here), *sides.remarks]
    rows = [pair.row() for pair in pairs]
    summary = side_by_side.summary(pairs, threshold)
    others = _others(there, here, sides.name)
    environments: list[str] = []
    explained: list[str] = []
    if len(here):
        timed = [reproduction.compared(frame, pairs) for frame in (there, here)]
        environments = reproduction.environments_recorded(*timed)
        explained = explanations.lines(pairs, (there, here), (sides.source, sides.name))
    return lambda style: _joined([
        render.lines(remarks, style),
        render.simple(side_by_side.HEADER, rows, style),
        *(render.lines(lines, style) for lines in (summary, others, environments)),
        render.commands(explained, style),
    ])  # fmt: skip


def _banners(side: str, frame: pd.DataFrame) -> list[str]:
    return [f"{side}: {line}" for line in captions.banners(frame)] if len(frame) else []


def _others(there: pd.DataFrame, here: pd.DataFrame, name: str) -> list[str]:
    """A line where cells here are none of there, and where the sweep here is."""
    further = set(here["cell_id"]) - set(there["cell_id"])
    have = "has" if len(further) == 1 else "have"
    lines = [f"{numbers.counted(len(further), 'cell')} of {name} {have} none there beside "
             f"{'it' if len(further) == 1 else 'them'}."] if further else []  # fmt: skip
    return [*lines, *([f"Measured here: {name}"] if name else [])]


def _threshold(options: argparse.Namespace) -> float:
    return NOISE_THRESHOLD if options.threshold is None else float(options.threshold)


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part)
