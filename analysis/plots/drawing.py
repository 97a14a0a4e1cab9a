"""A figure together with what is said about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis.output import harmless


@dataclass(frozen=True)
class Row:
    """Texts of one row of a picture's table, and the ids of the cells they are from."""

    texts: tuple[str, ...]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Values:
    """What a picture shows, in numbers: a row for every mark."""

    header: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Account:
    """What is said about a picture. `caption` is the line below it; the files and the report have
    the rest."""

    name: str = ""
    about: str = ""  # what is drawn
    source: str = ""  # sweep and machine in short
    notes: tuple[str, ...] = ()  # what else to know to read it
    banners: tuple[str, ...] = ()
    provenance: tuple[str, ...] = ()  # machine, engine, statistics, flags, command
    values: Values = field(default_factory=Values)

    @property
    def caption(self) -> str:
        return f"{self.about} {self.source}".strip()

    def metadata(self) -> dict[str, str]:
        """For the file, by keys that PNG and SVG share; nothing where nothing is said."""
        lines = [self.about, *self.notes, *self.banners, *self.provenance]
        entries = {"Title": self.caption, "Description": "\n".join(filter(None, lines)),
                   "Source": self.source}  # fmt: skip
        return {key: harmless(text) for key, text in entries.items() if text}


class Drawing(Figure):
    """A figure with its account; `framing` are the texts above and below it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.account = Account()
        self.suffix = ""  # of its files' names, where a plot is several pictures
        self.framing: list[Text] = []
        self.kept_inside: list[Text] = []  # texts of axes that may not leave them
