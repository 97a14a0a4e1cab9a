"""Scenes of synthetic records, and what is drawn of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import analysis
from analysis import plots
from analysis.plots import canvas
from analysis.plots.canvas import PlotData
from analysis.plots.drawing import Drawing
from analysis.stats import summarize
from runners.records.record import Record
from tests.support import analysis_factory as factory


def scene_of(folder: Path, records: Sequence[Record]) -> PlotData:
    frame = analysis.load(factory.write_all(folder, records), samples=True)
    return PlotData(frame, summarize.summarize(frame), [str(folder)])


def drawing(name: str, scene: PlotData) -> Drawing:
    with canvas.styled():
        drawn = plots.maker(name)(scene)
    assert isinstance(drawn, Drawing), drawn
    return drawn
