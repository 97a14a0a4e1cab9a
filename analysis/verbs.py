"""What each verb does: load, arrange, print. One function per verb."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

import analysis
from analysis.data import schema
from analysis.data.cell_summary import summaries
from analysis.data.frame import check_column, filtered, one_clock
from analysis.errors import InputError
from analysis.output import harmless, write_output
from analysis.publish import export
from analysis.sources import LATEST
from analysis.stats import compare, roofline
from analysis.stats.summarize import summarize
from analysis.stats.verdict import NOISE_THRESHOLD
from analysis.text import captions, diagnosis, insights, peers, render, status, tables

if TYPE_CHECKING:
    from analysis.plots.canvas import PlotData

Summary = tuple[insights.Insight, list[insights.Insight]]


@dataclass
class Data:
    """What every verb starts from."""

    frame: pd.DataFrame
    cells: pd.DataFrame
    sources: list[str]
    options: list[str]  # the filters, for the command in captions


def load(options: argparse.Namespace, samples: bool = False) -> Data:
    """The filtered attempts and their cells; raises InputError."""
    frame = filtered(analysis.load(options.sources, samples=samples), options.filter)
    if options.verb != "status":  # which shows no time
        one_clock(frame)
    words = [word for text in options.filter for word in ("--filter", text)]
    return Data(frame, summarize(frame), options.sources, words)


def run(options: argparse.Namespace) -> int:
    """The verb's exit code; raises InputError for bad input."""
    threshold = getattr(options, "threshold", None)
    if threshold is not None and not 0 <= threshold < 1:
        raise InputError(
            f"--threshold {threshold}: allowed are numbers from 0 to 1; 0.02 means two percent"
        )
    name = "submission" if getattr(options, "submission", False) else options.verb
    if name in MODULES:
        return int(import_module(f"analysis.packing.{name}").run(options))
    return VERBS[options.verb](options)


def show(options: argparse.Namespace) -> int:
    data = load(options)
    group = check_column(data.frame, options.group, "--group") if options.group else ""
    if group and group not in data.cells:
        raise InputError(
            f"--group {options.group}: not a setting of a cell; allowed are columns such as topk, "
            "batch_size, world_size or workload"
        )
    metric = None
    if options.metric:
        metric = tables.metric_of(check_column(data.frame, options.metric, "--metric"))
        if metric.column not in data.cells or not schema.is_numeric(metric.column):
            raise InputError(f"--metric {options.metric}: not a figure of a cell; try duration")
    shown = tables.sweep_tables(data.cells, metric, group)
    summary: Summary | None = None
    if options.format != "csv" and not (options.metric or options.group):
        summary = insights.headline_and_insights(data.frame, data.cells, _threshold(options))
    write_output(_text(data, shown, summary, options.format, options.detail), options.output)
    return 0


def _text(
    data: Data, shown: list[tables.Table], summary: Summary | None, style: str, detail: bool = False
) -> str:
    """Banners, tables, legend, insights and captions as one text; csv: the tables alone. With
    `detail` the figures and cells behind every sentence."""
    if style == "csv":
        return render.tables(shown, style)
    again = captions.command("show", data.sources, *data.options)
    flags = [flag for table in shown for flag in table.flags()]
    parts = [
        render.lines(captions.banners(data.frame), style),
        render.tables(shown, style),
        render.lines(captions.legend(data.cells, flags), style),
        render.lines(tables.problems(data.cells), style),
        render.lines(captions.lines(data.frame, data.cells, again), style),
    ]
    if summary:
        short, others = summary
        parts.insert(1, render.lines(short.lines(detail), style))
        parts.insert(-1, "\n\n".join(render.lines(i.lines(detail), style) for i in others))
    return "\n\n".join(part for part in parts if part)


