"""Predictions and advice as tables, lines and a picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis import numbers
from analysis.predict import candidates
from analysis.predict.model import (
    EXTRAPOLATED,
    INTERPOLATED,
    MEASURED,
    UNFITTED_FACTOR,
    Prediction,
)
from analysis.predict.problem import HERE, PredictionProblem
from moe.strategies import degrees
from runners.records import forced_balance

if TYPE_CHECKING:
    from analysis.plots.drawing import Drawing

HEADER = ("ranks", "strategy", "ms", "interval", "tokens/s", "how known", "software",
          "memory a rank", "largest phase")  # fmt: skip


def table(predictions: Sequence[Prediction], whole: bool = False) -> list[list[str]]:
    """The header and a row for every prediction. Of a `whole` model, of which the MoE layers alone
    are timed, without tokens per second."""
    rows = [list(HEADER), *(_row(prediction) for prediction in predictions)]
    left_out = HEADER.index("tokens/s") if whole else len(HEADER)
    return [row[:left_out] + row[left_out + 1 :] for row in rows]


def _row(prediction: Prediction) -> list[str]:
    cell, value = prediction.cell, numbers.short(prediction.total_ms)
    low, high = (numbers.short(end) for end in (prediction.low_ms, prediction.high_ms))
    memory = numbers.bytes_text(prediction.memory_bytes)
    if not prediction.fits:
        memory += f": OUT OF MEMORY, misses by {numbers.bytes_text(prediction.memory.missing)}"
    return [
        str(cell.placement.world_size), candidates.name_of(cell.strategy), value,
        f"{low} to {high}", numbers.short(throughput(prediction)), prediction.status,
        prediction.software, memory, _largest(prediction),
    ]  # fmt: skip


def throughput(prediction: Prediction) -> float:
    """Tokens per second."""
    return prediction.cell.workload.batch_size / prediction.total_ms * 1e3


def _largest(prediction: Prediction) -> str:
    total = sum(prediction.phases_ms.values())
    name = max(prediction.phases_ms, key=lambda n: prediction.phases_ms[n])
    return f"{name} {prediction.phases_ms[name] / total:.0%}" if total else "-"


def legend(setup: PredictionProblem, predictions: Sequence[Prediction]) -> list[str]:
    """Lines: the model's error on left-out cells, and what the words of the table mean."""
    fitted = setup.coefficients
    lines = []
    if fitted.cells:
        lines.append(
            f"fitted to {fitted.cells} measured cells; cells left out while fitting were missed by "
            f"{fitted.error:.0%} (median); intervals are meant to hold 90% of such cells"
        )
    else:
        lines.append(
            f"{setup.cluster}: from data sheets (conf/cluster) and software profiles "
            f"(conf/software), fitted to no record: intervals are a factor of {UNFITTED_FACTOR:g}, "
            "by judgement"
        )
    if setup.whole:
        lines += setup.whole.legend(predictions)
    words = {
        MEASURED: "a record has this cell",
        INTERPOLATED: "every axis lies within what was measured",
        EXTRAPOLATED: "beyond what was measured; the interval widens with the distance",
    }
    present = {p.status for p in predictions}
    lines += [f"{word}: {about}" for word, about in words.items() if word in present]
    reasons = sorted({p.reason for p in predictions if p.reason})
    lines += [f"beyond: {reason}" for reason in reasons[:6]]
    if setup.routing:
        lines.append(_captured(predictions))
    elif setup.skew > 1:
        lines.append(f"skew {setup.skew:g}: the busiest rank's slots over the mean")
        if any(p.skew < setup.skew for p in predictions if degrees(p.cell).ep > 1):
            lines.append(
                "no rank can have so much in every form; used, by the ranks that share the "
                f"experts: {_by_ranks(predictions)}"
            )
    else:
        lines.append(
            f"skew 1: equally many slots on every rank, as {forced_balance.LABEL} gives them and "
            "no learned router does; --skew takes the busiest rank's over the mean, --trace a file "
            "of captured choices"
        )
    if setup.emulation:
        lines.append(f"times are dilated, of a cluster that is {setup.emulation.words}")
    elif setup.cluster == HERE and any(
        p.cell.placement.world_size > setup.cores for p in predictions
    ):
        lines.append(f"more ranks than the {setup.cores} cores: cores are shared, as if in turn")
    return lines


def _captured(predictions: Sequence[Prediction]) -> str:
    return (
        "skew: the busiest rank's slots over the mean, of the trace's second half, by the ranks "
        f"that share the experts: {_by_ranks(predictions) or '1, no form splits them'}"
    )


def _by_ranks(predictions: Sequence[Prediction]) -> str:
    """The skew by the ranks that share the experts: "1.20 to 1.30 on 8, 1.50 on 16"."""
    skews: dict[int, list[float]] = {}
    for prediction in predictions:
        skews.setdefault(degrees(prediction.cell).ep, []).append(prediction.skew)
    split = sorted((ranks, some) for ranks, some in skews.items() if ranks > 1)
    return ", ".join(f"{_span(some)} on {ranks}" for ranks, some in split)


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def draw(setup: PredictionProblem, predictions: Sequence[Prediction], folder: Path) -> list[Path]:
    """predict.png and .svg: solid where measured or interpolated, broken and hollow beyond."""
    from analysis import plots

    plots.settle_matplotlib()
    from analysis.plots import canvas

    with canvas.styled():
        return canvas.save(_figure(setup, predictions), folder, "predict")


def _figure(setup: PredictionProblem, predictions: Sequence[Prediction]) -> Drawing:
    from analysis.plots import canvas

    fig = canvas.figure(width=7.0, height=4.2)
    ax = fig.subplots()
    names = sorted({candidates.name_of(p.cell.strategy) for p in predictions})
    for name in names:
        points = sorted(
            (p for p in predictions if candidates.name_of(p.cell.strategy) == name),
            key=lambda p: p.cell.placement.world_size,
        )
        color = canvas.look(name, names)["color"]
        marker = canvas.look(name, names)["marker"]
        for pair in itertools.pairwise(points):
            known = EXTRAPOLATED not in (pair[0].status, pair[1].status)
            ax.plot(_x(pair), [p.total_ms for p in pair], color=color, lw=1.4 if known else 0.9,
                    linestyle="-" if known else (0, (4, 3)))  # fmt: skip
        ax.fill_between(_x(points), [p.low_ms for p in points], [p.high_ms for p in points],
                        color=color, alpha=0.10, linewidth=0)  # fmt: skip
        for point in points:
            hollow = point.status == EXTRAPOLATED
            ax.plot(_x([point]), [point.total_ms], color=color, linestyle="", markersize=6,
                    marker=marker if point.fits else "X",
                    markerfacecolor="white" if hollow else color,
                    markeredgecolor="#000000" if point.status == MEASURED else color)  # fmt: skip
        ax.plot([], [], color=color, marker=marker, label=name)
    canvas.number_axis(ax, sorted({p.cell.placement.world_size for p in predictions}))
    ax.set_yscale("log")
    ax.set_xlabel("ranks")
    ax.set_ylabel("ms per step")
    canvas.legend(fig, [ax])
    ax.set_title(
        f"{setup.cluster}: black-edged measured, filled interpolated, hollow and broken "
        "extrapolated, X out of memory",
        size=7, loc="left",
    )  # fmt: skip
    return fig


def _x(points: Sequence[Prediction]) -> list[int]:
    return [p.cell.placement.world_size for p in points]
