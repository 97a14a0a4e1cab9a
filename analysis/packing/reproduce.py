"""`reproduce`: the cells of a packed file, an address or a sweep's folder, measured here and set
beside what was measured there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

import analysis
from analysis.data.frame import filtered, one_clock
from analysis.errors import InputError, SourceError
from analysis.output import write_output
from analysis.packing import explanations, reproduction, side_by_side, this_machine
from analysis.packing.this_machine import BAD_INPUT, INTERRUPTED, Possible
from analysis.sources import LATEST
from analysis.stats.verdict import NOISE_THRESHOLD
from analysis.text import captions, render

# Of the sweep that --run makes; an --override wins. Its tables are those that are printed here.
OF_RUN = ("on_invalid=skip", "name=reproduce", "report=false")


def run(options: argparse.Namespace) -> int:
    """Exit code: 0 done, 1 where a cell that could run here was not measured, 2 where the sweep
    refused what was typed, 130 interrupted. Raises InputError."""
    source = _source(options)
    there = _frame(source, options)
    possible = this_machine.possible(source, options.override)
    if options.beside:
        return _show(options, source, there, _frame(options.beside, options), possible)
    if options.run:
        return _run(options, source, there, possible)
    parts = [
        render.lines(captions.banners(there), options.format),
        render.lines(reproduction.measured(there), options.format),
        render.commands(reproduction.commands(source, options.override), options.format),
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


def _frame(source: str, options: argparse.Namespace) -> pd.DataFrame:
    frame = filtered(analysis.load(source), options.filter)
    one_clock(frame)
    return frame


def _run(options: argparse.Namespace, source: str, there: pd.DataFrame, possible: Possible) -> int:
    if not possible.count and not options.override:
        return _show(options, source, there, there.iloc[:0], possible)
    words = _words(options, source)
    print(f"measuring: {reproduction.command(words)}", file=sys.stderr, flush=True)
    code, folder = this_machine.measure(words)
    if code == BAD_INPUT or folder is None:  # it has said why
        return BAD_INPUT if code == BAD_INPUT else code or 1
    if code == INTERRUPTED:
        again = captions.command("reproduce", [source], "--with", str(folder))
        print(f"interrupted; what was measured is shown by: {again}", file=sys.stderr)
        return INTERRUPTED
    try:
        here = analysis.load(folder)
    except SourceError:  # every attempt failed before it had a record
        here = there.iloc[:0]
    options.output = ""  # the sweep's folder
    return _show(options, source, there, here, possible, str(folder))


def _words(options: argparse.Namespace, source: str) -> list[str]:
    """Arguments of the bench; what is typed wins."""
    typed = {text.partition("=")[0] for text in options.override}
    usual = [text for text in OF_RUN if text.partition("=")[0] not in typed]
    if options.output:
        folder = str(Path(options.output).resolve())
        usual.append(this_machine.word("hydra.sweep.dir", folder))
    return [*reproduction.words_of(source, usual), *options.override]


def _show(
    options: argparse.Namespace,
    source: str,
    there: pd.DataFrame,
    here: pd.DataFrame,
    possible: Possible,
    folder: str = "",
) -> int:
    """Prints both sides; the exit code."""
    style, threshold = options.format, _threshold(options)
    one_clock(there, here)
    pairs = side_by_side.pairings(there, here, threshold, possible.refusals)
    name = folder or options.beside
    parts = [
        render.lines([*_banners("there", there), *_banners("here", here)], style),
        render.simple(side_by_side.HEADER, [pair.row() for pair in pairs], style),
        render.lines(side_by_side.summary(pairs, threshold), style),
        render.lines(_others(there, here, name), style),
    ]
    if len(here):
        parts += [
            render.lines(reproduction.environments_recorded(there, here), style),
            render.commands(explanations.lines(pairs, (there, here), (source, name)), style),
        ]
    write_output(_joined(parts), options.output)
    return 1 if any(pair.expected for pair in pairs) else 0


def _banners(side: str, frame: pd.DataFrame) -> list[str]:
    return [f"{side}: {line}" for line in captions.banners(frame)] if len(frame) else []


def _others(there: pd.DataFrame, here: pd.DataFrame, name: str) -> list[str]:
    """A line where cells here are none of there, and where the sweep here is."""
    further = set(here["cell_id"]) - set(there["cell_id"])
    lines = [f"{len(further)} cells of {name} have none there beside them."] if further else []
    return [*lines, *([f"Measured here: {name}"] if name else [])]


def _threshold(options: argparse.Namespace) -> float:
    return NOISE_THRESHOLD if options.threshold is None else float(options.threshold)


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part)
