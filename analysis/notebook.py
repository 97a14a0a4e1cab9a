"""For notebooks: tables as frames, pictures that Jupyter shows, the verdict as text."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from analysis import plots
from analysis.data.frame import one_clock
from analysis.errors import InputError
from analysis.stats.summarize import summarize
from analysis.text import insights, render, tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A plot; Jupyter shows it, `figure` is matplotlib's."""

    figure: Figure

    def _repr_png_(self) -> bytes:
        from analysis.plots.canvas import styled

        stream = io.BytesIO()
        with styled():
            self.figure.savefig(stream, format="png", dpi=80, bbox_inches="tight")
        return stream.getvalue()


def picture(frame: pd.DataFrame, name: str, group: str = "", metric: str = "") -> Picture | str:
    """The plot of this name (see `plot --name`), of several pictures the first, or the sentence in
    its place; raises InputError without data for it."""
    from analysis.plots.canvas import PlotData, styled

    one_clock(frame)
    scene = PlotData(frame, summarize(frame), metric=metric, group=group)
    with styled():
        drawn = plots.maker(name)(scene)
    figure = drawn[0] if isinstance(drawn, list) else drawn
    if figure is None:
        raise InputError(f"picture {name}: these records have no data for it; allowed are others")
    return figure if isinstance(figure, str) else Picture(figure)


def table(frame: pd.DataFrame, axis: str = "") -> pd.DataFrame:
    """The first table of `show`, or the first by this axis: durations with their intervals."""
    one_clock(frame)
    first = tables.sweep_tables(summarize(frame), group=axis)[0]
    rows = render.grid(first)
    index = pd.Index([row[0] for row in rows], name=first.corner)
    return pd.DataFrame([row[1:] for row in rows], columns=pd.Index(first.columns), index=index)


def verdict(frame: pd.DataFrame) -> str:
    """The lines "In short" of `show`."""
    one_clock(frame)
    short, _ = insights.headline_and_insights(frame, summarize(frame))
    return "\n".join(short.lines())
