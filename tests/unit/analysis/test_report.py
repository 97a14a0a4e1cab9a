"""The report's page: pictures of one size, numbers under each, how to reproduce it, printing."""

from __future__ import annotations

import base64
import html.parser
import io
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

import analysis
from analysis import numbers
from analysis.data.cell_summary import summaries
from analysis.plots.canvas import PlotData
from analysis.publish import html as report
from analysis.stats import summarize
from runners.records.record import Record
from tests.support import analysis_factory as factory


def scene_of(folder: Path, records: list[Record]) -> PlotData:
    frame = analysis.load(factory.write_all(folder, records), samples=True)
    return PlotData(frame, summarize.summarize(frame), [str(folder)])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> PlotData:
    """One axis, where simple is fastest everywhere; one cell failed."""
    records = [
        factory.measured(factory.cell(s, topk=k), calibration=factory.CALIBRATION)
        for s in ("simple", "tp", "ep") for k in (2, 4, 8)
    ]  # fmt: skip
    records[-1] = factory.unmeasured(factory.cell("ep", topk=8), "failed")
    return scene_of(tmp_path_factory.mktemp("sweeps"), records)


@pytest.fixture(scope="module")
def text(scene: PlotData) -> str:
    return report.page(scene)


class Page(html.parser.HTMLParser):
    """Attributes by tag; rows of every picture's table by its name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.words: list[str] = []
        self._rows: list[list[str]] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.tags.append((tag, known))
        name = known.get("aria-label") or ""
        if name.startswith("Numbers of "):
            self._rows = self.tables.setdefault(name.removeprefix("Numbers of "), [])
        elif self._rows is not None and tag == "tr":
            self._rows.append([])
        elif self._rows is not None and tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._rows = None

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._rows and self._rows[-1]:
            self._rows[-1][-1] += data.strip()

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [known for name, known in self.tags if name == tag]


def test_pictures_that_stand_side_by_side_have_one_size(text: str) -> None:
    page = Page(text)
    wide, sizes = False, set()
    for tag, known in page.tags:
        if tag == "figure":
            wide = known.get("class") == "wide"
        elif tag == "img" and not wide:
            data = str(known["src"]).removeprefix("data:image/png;base64,")
            with Image.open(io.BytesIO(base64.b64decode(data))) as image:
                sizes.add((image.size, known["width"], known["height"]))
    assert len(sizes) == 1
    assert {len(page.all("figure")), len(page.tables)} == {len(page.all("img"))}


def test_every_picture_has_its_numbers_and_they_are_the_cells(scene: PlotData, text: str) -> None:
    page = Page(text)
    assert {"speed_vs_top_k", "throughput_vs_topk", "phases", "memory", "skew", "roofline",
            "forest", "traces"} == set(page.tables)  # fmt: skip
    header, *rows = page.tables["speed_vs_top_k"]
    assert header == ["series", "top-k", "Duration (ms)", "interval", "outcome", "cell"]
    cells = {cell.cell_id: cell for cell in summaries(scene.cells)}
    assert len(rows) == len(cells) == 9
    for row in rows:
        cell = cells[row[-1]]
        assert row[:2] == [cell.strategy, str(cell.cell.layer.topk_requested)]
        assert row[2] == numbers.short(cell.median_ms, 4) and row[4] == cell.outcome
    ids = Counter(known["id"] for _, known in page.tags if known.get("id"))
    links = [str(known["href"])[1:] for known in page.all("a")]
    assert set(links) <= set(ids) and max(ids.values()) == 1


def test_each_caption_and_all_provenance_is_there_once(text: str) -> None:
    for words in ("Engine: gloo on cpu", "Durations of a step, steady state", "Machine: Imagin",
                  "Duration (ms) by top-k; batch size 8"):  # fmt: skip
        assert sum(words in line for line in Page(text).words) == (2 if "by top-k" in words else 1)


def test_a_sentence_stands_where_a_map_would_be_of_one_colour(text: str) -> None:
    sentence = "simple is fastest at all 3 settings of top-k, so there is no map"
    assert sentence in text and 'alt="crossover' not in text


def test_what_reproduces_the_page_stands_before_the_verdict(scene: PlotData, text: str) -> None:
    box = text[text.index('<aside id="reproduce"') : text.index("</aside>")]
    assert text.index("</aside>") < text.index('id="verdict-title"')
    source = scene.sources[0]
    for line in ("a" * 40, "<dd>2.13.0</dd>", "<dd>3.11.9</dd>", "<dd>Imaginary 9000, 2 cores</dd>",
                 *(f"<pre>python -m analysis {verb} {source}</pre>"
                   for verb in ("show", "plot", "report"))):  # fmt: skip
        assert line in box, line
    assert "not in these records" in box
    assert "local_ranks" not in box and "local_ranks" in text.partition('id="provenance"')[2]


def test_what_started_the_sweep_is_in_the_box(scene: PlotData, tmp_path: Path) -> None:
    command = "python runners/bench.py -m topk=2,4 strategy=simple,ep"
    (tmp_path / "plan.json").write_text(f'{{"name": "s", "cells": [], "command": "{command}"}}')
    page = report.page(PlotData(scene.frame, scene.cells, [str(tmp_path)]))
    assert f"<pre>{command}</pre>" in page and "not in these records" not in page


def test_it_is_made_for_paper_too(text: str) -> None:
    style = text[text.index("<style>") : text.index("</style>")]
    dark, paper = style.index("prefers-color-scheme: dark"), style.index("@media print")
    assert dark < paper, "paper is white for those who read in the dark, too"
    rules = style[paper:]
    for rule in ("--paper: #fff", "--ink: #000", "break-inside: avoid", "text-decoration: none",
                 "details-content", "position: static"):  # fmt: skip
        assert rule in rules, rule
    assert re.search(r"nav,[^{]*button::after \{ display: none !important", rules)
    assert "@page { size: A4; margin:" in style
    assert text.count("<script") == 1 and "default-src 'none'; img-src data:" in text