def finish(options: argparse.Namespace) -> int:
    """Tables on screen; tables and pictures in the sweep's folder, from one reading of it."""
    from analysis import plots

    data = load(options, samples=True)
    folder = _folder(data, "tables")
    every_table = tables.sweep_tables(data.cells)
    summary = insights.headline_and_insights(data.frame, data.cells, NOISE_THRESHOLD)
    write_output(_text(data, every_table, summary, "text"), "")
    write_output(_text(data, every_table, summary, "markdown"), str(folder / "tables.md"))
    write_output(_text(data, every_table, None, "csv"), str(folder / "tables.csv"))
    sys.stdout.flush()
    if sum(cell.measured for cell in summaries(data.cells)) > 1:
        plots.settle_matplotlib()
        for path in plots.draw_all(scene(data), _folder(data, "plots")):
            print(path, flush=True)
    return 0


def _threshold(options: argparse.Namespace) -> float:
    return NOISE_THRESHOLD if options.threshold is None else float(options.threshold)


def plot(options: argparse.Namespace) -> int:
    from analysis import plots

    plots.settle_matplotlib()
    names = options.name
    data = load(options, samples=not names or "traces" in names)
    for name in names:
        plots.maker(name)
    for name in options.group.split(",") if options.group else ():
        check_column(data.frame, name, "--group")
    metric = check_column(data.frame, options.metric, "--metric") if options.metric else ""
    folder = Path(options.output) if options.output else _folder(data, "plots")
    picture = scene(data, metric, options.group)
    outputs: Iterable[Path | str]
    if not names:
        outputs = plots.draw_all(picture, folder)
    else:
        drawn = plots.draw(picture, folder, names)
        for name in [name for name, files in drawn.items() if not files]:
            print(f"warning: {name}: these records have no data for it", file=sys.stderr)
        outputs = itertools.chain.from_iterable(drawn.values())
    nothing = True
    for output in outputs:
        nothing = False
        if isinstance(output, str):
            print(output, file=sys.stderr)
        else:
            print(output, flush=True)
    if nothing:
        raise InputError(
            "plot: nothing to draw; a plot needs two measured cells along an axis; "
            "sweep more values, or loosen --filter"
        )
    return 0


def scene(data: Data, metric: str = "", group: str = "") -> PlotData:
    from analysis.plots.canvas import PlotData

    sources = data.sources or [str(LATEST)]
    return PlotData(data.frame, data.cells, sources, data.options, metric, group)


def _folder(data: Data, name: str) -> Path:
    """In the sweep's own folder where there is one, else in the current one."""
    source = Path(data.sources[0]) if data.sources else LATEST
    return source / name if len(data.sources) <= 1 and (source / "cells").is_dir() else Path(name)


def _frames(sources: list[str], options: argparse.Namespace) -> list[pd.DataFrame]:
    """The frame of each source; raises InputError where real and emulated time would meet."""
    frames = [filtered(analysis.load(source), options.filter) for source in sources]
    one_clock(*frames)
    return frames


def compare_(options: argparse.Namespace) -> int:
    threshold = _threshold(options)
    if options.group:
        data = load(options)
        name = check_column(data.frame, options.group, "--group")
        frames = [data.frame]
        comparisons = compare.column(data.frame, name, threshold)
    elif len(options.sources) == 2:
        frames = _frames(options.sources, options)
        names = compare.two_names(options.sources)
        comparisons = compare.sweeps(frames[0], frames[1], names, threshold)
    else:
        raise InputError(
            f"compare: {len(options.sources)} sources; allowed are two, or --group with any; "
            "for example compare A B, or compare --group strategy"
        )
    lines = [*captions.forced_lines(frames), *compare.summary(comparisons, threshold)]
    parts = [
        render.lines([b for frame in frames for b in captions.banners(frame)], options.format),
        render.simple(compare.HEADER, [c.row(threshold) for c in comparisons], options.format),
        render.lines(lines, options.format),
    ]
    write_output("\n\n".join(part for part in parts if part), options.output)
    return 0


def explain_(options: argparse.Namespace) -> int:
    from analysis.predict import explain_command

    frames = _frames(options.sources or [str(LATEST)], options)
    write_output(explain_command.text(options, frames), options.output)
    return 0


