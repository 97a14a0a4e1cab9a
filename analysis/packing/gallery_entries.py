"""The files of the gallery, each in words, with its settings."""

from __future__ import annotations

import os
import shlex
import urllib.parse
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import analysis
from analysis.data.cell_summary import measured, summaries
from analysis.data.facets import sort_key, title_of
from analysis.data.frame import hashable
from analysis.data.series import series_names, series_order, without_serial
from analysis.packing import gallery_settings
from analysis.packing.gallery_settings import Setting
from analysis.stats.comparisons import Standings
from analysis.stats.summarize import summarize
from analysis.text import captions, headline
from analysis.text.phrases import listing

SPANNED = ("batch_size", "topk_requested", "world_size", "load", "mode", "dtype")
MOST_VALUES = 4  # of a column that are written out


@dataclass(frozen=True)
class Entry:
    """A packed file of the gallery, in words."""

    name: str
    link: str  # from the pages
    source: str  # as commands name it
    machine: str
    what: str
    cells: str  # how many have a time
    date: str
    commit: str
    size: str
    sureness: str
    settings: tuple[Setting, ...]
    alone: int  # cells with a time that no other strategy is beside
    count: int  # cells of every outcome
    can_be_measured: bool  # here: no time is of an emulated cluster

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return Path(self.name).stem

    def command(self, verb: str, setting: Setting | None = None, *options: str) -> str:
        """The command of a verb for the file, or for one of its settings; a filter a line."""
        filters = setting.filters if setting else ()
        first = shlex.join(["python", "-m", "analysis", verb, self.source, *options])
        return " \\\n    ".join([first, *(shlex.join(["--filter", text]) for text in filters)])


def _entry(path: Path, pages: Path, frame: pd.DataFrame, machines: Mapping[str, str]) -> Entry:
    """The entry of a file with these attempts and names of machines, for pages in that folder."""
    cells = summarize(frame)
    every = summaries(cells)
    timed = summaries(measured(cells))
    places = headline.meetings(cells)
    standings = Standings(frame, [], meetings=places)
    met = {cell for place in places for cell in place.cells.values()}
    days = sorted({str(created)[:10] for created in frame["created"] if created})
    return Entry(
        name=path.name,
        link=urllib.parse.quote(Path(os.path.relpath(path, pages)).as_posix()),
        source=path.as_posix(),
        machine="; ".join([
            *dict.fromkeys(machines.values()),
            *dict.fromkeys(cell.cluster for cell in every if cell.cluster),
        ]),
        what=_what(frame, cells),
        cells=str(len(every)) if len(timed) == len(every) else f"{len(timed)} of {len(every)}",
        date=" to ".join(dict.fromkeys([*days[:1], *days[-1:]])),
        commit=", ".join(captions.commits(frame, digits=10)) or "not recorded",
        size=f"{max(1, round(path.stat().st_size / 1000)):,} kB",
        sureness=headline.sureness(timed, standings),
        settings=tuple(gallery_settings.of_file(path.name, frame, places, standings, machines)),
        alone=sum(cell not in met for cell in timed),
        count=len(every),
        can_be_measured=not any(cell.cluster for cell in every),
    )  # fmt: skip


def _what(frame: pd.DataFrame, cells: pd.DataFrame) -> str:
    """Models, strategies and the values of SPANNED: "reference: simple and tp; top-k 2 and 4"."""
    tested = without_serial(cells)
    tested = cells if tested.empty else tested
    models = dict.fromkeys(gallery_settings.model_name(cell, frame) for cell in summaries(tested))
    series = sorted(set(series_names(cells)), key=series_order)
    spans = [_span(name, tested) for name in SPANNED]
    return f"{listing(list(models))}: {listing(series)}; {', '.join(spans)}"


def _span(name: str, cells: pd.DataFrame) -> str:
    """ "batch size 8 and 16", "ranks 2 to 32"."""
    values: list[Any] = sorted({hashable(v) for v in cells[name]}, key=sort_key)
    words = [str(value) for value in values]
    text = listing(words) if len(words) <= MOST_VALUES else f"{words[0]} to {words[-1]}"
    return text if name in ("load", "mode", "dtype") else f"{title_of(name)} {text}"


def entries(paths: Sequence[Path], pages: Path) -> list[Entry]:
    """The entries of files, by name, but of those that have attempts of one before, which are
    warned of. Raises SourceError for a file without attempts."""
    frames: dict[Path, pd.DataFrame] = {}
    file_of: dict[tuple[str, ...], str] = {}  # by attempt
    for path in sorted(paths, key=lambda path: path.name):
        frame = analysis.load(path)
        attempts = attempts_of(frame)
        again = [one for one in attempts if one in file_of]
        if again:
            warnings.warn(
                f"{path.name}: {len(again)} of {len(attempts)} attempts are in "
                f"{file_of[again[0]]} too; the file is left out; remove it, or pack other cells",
                stacklevel=2,
            )
            continue
        frames[path] = frame
        file_of |= dict.fromkeys(attempts, path.name)
    machines = gallery_settings.machine_names(list(frames.values()))
    return [
        _entry(path, pages, frame, names)
        for (path, frame), names in zip(frames.items(), machines, strict=True)
    ]


def attempts_of(frame: pd.DataFrame) -> set[tuple[str, ...]]:
    """What tells the attempts of a frame from those of all other files: cell and launch, machine,
    time of the day. Their sweep is called what their file is."""
    names = ["attempt_id", "label", "host", "created"]
    return set(frame[names].astype(str).itertuples(index=False, name=None))
