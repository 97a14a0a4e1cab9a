"""The report's pictures: each a PNG inside the page, with its words and numbers as text."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis import plots
from analysis.plots.canvas import HEIGHT, WIDTH, PlotData, styled
from analysis.text import captions

if TYPE_CHECKING:
    from analysis.plots.drawing import Drawing, Values

DPI = 130
SCREEN_DPI = 96  # CSS pixels an inch


@dataclass(frozen=True)
class Picture:
    """A picture of the page, or the sentence in its place. All that are not `wide` have the same
    width and height (CSS pixels), so that they stand side by side."""

    name: str
    what: str
    about: str = ""
    source: str = ""  # where it is not the whole page's
    notes: tuple[str, ...] = ()
    banners: tuple[str, ...] = ()
    values: Values | None = None
    data: str = ""
    width: int = 0
    height: int = 0
    wide: bool = False
    sentence: str = ""


def pictures(scene: PlotData) -> list[Picture]:
    """Every plot that the records have data for; those of one size first."""
    whole = captions.source(scene.frame)
    listed = []
    for name, drawn in plots.figures(scene):
        what = plots.PLOTS[name][1] if name != "axis" else "duration against a further axis"
        if isinstance(drawn, str):
            listed.append(Picture(name, what, sentence=drawn, wide=True))
        elif drawn is not None:
            listed.append(_picture(name, what, drawn, whole))
    return sorted(listed, key=lambda picture: picture.wide)


def _picture(name: str, what: str, drawing: Drawing, whole: str) -> Picture:
    account, (width, height) = drawing.account, drawing.get_size_inches()
    for text in drawing.framing:  # the page says it as text
        text.set_visible(False)
    stream = io.BytesIO()
    with styled():
        drawing.savefig(stream, format="png", dpi=DPI, metadata=account.metadata())
    return Picture(
        name + drawing.suffix,
        what,
        about=account.about,
        source="" if account.source == whole else account.source,
        notes=account.notes,
        banners=account.banners,
        values=account.values,
        data=base64.b64encode(stream.getvalue()).decode("ascii"),
        width=round(width * SCREEN_DPI),
        height=round(height * SCREEN_DPI),
        wide=(width, height) != (WIDTH, HEIGHT),
    )
