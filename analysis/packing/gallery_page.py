"""gallery.html: one static page that asks for nothing, and escapes every name."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

from analysis.data.facets import title_of
from analysis.packing import gallery_settings
from analysis.packing.gallery_entries import Entry
from analysis.packing.gallery_settings import FIRST, MACHINE, MODEL, Setting
from analysis.publish import html as report
from analysis.stats.verdict import NOISE_THRESHOLD
from analysis.text import flag_legend
from runners.records import forced_balance
from runners.records.stats import CONFIDENCE


@dataclass(frozen=True)
class Column:
    """A setting's value of a column, as text, and the number it sorts by, if it is one."""

    name: str
    title: str
    text: str
    number: int | float | None


@dataclass(frozen=True)
class Row:
    """A setting and its file."""

    setting: Setting
    file: Entry
    first: tuple[Column, ...]  # of FIRST
    others: tuple[Column, ...]
    commands: tuple[tuple[str, str], ...]  # (what it does, command line)


def html(files: Sequence[Entry]) -> str:
    """The page; the same for the same files."""
    file_of = {id(one): file for file in files for one in file.settings}
    settings = gallery_settings.in_order([one for file in files for one in file.settings])
    others = gallery_settings.columns(settings)
    css = report.template_text("report.css") + _own("gallery.css")
    script = report.template_text("report.js") + _own("gallery.js")
    flags = [flag for one in settings for time in one.times for flag in time.flags]
    template = report.environment().from_string(_own("gallery.html.j2"))
    return template.render(
        **report.texts_of({"report.css": css, "report.js": script}),
        css_hash=_hash(css),
        js_hash=_hash(script),
        files=files,
        rows=[_row(one, file_of[id(one)], others) for one in settings],
        first=[title_of(name) for name in FIRST],
        others=[title_of(name) for name in others],
        constant=gallery_settings.constant(settings),
        selects=_selects(settings),
        marks=flag_legend.MARKS,
        legend=flag_legend.legend(flags),
        forced=forced_balance.sentences(str(one.values["workload"]) for one in settings),
        alone=sum(file.alone for file in files),
        confidence=f"{CONFIDENCE:.0%}",
        threshold=f"{NOISE_THRESHOLD:.0%}",
    )  # fmt: skip


def _own(name: str) -> str:
    return (resources.files("analysis.packing") / "templates" / name).read_text("utf-8")


def _hash(text: str) -> str:
    """The source by which a Content-Security-Policy allows this text of a style or script."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _row(setting: Setting, file: Entry, others: Sequence[str]) -> Row:
    return Row(
        setting=setting,
        file=file,
        first=tuple(_column(setting, name) for name in FIRST),
        others=tuple(_column(setting, name) for name in others),
        commands=tuple(_commands(setting, file)),
    )


def _commands(setting: Setting, file: Entry) -> Iterator[tuple[str, str]]:
    """What each command does, and the command. The sweep that measures again is of whole files."""
    yield "Show it", file.command("show", setting)
    if file.can_be_measured:
        yield (
            f"Measure all {file.count} cells of the file here",
            file.command("reproduce", None, "--run"),
        )


def _column(setting: Setting, name: str) -> Column:
    value = setting.values[name]
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    text = str(value) if number is None else f"{number:,}"
    return Column(name, title_of(name), text, number)


def _selects(settings: Sequence[Setting]) -> list[tuple[str, str, list[str]]]:
    """(the row's attribute, the label, the values to choose from)."""
    strategies = {name for one in settings for name in one.strategies}
    return [
        (MODEL, "Model", sorted({str(one.values[MODEL]) for one in settings})),
        (MACHINE, "Machine", sorted({one.machine for one in settings})),
        ("strategy", "Fastest strategy", sorted(strategies)),
    ]
