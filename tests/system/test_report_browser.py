"""The report in headless Chromium: two widths, dark mode, keyboard, and nothing asked of anyone.

Needs Chromium (CHROMIUM names it, else the one on PATH) and playwright: `make test-browser`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis import cli
from tests.support import analysis_factory as factory
from tests.support import browser
from tests.support.browser import CONTRAST, Watched

pytestmark = pytest.mark.browser
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>\"$x_1$"
WIDTHS = (1280, 390)
chromium = pytest.fixture(scope="module")(browser.chromium)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every strategy, skew, training, a failed cell, drift, and names that are attacks."""
    folder = tmp_path_factory.mktemp("sweeps")
    environment = {**factory.ENVIRONMENT, "cpu_model": HOSTILE}
    records = factory.rich_records()
    records[0].environment = environment
    records[1].notes.append(HOSTILE)
    records[2].anchors = factory.anchors(1.0, 1.4)
    records.append(
        factory.unmeasured(factory.cell("tp", topk=1), "failed", HOSTILE, sweep="training")
    )
    factory.write_all(folder, records)
    target = folder / "report.html"
    assert cli.main(["report", str(folder), "-o", str(target)]) == 0
    return target


@pytest.fixture(params=[(w, s) for w in WIDTHS for s in ("light", "dark")], ids=str)
def watched(request: pytest.FixtureRequest, chromium: Any, report: Path) -> Iterator[Watched]:
    width, scheme = request.param
    found = Watched(chromium, report, width, scheme)
    yield found
    found.check(report)


def test_it_fits_is_legible_and_starts_with_the_verdict(watched: Watched, report: Path) -> None:
    page = watched.page
    sizes = "[document.documentElement.scrollWidth, innerWidth]"
    wide, window = page.evaluate(sizes)
    assert wide <= window, "the page scrolls sideways"
    ratio, where = page.evaluate(CONTRAST)
    assert ratio >= 4.5, where
    headings = page.locator("h2").all_inner_texts()
    assert headings[:3] == ["Verdict", "Tables", "Plots"]
    first = page.locator("#main article").first
    assert "In short" in first.inner_text() and "is fastest" in first.inner_text()
    assert first.bounding_box()["y"] < 900, "the verdict is on the first screen"
    assert page.locator(".banner").first.inner_text().startswith("DRIFT")
    if folder := os.environ.get("PICTURES"):
        name = "-".join(
            map(str, page.evaluate("[innerWidth, getComputedStyle(document.body).color]"))
        )
        page.screenshot(path=str(Path(folder) / f"report {name}.png"), full_page=True)


def test_every_picture_is_there(watched: Watched) -> None:
    pictures = watched.page.locator("figure img")
    assert pictures.count() >= 8
    for picture in pictures.all():
        picture.scroll_into_view_if_needed()
        assert picture.get_attribute("alt")
        picture.evaluate("image => image.decode()")
        assert picture.evaluate("image => image.naturalWidth") > 400


def test_pictures_side_by_side_have_one_size(watched: Watched) -> None:
    boxes = [one.bounding_box() for one in watched.page.locator("figure:not(.wide) img").all()]
    assert len(boxes) >= 2
    assert len({(round(box["width"]), round(box["height"])) for box in boxes}) == 1


def test_numbers_of_a_picture_open_and_lead_to_cells(watched: Watched) -> None:
    page = watched.page
    numbers_of = page.locator("details.numbers").first
    assert not numbers_of.locator("table").is_visible()
    numbers_of.locator("summary").click()
    assert numbers_of.locator("tbody tr").count() >= 2
    target = numbers_of.locator("tbody a").first.get_attribute("href")
    assert page.locator(target).count() == 1


def test_reproduce_is_one_line_until_it_is_opened(watched: Watched) -> None:
    box = watched.page.locator("#reproduce")
    assert "torch 2.13.0" in box.inner_text() and not box.locator("pre").first.is_visible()
    box.locator("summary").click()
    assert box.locator("pre").last.inner_text().startswith("python -m analysis report")


def test_it_prints_black_on_white_whole_and_without_what_paper_cannot_do(
    watched: Watched,
) -> None:
    page = watched.page
    page.locator("#tables thead button").first.click()
    page.emulate_media(media="print")
    colors = page.evaluate(
        "(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))"
    )
    assert colors == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    assert not page.locator("nav").is_visible() and not page.locator(".hint").first.is_visible()
    arrow = "getComputedStyle(document.querySelector('[aria-sort] button'), '::after').display"
    assert page.evaluate(arrow) == "none"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
    page.emulate_media(media="screen")


def test_every_link_leads_somewhere_on_the_page(watched: Watched) -> None:
    dead = watched.page.evaluate(
        """() => [...document.querySelectorAll("a")].map(a => a.getAttribute("href"))
             .filter(h => !h.startsWith("#") || !document.getElementById(h.slice(1)))"""
    )
    assert dead == []


def test_names_are_text(watched: Watched) -> None:
    assert watched.page.locator("script").count() == 1
    assert watched.page.locator("img[src=x]").count() == 0
    assert "<script>alert('x')</script>" in watched.page.locator("#tables").inner_text()


def numbers(page: Any) -> list[float]:
    cells = page.locator("#tables table").first.locator("tbody tr td:nth-child(2)")
    return [float(cell.get_attribute("data-sort")) for cell in cells.all()]


def test_tables_sort_by_mouse_and_by_keyboard(watched: Watched) -> None:
    page = watched.page
    heading = page.locator("#tables table").first.locator("thead th").nth(1)
    before = numbers(page)
    assert len(before) > 4 and before != sorted(before)
    heading.locator("button").click()
    assert numbers(page) == sorted(before) and heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").press("Enter")
    assert numbers(page) == sorted(before, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"


def test_the_keyboard_alone_reaches_the_verdict_and_its_cells(watched: Watched) -> None:
    page = watched.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0, "it can be seen while it has the focus"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.parentElement.open")
    page.keyboard.press("Tab")
    target = page.evaluate("document.activeElement.getAttribute('href')")
    assert target.startswith("#cell-")
    page.keyboard.press("Enter")
    page.wait_for_function("id => location.hash === id", arg=target)
    assert page.locator(target).is_visible()


def test_dark_follows_the_reader(chromium: Any, report: Path) -> None:
    levels = {}
    for scheme in ("light", "dark"):
        page = Watched(chromium, report, 1280, scheme)
        color = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
        levels[scheme] = sum(int(n) for n in color[4:-1].split(","))
        page.check(report)
    assert levels["light"] > 700 and levels["dark"] < 100
