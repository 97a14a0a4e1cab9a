"""The gallery in headless Chromium, opened from disk: sorts, filters, copies, and asks nobody for
anything; two widths, light and dark.

Needs Chromium and playwright, as test_report_browser.py: `make test-browser`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.packing import gallery_page
from analysis.packing.gallery_entries import entries
from runners.records import record
from tests.support import analysis_factory as factory
from tests.support import browser
from tests.support.browser import CONTRAST, Watched

pytestmark = pytest.mark.browser
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>"
WIDTHS = (1400, 360)
CLUSTER = {
    "dilation": 20.0,
    "ranks_per_node": 2,
    "intra_mbit_s": 90.0,
    "inter_mbit_s": 10.0,
    "mtu": 1500,
}
chromium = pytest.fixture(scope="module")(browser.chromium)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Batch sizes 8, 64 and 512 of a model on a machine; another on an emulated cluster; a machine
    and a model whose names are attacks. simple is fastest but on the emulated cluster."""
    folder = tmp_path_factory.mktemp("gallery")
    files: dict[str, list[dict[str, Any]]] = {
        "real": [{"batch": batch} for batch in (8, 64, 512)],
        "emulated": [{"batch": 1024, "mode": "train"}],
        "hostile": [{"batch": 16}],
    }
    extra: dict[str, dict[str, Any]] = {
        "real": {},
        "emulated": {"environment": {**factory.ENVIRONMENT, "emulated": CLUSTER}},
        "hostile": {
            "environment": {**factory.ENVIRONMENT, "cpu_model": HOSTILE},
            "meta": {"model": HOSTILE, "scale": 1},
        },
    }
    for name, sizes in files.items():
        for size in sizes:
            for strategy in ("simple", "tp"):
                cell = factory.cell(strategy, **size)
                scale = 10.0 if (name == "emulated") == (strategy == "simple") else 1.0
                one = factory.measured(cell, sweep=name, scale=scale, noise=0.01, **extra[name])
                record.write(folder / name, one)
    target = folder / "gallery.html"
    target.write_text(gallery_page.html(entries([folder / n for n in files], folder)), "utf-8")
    return target


@pytest.fixture(params=[(w, s) for w in WIDTHS for s in ("light", "dark")], ids=str)
def watched(request: pytest.FixtureRequest, chromium: Any, gallery: Path) -> Iterator[Watched]:
    width, scheme = request.param
    page = Watched(chromium, gallery, width, scheme)
    yield page
    page.check(gallery)


def shown(page: Any, label: str) -> list[str]:
    """The texts of a column in the rows that can be seen."""
    cells = page.locator(f'tbody tr:visible td[data-label="{label}"]')
    return [text.strip() for text in cells.all_inner_texts()]


def head(page: Any, title: str) -> Any:
    return page.locator("thead th").filter(has_text=title)


def test_it_fits_and_is_legible(watched: Watched) -> None:
    page = watched.page
    wide, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= window, "the page scrolls sideways"
    ratio, where = page.evaluate(CONTRAST)
    assert ratio >= 4.5, where
    for name in ("batch size", "fastest", "step (ms)", "file"):
        for cell in page.locator(f'tbody td[data-label="{name}"]').all():
            box = cell.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= window, name
    if folder := os.environ.get("PICTURES"):
        name = "-".join(
            map(str, page.evaluate("[innerWidth, getComputedStyle(document.body).color]"))
        )
        page.screenshot(path=str(Path(folder) / f"gallery {name}.png"), full_page=True)


def test_columns_sort_as_numbers_and_as_texts(watched: Watched) -> None:
    page = watched.page
    size = head(page, "batch size")
    size.locator("button").click()
    assert shown(page, "batch size") == ["8", "16", "64", "512", "1,024"]
    assert size.get_attribute("aria-sort") == "ascending"
    size.locator("button").press("Enter")
    assert shown(page, "batch size") == ["1,024", "512", "64", "16", "8"]
    assert size.get_attribute("aria-sort") == "descending"
    head(page, "fastest").locator("button").click()
    assert shown(page, "fastest") == ["simple"] * 4 + ["tp"]
    assert page.locator("[aria-sort]").count() == 1
    assert page.locator("thead th button").count() == page.locator("thead th").count()


