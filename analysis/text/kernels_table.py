"""`kernels`: the table. A heading per setting, a row for every kernel and peer, best first."""

from __future__ import annotations

import math

from analysis import numbers
from analysis.stats import kernels, roofline
from analysis.stats.kernels import Entrant, Kernels, Setting
from analysis.text import render, settings
from analysis.text.kernels import percent, reason
from analysis.text.peers import mebibytes
from analysis.text.tables import OUTCOME_WORDS
from runners.records import forced_balance

FIRST = "*"
SHOWN = ("kernel_ran", "flops_per_s", "flops_per_s_low", "flops_per_s_high",
         "roofline_fraction", "median_ms", "low_ms", "high_ms", "latency_ms", "memory_bytes",
         "host_waits_max", "first", "outcome", "reason", "cell_id")  # fmt: skip


def text(view: Kernels, style: str) -> str:
    """As text, Markdown or CSV."""
    if style == "csv":
        return render.simple(*csv_rows(view), style)
    header, every = _header(view), [_rows(view, setting) for setting in view.settings]
    titles = [_title(view, setting) for setting in view.settings]
    if style == "markdown":
        tables = [render.simple(header, rows, style) for rows in every]
        return "\n\n".join(f"**{render.cell_text(t)}**\n\n{b}"
                           for t, b in zip(titles, tables, strict=True))  # fmt: skip
    body = render.simple(header, [row for rows in every for row in rows], style).split("\n")
    lines, rest = body[:2], iter(body[2:])  # one width of every column in all settings
    for title, rows in zip(titles, every, strict=True):
        lines += [title, *(next(rest) for _ in rows), ""]
    return "\n".join(line.rstrip() for line in lines[:-1])


def _title(view: Kernels, setting: Setting) -> str:
    return settings.words(setting.fixed, list(setting.fixed)) or "all cells"


def _unit(view: Kernels) -> tuple[float, str]:
    return kernels.rate_unit([e for s in view.settings for e in s.timed])


def _header(view: Kernels) -> list[str]:
    graph = ["graph"] if view.graphs else []
    return ["", "kernel", *graph, _unit(view)[1], "roofline", "ms", "latency ms", "MiB", "waits"]


def _rows(view: Kernels, setting: Setting) -> list[list[str]]:
    first = view.leaders(setting) if len(setting.timed) > 1 else []
    graphs = view.graphs
    return [
        [
            FIRST if entrant.series in first else "",
            _name(entrant),
            *([entrant.cell.cell.strategy.graph] if graphs else []),
            *_figures(entrant, _unit(view)[0]),
        ]
        for entrant in setting.entrants
    ]


def _name(entrant: Entrant) -> str:
    """With the variant that ran, where timing chose it: "liger (liger_64)"."""
    ran = entrant.cell.kernel_ran
    return f"{entrant.name} ({ran})" if ran and ran not in entrant.name.split() else entrant.name


def _figures(entrant: Entrant, unit: float) -> list[str]:
    cell = entrant.cell
    if not cell.measured:
        return [OUTCOME_WORDS.get(cell.outcome, cell.outcome), *["-"] * 5]
    rates = [value / unit for value in kernels.rate(cell)]
    waits = "-" if entrant.host_waits is None else str(entrant.host_waits)
    times = (numbers.short(ms) for ms in (cell.median_ms, cell.latency_ms))
    return [numbers.with_interval(*rates), percent(entrant.fraction), *times, mebibytes(cell),
            waits]  # fmt: skip


def csv_rows(view: Kernels) -> tuple[list[str], list[list[str]]]:
    """Header and a line for every entrant, at full precision: the setting's columns by the names of
    the frame, then the entrant and its figures in FLOP/s, ms and bytes. What is unknown is
    empty."""
    names = list(view.settings[0].fixed)
    header = ["workload" if n == "load" else n for n in names]
    header += [forced_balance.TAG, "kernel", "graph", *SHOWN]
    lines = []
    for setting in view.settings:
        first = view.leaders(setting) if len(setting.timed) > 1 else []
        values = [setting.fixed[n] for n in names]
        for e in setting.entrants:
            cell = e.cell
            weights, step = cell.weights_bytes_max, cell.step_bytes_max
            row = [
                *values, setting.forced, e.name, cell.cell.strategy.graph, cell.kernel_ran,
                *(kernels.rate(cell) if cell.measured else [None] * 3), e.fraction,
                cell.median_ms, cell.low_ms, cell.high_ms, cell.latency_ms,
                None if weights is None or step is None else weights + step, e.host_waits,
                e.series in first, cell.outcome, "" if cell.measured else reason(cell),
                cell.cell_id,
            ]  # fmt: skip
            lines.append([_plain(value) for value in row])
    return header, lines


def _plain(value: object) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def notes(view: Kernels) -> list[str]:
    """Lines: what the columns are, and what is not in the table."""
    unit = _unit(view)[1]
    lines = [
        f"{FIRST}: none is shown to be faster. {unit}: the step's useful FLOPs (experts alone, in "
        "training three times the forward pass) over the median time, with its interval. Roofline: "
        "the share of the calibrated limit that is reached. MiB: weights and the most that a step "
        "adds. Waits: of the host for the GPU in a step; - where there is none.",
    ]
    if wrong := roofline.wrong(view.cells):
        lines.append(
            f"The roofline is wrong for {len(wrong)} of {len(view.cells)} cells, which are faster "
            "than it: python -m analysis check"
        )
    if view.left_out:
        lines.append(
            f"{view.left_out} cells of strategies that spread the layer are left out: "
            "python -m analysis show"
        )
    return lines
