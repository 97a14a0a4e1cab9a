"""What each verb does: load, arrange, print. One function per verb."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

import analysis
from analysis import caption, cells, render, tables
from analysis.cli import write_output
from analysis.errors import InputError
from analysis.frame import check_column, filtered


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


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {"show": show}