def test_a_text_and_choices_filter_the_rows(watched: Watched) -> None:
    page, count = watched.page, watched.page.locator("#count")
    assert count.inner_text() == "5 of 5 settings"
    page.get_by_label("Text").fill("reference 512")
    assert shown(page, "batch size") == ["512"] and count.inner_text() == "1 of 5 settings"
    for number in ("1024", "1,024"):
        page.get_by_label("Text").fill(number)
        assert shown(page, "batch size") == ["1,024"]
    page.get_by_label("Text").fill("no such words")
    assert shown(page, "batch size") == [] and page.locator("#none").is_visible()
    page.get_by_role("button", name="Show all").click()
    assert len(shown(page, "batch size")) == 5 and not page.locator("#none").is_visible()
    page.get_by_label("Fastest strategy").select_option("tp")
    assert shown(page, "batch size") == ["1,024"]
    page.get_by_label("Machine").select_option("Imaginary 9000, 2 cores")
    assert shown(page, "batch size") == [] and count.inner_text() == "0 of 5 settings"
    page.get_by_label("Fastest strategy").select_option("")
    assert sorted(shown(page, "batch size")) == ["512", "64", "8"]
    page.get_by_label("Model").select_option(HOSTILE)
    assert shown(page, "batch size") == []


def test_commands_open_and_are_copied(watched: Watched, gallery: Path) -> None:
    page = watched.page
    watched.context.grant_permissions(["clipboard-read", "clipboard-write"])
    row = page.locator("tbody tr").filter(has_text="512")
    box = row.locator("[popover]")
    assert not box.is_visible()
    row.get_by_role("button", name="Commands").press("Enter")
    assert box.is_visible()
    box.locator(".copy").first.click()
    page.wait_for_function("document.querySelector('#said').textContent")
    copied = page.evaluate("navigator.clipboard.readText()")
    folder = gallery.parent
    assert copied == f"python -m analysis show {folder}/real \\\n    --filter batch_size=512"
    assert (
        box.locator("pre").nth(1).inner_text()
        == f"python -m analysis reproduce {folder}/real --run"
    )
    assert "Measure all 6 cells of the file here" in box.inner_text()
    assert box.locator(".copy").first.inner_text() == "Copied"
    page.keyboard.press("Escape")
    assert not box.is_visible()


def test_a_clipboard_that_refuses_leaves_the_command_marked(watched: Watched) -> None:
    page = watched.page
    page.evaluate("navigator.clipboard.writeText = () => Promise.reject(); "
                  "document.execCommand = () => false")  # fmt: skip
    file = page.locator("#files article").filter(has_text="real")
    file.locator(".copy").click()
    page.wait_for_function("document.querySelector('#said').textContent")
    assert page.evaluate("getSelection().toString()").startswith("python -m analysis show ")
    assert file.locator(".copy").inner_text() == "Marked: press Ctrl+C"


def test_emulated_times_are_called_so(watched: Watched) -> None:
    row = watched.page.locator("tbody tr").filter(has_text="1,024")
    assert "emulated (dilated x20; nodes of 2 at 90/10 Mbit/s; MTU 1500)" in row.inner_text()
    assert watched.page.locator("tbody tr", has_text="emulated").count() == 1
    row.get_by_role("button", name="Commands").click()
    assert row.locator("[popover] pre").count() == 1, "nothing measures it on this machine"


def test_names_are_text(watched: Watched) -> None:
    page = watched.page
    assert page.locator("script").count() == 1 and page.locator("img").count() == 0
    assert HOSTILE in page.locator("tbody").inner_text()


def test_a_foreign_script_does_not_run(watched: Watched) -> None:
    """Even one that got into the page: the policy knows the digest of its own alone."""
    watched.page.evaluate("""() => {
      const script = document.createElement("script");
      script.textContent = "document.title = 'foreign'";
      document.body.append(script);
    }""")
    assert watched.page.title() == "MoE benchmark: the fastest strategy by setting"
    [refusal] = watched.messages
    assert "Content Security Policy" in refusal
    watched.messages.clear()


def test_the_keyboard_alone_reaches_the_table(watched: Watched) -> None:
    page = watched.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "settings"
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert seen[:6] == ["text", "SELECT", "SELECT", "SELECT", "reset", "DIV"]
    assert set(seen[6:]) == {"BUTTON"}


def test_links_lead_to_the_files(watched: Watched, gallery: Path) -> None:
    links = watched.page.locator("tbody a, #files a").evaluate_all("all => all.map(a => a.href)")
    names = ("real", "emulated", "hostile")
    assert set(links) == {(gallery.parent / name).as_uri() for name in names}
