"""What each verb does: load, arrange, print. One function per verb."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

import analysis
from analysis import caption, cells, render, tables
from analysis.cli import write_output
from analysis.errors import InputError
from analysis.frame import check_column, filtered

if TYPE_CHECKING:
    from analysis.plots.canvas import Scene


@dataclass
class Data:
    """What every verb starts from."""

    frame: pd.DataFrame
    cells: pd.DataFrame
    sources: list[str]
    options: list[str]  # the filters, for the command in captions


def load(options: argparse.Namespace, samples: bool = False) -> Data:
    frame = analysis.load(options.sources, samples=samples)
    frame = filtered(frame, options.filter).reset_index(drop=True)
    words = [word for text in options.filter for word in ("--filter", text)]
    return Data(frame, cells.summarize(frame), options.sources, words)


def run(options: argparse.Namespace) -> int:
    threshold = getattr(options, "threshold", None)
    if threshold is not None and not 0 <= threshold < 1:
        raise InputError(
            f"--threshold {threshold}: allowed are numbers from 0 to 1; 0.02 means two percent"
        )
    return VERBS[options.verb](options)


def show(options: argparse.Namespace) -> int:
    data = load(options)
    group = check_column(data.frame, options.group, "--group") if options.group else ""
    metric = None
    if options.metric:
        metric = tables.metric_of(check_column(data.frame, options.metric, "--metric"))
        if metric.column not in data.cells:
            raise InputError(f"--metric {options.metric}: not a figure of a cell; try duration")
    found = tables.sweep_tables(data.cells, metric, group)
    again = caption.command("show", data.sources, *data.options)
    if options.format == "csv":
        write_output(render.tables(found, "csv"), options.output)
        return 0
    flags = [flag for table in found for flag in table.flags()]
    parts = [
        render.lines(caption.banners(data.frame), options.format),
        render.tables(found, options.format),
        render.lines(caption.legend(data.cells, flags), options.format),
        render.lines(tables.problems(data.cells), options.format),
        render.lines(caption.lines(data.frame, data.cells, again), options.format),
    ]
    write_output("\n\n".join(part for part in parts if part), options.output)
    return 0


def plot(options: argparse.Namespace) -> int:
    from analysis import plots

    data = load(options)
    names = options.name
    for name in names:
        plots.maker(name)
    if options.group:
        check_column(data.frame, options.group, "--group")
    metric = check_column(data.frame, options.metric, "--metric") if options.metric else ""
    folder = Path(options.output) if options.output else _folder(data, "plots")
    drawn = plots.draw(scene(data, metric, options.group), folder, names)
    for name, files in drawn.items():
        if files:
            print("\n".join(str(path) for path in files))
        elif names:
            print(f"warning: {name}: these records have no data for it", file=sys.stderr)
    if not any(drawn.values()):
        raise InputError(
            "plot: nothing to draw; a plot needs two measured cells along an axis; "
            "sweep more values, or loosen --filter"
        )
    return 0


def scene(data: Data, metric: str = "", group: str = "") -> Scene:
    from analysis.plots.canvas import Scene

    return Scene(data.frame, data.cells, data.sources, data.options, metric, group)


def _folder(data: Data, name: str) -> Path:
    """In the sweep's own folder where there is one, else in the current one."""
    from analysis.sources import LATEST

    source = Path(data.sources[0]) if data.sources else LATEST
    one_sweep = len(data.sources) <= 1 and (source / "cells").is_dir()
    return source / name if one_sweep else Path(name)


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {"show": show, "plot": plot}
