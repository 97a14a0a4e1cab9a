"""`dashboard`: a W&B workspace for a sweep, from the definitions behind our own tables and plots.

Runs are told apart as in the analysis: grouped by strategy and what varies of its form, filtered
to the sweep. Built and checked without a server; only saving needs one. W&B's panels show single
runs and aggregates over them: no intervals and no verdicts, which are in the report and in the
plots that `python -m runners.track --summary` adds to the project.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.data.cell_summary import summaries
from analysis.data.facets import axes, title_of
from analysis.data.frame import varying
from analysis.data.series import VARIANT, without_serial
from analysis.errors import InputError, SourceWarning
from analysis.plots import PLOTS
from analysis.text import flag_legend, tables
from analysis.text.tables import Metric
from runners.track.client import redact
from runners.track.settings import defaults, usable_environment

SIZE = {"w": 8, "h": 6}  # of a panel, in W&B's grid of 24 columns
COLUMNS = 3
PINNED = ("strategy", "dispatcher", "batch_size", "topk", "world_size", "workload")
FIGURES = ("median_duration_ms", "median_low_ms", "median_high_ms", "avg_throughput", "flags")
ROW_NAMES = {metric: name for name, metric in tables.METRICS.items()}  # metric -> summary key


def workspace(frame: pd.DataFrame, cells: pd.DataFrame, entity: str = "", project: str = "") -> Any:
    """An unsaved Workspace; raises InputError where wandb-workspaces is not installed. Unnamed,
    entity and project are where the tracker's runs go."""
    ws, wr, expr = _library()
    where = defaults()
    parts = [
        ("Strategy against each axis", against_axes(wr, cells)),
        ("Phases", phases(wr, cells)),
        ("Skew", skew(wr)),
        ("Memory and traffic", totals(wr)),
        ("Roofline, crossover and other plots", pictures(wr, cells)),
        ("Samples", samples(wr)),
        ("Flags", flags(wr, cells)),
    ]
    return ws.Workspace(
        entity=entity or where["entity"] or "",
        project=project or where["project"],
        name=f"MoE benchmark: {', '.join(_sweeps(frame))}"[:128],
        sections=[
            ws.Section(name=name, panels=_laid_out(wr, panels), is_open=place < COLUMNS)
            for place, (name, panels) in enumerate(parts)
            if panels
        ],
        settings=ws.WorkspaceSettings(max_runs=200),
        runset_settings=_runset(ws, expr, frame, cells),
        auto_generate_panels=False,
    )