def beside_(options: argparse.Namespace) -> int:
    data, threshold = load(options), _threshold(options)
    comparisons = compare.beside(data.frame, data.cells, threshold)
    parts = [
        render.lines(captions.banners(data.frame), options.format),
        render.simple(peers.HEADER, peers.rows(comparisons, data.cells), options.format),
        render.lines(peers.summary_lines(comparisons, data.cells, threshold), options.format),
    ]
    write_output("\n\n".join(part for part in parts if part), options.output)
    return 0


def kernels_(options: argparse.Namespace) -> int:
    from analysis.stats.kernels import Kernels
    from analysis.text import kernels, kernels_table

    data, style = load(options), options.format
    view = Kernels(data.frame, data.cells, _threshold(options))
    short = kernels.short(view, status.refused(data.sources or [LATEST]))
    again = captions.command("kernels", data.sources, *data.options)
    parts = [
        render.lines(captions.banners(data.frame), style),
        render.lines(short.lines(), style),
        kernels_table.text(view, style),
        render.lines(kernels_table.notes(view), style),
        render.lines(captions.lines(data.frame, view.cells, again), style),
    ]
    parts = parts[2:3] if style == "csv" else parts
    write_output("\n\n".join(part for part in parts if part), options.output)
    return 0


def check_(options: argparse.Namespace) -> int:
    """Exit code 1 where something limits the numbers."""
    data = load(options)
    lines = captions.banners(data.frame)
    lines += [finding.line() for finding in diagnosis.findings(data.frame, data.cells)]
    lines += [f"bound is wrong: {text}" for text in roofline.wrong(data.cells)]
    waited = diagnosis.host_waits(data.frame, data.cells)
    shown = [*(lines or ["nothing limits these numbers"]), *waited]
    write_output(render.lines(shown, options.format), options.output)
    return 1 if lines else 0


def status_(options: argparse.Namespace) -> int:
    """Exit code 1 where a cell has no time."""
    data = load(options)
    rows = status.rows(data.frame, data.sources or [LATEST])
    unfinished = status.unfinished(data.sources or [LATEST])
    lines = status.failures(data.frame) + [line for _, line in unfinished]
    table = render.simple(status.HEADER, rows, options.format)
    parts = [table, render.lines(lines, options.format)]
    write_output("\n\n".join(part for part in parts if part), options.output)
    timeless = status.failures(data.frame) or any(state != "stale" for state, _ in unfinished)
    return 1 if timeless else 0


def export_(options: argparse.Namespace) -> int:
    data = load(options)
    if options.output:
        print(export.write(data.frame, options.output))
    else:
        print(harmless(export.flat(data.frame).to_csv(index=False)), end="")
    return 0


def report_(options: argparse.Namespace) -> int:
    from analysis import plots

    plots.settle_matplotlib()
    from analysis.publish import html

    data = load(options, samples=True)
    target = Path(options.output) if options.output else _folder(data, "report.html")
    page = html.page(scene(data), _threshold(options))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    print(target)
    return 0


def dashboard_(options: argparse.Namespace) -> int:
    from analysis.publish import wandb_workspace

    data = load(options)
    workspace = wandb_workspace.workspace(data.frame, data.cells, options.entity, options.project)
    if options.save:
        print(wandb_workspace.save(workspace))
    if options.output or not options.save:
        write_output(wandb_workspace.spec(workspace), options.output)
    return 0


def predict_(options: argparse.Namespace) -> int:
    from analysis.predict import command

    cells = summaries(load(options).cells) if options.cluster == "here" else []
    if options.verb == "predict":  # whose --output is a folder for pictures
        print(command.predict(options, cells).text(options.format))
    else:
        write_output(command.advise(options, cells).text(options.format), options.output)
    return 0


# Verbs, and check --submission, whose module of `analysis.packing` has a function `run`.
MODULES = ("pack", "reproduce", "submission")
VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "show": show,
    "finish": finish,
    "compare": compare_,
    "explain": explain_,
    "beside": beside_,
    "kernels": kernels_,
    "check": check_,
    "status": status_,
    "plot": plot,
    "report": report_,
    "dashboard": dashboard_,
    "predict": predict_,
    "advise": predict_,
    "export": export_,
}
