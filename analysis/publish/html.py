"""`report`: everything about a sweep in one HTML page; it needs no network, and escapes names."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.data.frame import plain
from analysis.data.series import series_names
from analysis.errors import InputError
from analysis.plots.canvas import PlotData
from analysis.publish import report_pictures, reproduce
from analysis.stats import compare, roofline
from analysis.stats.verdict import NOISE_THRESHOLD
from analysis.text import captions, diagnosis, insights, render, status, tables

if TYPE_CHECKING:
    import jinja2

CELL_COLUMNS = (
    *("series", "batch_size", "topk", "world_size", "num_experts", "tokens", "mode", "load"),
    *("dtype", "outcome"),
    *("median_ms", "low_ms", "high_ms", "mean_ms", "throughput", "launches", "rounds", "flags"),
    *("skew_lambda", "sent_bytes_total", "peak_bytes_max", "kernel_ran", "cell_id"),
)


def page(scene: PlotData, threshold: float = NOISE_THRESHOLD) -> str:
    """The page as HTML: how to reproduce it, verdict, tables, plots, problems, provenance."""
    texts = {name: template_text(name) for name in ("report.css", "report.js")}
    template = environment().from_string(template_text("report.html.j2"))
    return template.render(**texts_of(texts), **content(scene, threshold))


def template_text(name: str) -> str:
    """A file of this package's templates."""
    return (resources.files("analysis.publish") / "templates" / name).read_text("utf-8")


def environment() -> jinja2.Environment:
    """Of templates: everything is escaped, and a name without a value is an error."""
    import jinja2

    return jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )


def texts_of(texts: dict[str, str]) -> dict[str, Any]:
    """Our own style and script: the only things on the page that are not escaped."""
    from markupsafe import Markup

    return {"css": Markup(texts["report.css"]), "js": Markup(texts["report.js"])}


def content(scene: PlotData, threshold: float) -> dict[str, Any]:
    """The values of the template's names."""
    frame, cells = scene.frame, scene.cells
    every_table = tables.sweep_tables(cells)
    short, others = insights.headline_and_insights(frame, cells, threshold)
    flags = [flag for table in every_table for flag in table.flags()]
    again = captions.command("report", scene.sources, *scene.options)
    return {
        "title": f"MoE benchmark: {', '.join(captions.sweeps(frame))}",
        "banners": captions.banners(frame),
        "short": short,
        "insights": others,
        "tables": [_table(table) for table in every_table],
        "legend": captions.legend(cells, flags),
        "captions": captions.lines(frame, cells, again),
        "pictures": report_pictures.pictures(scene),
        "box": reproduce.box(frame, scene),
        "source": captions.source(frame),
        "findings": diagnosis.findings(frame, cells),
        "wrong_bounds": roofline.wrong(cells),
        "bounds": roofline.rows(cells),
        "cells": cell_rows(cells),
        "cell_columns": CELL_COLUMNS,
        "status_header": status.HEADER,
        "status": status.rows(frame, scene.sources),
        "failures": status.failures(frame),
        "pairs_header": compare.HEADER,
        "pairs": _pairs(frame, threshold),
        "environments": environments(frame),
    }


def _table(table: tables.Table) -> dict[str, Any]:
    """Transposed where it would be wide: a row per series then."""
    turned = len(table.columns) >= render.MOST_COLUMNS and len(table.rows) < len(table.columns)
    down, across = (table.columns, table.rows) if turned else (table.rows, table.columns)
    entries = {
        (d, a): table.entries.get((a, d) if turned else (d, a)) for d in down for a in across
    }
    texts = {k: (e.text, e.value, e.outcome) if e else ("", "", "") for k, e in entries.items()}
    rows = [(d, [texts[d, a] for a in across]) for d in down]
    header = [table.corner, *across]
    return {"title": table.title, "header": header, "rows": rows, "notes": table.notes}


def _pairs(frame: pd.DataFrame, threshold: float) -> list[list[str]]:
    """The strategies against each other; nothing for a sweep of one strategy."""
    try:
        return [c.row(threshold) for c in compare.column(frame, "strategy", threshold)]
    except InputError:
        return []


def cell_rows(cells: pd.DataFrame) -> list[list[str]]:
    """A row of texts for every cell, in the order of CELL_COLUMNS."""
    named = cells.assign(series=series_names(cells))[list(CELL_COLUMNS)]
    return [[_text(value) for value in row] for row in named.itertuples(index=False)]


def _text(value: Any) -> str:
    value = plain(value)
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def environments(frame: pd.DataFrame) -> list[dict[str, str]]:
    """Each distinct launch environment once, with its launches."""
    seen: dict[str, list[str]] = {}
    for environment, sweep, launch in zip(frame["environment"], frame["sweep"], frame["launch"],
                                          strict=True):  # fmt: skip
        stable = {k: v for k, v in environment.items() if k not in ("before", "after")}
        text = json.dumps(stable, indent=1, sort_keys=True, default=str)
        launches = seen.setdefault(text, [])
        name = f"{sweep} launch {launch}"
        if name not in launches:
            launches.append(name)
    return [{"launches": ", ".join(names), "text": text} for text, names in seen.items()]