def _library() -> tuple[Any, Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces import expr
    except ImportError as error:
        raise InputError(
            "dashboard: wandb-workspaces is not installed; allowed is 0.4.13 or a later 0.4; "
            "pip install -c constraints.txt -e '.[dashboards]'"
        ) from error
    return ws, wr, expr


def _sweeps(frame: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(str(s) for s in frame["sweep"]))


def _runset(ws: Any, expr: Any, frame: pd.DataFrame, cells: pd.DataFrame) -> Any:
    """The sweep's runs, by strategy and the settings of its forms that vary."""
    config = [f"config:{name}" for name in PINNED]
    return ws.RunsetSettings(
        filters=[expr.Metric("Group").isin(_sweeps(frame))],
        groupby=[expr.Config(name) for name in ("strategy", *_forms(cells))],
        order=[expr.Ordering(expr.Summary(ROW_NAMES[tables.DURATION]), ascending=True)],
        pinned_columns=["run:displayName", *config, *(f"summary:{n}" for n in FIGURES)],
    )


def _forms(cells: pd.DataFrame) -> list[str]:
    return [n for n in varying(without_serial(cells), VARIANT) if n != "label"]


def against_axes(wr: Any, cells: pd.DataFrame) -> list[Any]:
    """The tables' figures against every axis of the sweep; strategies as bars where none is."""
    chosen = [(axis, metric) for axis, metric in tables.REFERENCE if axis in axes(cells)]
    own = {axis for axis, _ in tables.REFERENCE}
    chosen += [(axis, tables.DURATION) for axis in axes(cells) if axis not in own]
    panels = [scatter(wr, "workload" if a == "load" else a, metric) for a, metric in chosen]
    return [*panels, *(bars(wr, metric) for metric in (tables.DURATION, tables.THROUGHPUT))]


def _heading(metric: Metric) -> str:
    """The metric's title with the unit of the run's figure, which our tables may scale."""
    return f"{metric.title} ({metric.unit.replace('10^3 ', '')})"


def scatter(wr: Any, axis: str, metric: Metric) -> Any:
    """The metric of every run against the axis."""
    return wr.ScatterPlot(
        title=f"{_heading(metric)} against {title_of(axis)}",
        x=wr.Config(axis),
        y=wr.SummaryMetric(ROW_NAMES[metric]),
        log_y=metric is tables.DURATION,
    )


def bars(wr: Any, metric: Metric) -> Any:
    """The metric by strategy."""
    return _bar(wr, f"{_heading(metric)}: median and range of the runs shown", [ROW_NAMES[metric]])


def _bar(wr: Any, title: str, names: Sequence[str]) -> Any:
    return wr.BarPlot(
        title=title,
        metrics=[wr.SummaryMetric(name) for name in names],
        groupby=wr.Config("strategy"),
        groupby_aggfunc="median",
        groupby_rangefunc="minmax",
        max_bars_to_show=50,
    )


def phases(wr: Any, cells: pd.DataFrame) -> list[Any]:
    """One chart for every phase that was recorded, in the order of the stacks."""
    from analysis.plots.bars import PHASES

    recorded = {name for cell in summaries(cells) for name in cell.phase_ms}
    names = [*(n for n in PHASES if n in recorded), *sorted(recorded - set(PHASES))]
    return [_bar(wr, f"{name} (ms, mean over ranks)", [f"phase_ms.{name}"]) for name in names]


def skew(wr: Any) -> list[Any]:
    """Duration against skew, and the skew by strategy."""
    against = wr.ScatterPlot(
        title="Duration (ms) against the busiest rank's slots over the mean",
        x=wr.SummaryMetric("skew_lambda"),
        y=wr.SummaryMetric(ROW_NAMES[tables.DURATION]),
    )
    return [against, _bar(wr, "Busiest rank's slots over the mean", ["skew_lambda"]),
            _bar(wr, "Busiest expert's slots over the mean", ["expert_skew_lambda"])]  # fmt: skip


def totals(wr: Any) -> list[Any]:
    """Memory and traffic by strategy."""
    named = {
        "Peak memory of the largest rank (bytes)": "peak_bytes_max",
        "Weights of the largest rank (bytes)": "weights_bytes_max",
        "Bytes sent in a step, all ranks": "sent_bytes_total",
    }
    return [_bar(wr, title, [name]) for title, name in named.items()]


def pictures(wr: Any, cells: pd.DataFrame) -> list[Any]:
    """Our own plots, with intervals and captions, of the sweep's summary run."""
    from analysis.plots.kernels import suffix

    keys = [f"plots/{name}" for name in ("roofline", "crossover", "skew", "phases", "forest")]
    keys += [f"plots/{name}" for name in PLOTS if f"plots/{name}" not in keys]
    models = list(dict.fromkeys(cells["model"]))
    keys += [f"plots/kernels{suffix(model)}" for model in models if len(models) > 1]
    return [wr.MediaBrowser(title="Plots of the sweep", media_keys=keys, num_columns=2)]


def samples(wr: Any) -> list[Any]:
    """Every sample of every run."""
    return [wr.LinePlot(title="Every sample (ms a step), warm-up included", x="Step",
                        y=["makespan_ms"], ignore_outliers=False)]  # fmt: skip


def flags(wr: Any, cells: pd.DataFrame) -> list[Any]:
    """What the tags of the runs mean, and how many of the cells bear each."""
    lines = ["Tags of the runs: what limits their figures.", ""]
    for flag, mark in flag_legend.MARKS.items():
        count = sum(flag in cell.flags for cell in summaries(cells))
        if count:
            lines.append(f"- **{flag}** ({count} of {len(cells)} cells): {mark.about}. "
                         f"Next: {mark.remedy}.")  # fmt: skip
    text = "\n".join(lines) if len(lines) > 2 else "No cell of this sweep is flagged."
    return [wr.MarkdownPanel(markdown=text)]


def _laid_out(wr: Any, panels: Sequence[Any]) -> list[Any]:
    """Three panels a row; one that stands alone takes the row."""
    alone = len(panels) == 1
    for place, panel in enumerate(panels):
        row, column = divmod(place, COLUMNS)
        width = SIZE["w"] * (COLUMNS if alone else 1)
        panel.layout = wr.Layout(
            x=column * SIZE["w"], y=row * SIZE["h"], w=width, h=SIZE["h"] * (1 + alone)
        )
    return list(panels)


def spec(view: Any) -> str:
    """What W&B would store, as JSON; needs no server."""
    text = view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    return json.dumps(json.loads(text), indent=1, sort_keys=True)


def save(view: Any) -> str:
    """Stores the workspace as a new saved view and returns its address; raises InputError."""
    try:
        with usable_environment() as faults:
            import wandb

            for fault in faults:
                warnings.warn(redact(fault), SourceWarning, stacklevel=2)
            view.entity = view.entity or wandb.Api().default_entity
            view.save()
            return str(view.url)
    except Exception as error:
        text = redact(" ".join(str(error).split()))
        raise InputError(
            f"dashboard --save: not saved ({text}); check --entity, --project, `wandb login` and "
            "the network; without --save the workspace is written as JSON"
        ) from error
