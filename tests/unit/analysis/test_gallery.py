"""The gallery: who is called fastest where, from which file, and pages that only show text."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import analysis
from analysis import cli
from analysis.data.frame import filtered
from analysis.packing import gallery, gallery_page, gallery_settings, submission
from analysis.packing.gallery_entries import Entry, attempts_of, entries
from analysis.packing.gallery_settings import Ahead, Setting
from runners.records import record
from runners.records.record import Record
from tests.support import analysis_factory as factory
from tests.support.docs import ROOT
from tests.support.submissions import EMULATED

PACKED = ROOT / "docs" / "results" / "packed"
WORDS = "emulated (dilated x20; nodes of 2 at 90/10 Mbit/s; MTU 1500)"
OTHER = {"host": "ba9876543210", "cpu_model": "Imaginary 9000"}
HOSTILE = "<script>alert('x')</script>|[a](javascript:b)`c`\"'"


def measured(name: str, of: dict[str, Any] | None = None, **fields: Any) -> Record:
    """Without noise, so that times are exactly `factory.truth_ms` and a multiple."""
    environment = {**factory.ENVIRONMENT, **fields.pop("environment", {})}
    made = {"noise": 0.0, "environment": environment, **fields}
    return factory.measured(factory.cell(name, **(of or {})), **made)


def sweep(folder: Path, name: str, *records: Record) -> Path:
    for one in records:
        record.write(folder / name, dataclasses.replace(one, sweep=name))
    return folder / name


def of(*paths: Path) -> list[Entry]:
    return entries(paths, paths[0].parent)


def settings(*paths: Path) -> list[Setting]:
    return gallery_settings.in_order([one for file in of(*paths) for one in file.settings])


def told(one: Setting) -> tuple[Any, ...]:
    return (one.values["batch_size"], one.leaders, one.lead.text, one.lead.second)


# At batch size 8 and top-k 2 on 8 ranks, simple takes 1 + 0.02 * 16 = 1.32 ms, and tp 4 + 0.02 * 16
# / 8 + 0.2 * 8 = 5.64 ms (factory.truth_ms).
def test_the_winner_is_named_with_its_lead_and_time(tmp_path: Path) -> None:
    [one] = settings(sweep(tmp_path, "a", measured("tp"), measured("simple")))
    assert told(one) == (8, ("simple",), "4.27x [4.27, 4.27]", "tp")
    assert one.lead.sort == pytest.approx(5.64 / 1.32, rel=1e-4)
    assert [(time.text, time.flags) for time in one.times] == [
        ("1.32 [1.32, 1.32]", ("oversubscribed",))
    ]
    assert one.fastest_ms == pytest.approx(1.32, rel=1e-4)


def test_a_tie_has_no_winner_whatever_the_medians_are(tmp_path: Path) -> None:
    scale = 1.32 / 5.64
    same = [measured("simple"), measured("tp", scale=scale), measured("ep", scale=3)]
    noisy = [
        measured("simple", {"batch": 16}, noise=0.5),
        measured("tp", {"batch": 16}, scale=scale, noise=0.5),
    ]
    first, second = settings(sweep(tmp_path, "a", *same, *noisy))
    assert told(first) == (8, ("simple", "tp"), "take the same time (within 2%)", "")
    assert told(second) == (16, ("simple", "tp"), "not told apart", "")
    assert [time.text for time in first.times] == [
        "simple 1.32 [1.32, 1.32]", "tp 1.32 [1.32, 1.32]"
    ]  # fmt: skip
    assert second.lead == Ahead("not told apart", "", 1.0)
    assert len({time.text for time in second.times}) == 2, "their medians differ"


def test_few_samples_have_no_winner(tmp_path: Path) -> None:
    one_round = [measured("simple", rounds=1), measured("tp", rounds=1)]
    [one] = settings(sweep(tmp_path, "a", *one_round))
    assert told(one) == (8, ("simple", "tp"), "have too few samples to be compared", "")


def test_emulated_and_real_times_and_machines_never_share_a_row(tmp_path: Path) -> None:
    both = [measured("simple"), measured("tp")]
    emulated = [measured(name, environment={"emulated": EMULATED}) for name in ("simple", "tp")]
    real = sweep(tmp_path, "real", *(dataclasses.replace(one, created="later") for one in both))
    mixed = sweep(tmp_path, "mixed", *emulated, *(measured(n, launch=1) for n in ("simple", "ep")))
    split = sweep(
        tmp_path, "split", measured("simple"), measured("tp", launch=1, environment=OTHER)
    )
    rows = [(one.file, one.machine, one.cluster, one.leaders) for one in settings(real, mixed)]
    assert rows == [
        ("mixed", "Imaginary 9000, 2 cores", "", ("simple",)),
        ("real", "Imaginary 9000, 2 cores", "", ("simple",)),
        ("mixed", "Imaginary 9000, 2 cores, emulated", WORDS, ("simple",)),
    ]
    assert settings(split) == []
    [file] = of(split)
    assert file.alone == 2 and file.machine == (
        "Imaginary 9000, 2 cores; Imaginary 9000, 2 cores (2)"
    )


def test_machines_of_one_kind_are_numbered_over_all_files(tmp_path: Path) -> None:
    two = ("simple", "tp")
    a = sweep(tmp_path, "a", *(measured(n, environment=OTHER) for n in two))
    b = sweep(tmp_path, "b", *(measured(n) for n in two))
    c = sweep(tmp_path, "c", *(measured(n, environment=OTHER, created="later") for n in two))
    assert [(file.name, file.machine) for file in of(c, b, a)] == [
        ("a", "Imaginary 9000, 2 cores"), ("b", "Imaginary 9000, 2 cores (2)"),
        ("c", "Imaginary 9000, 2 cores"),
    ]  # fmt: skip
    assert {one.file: one.machine for one in settings(a, b, c)}["b"].endswith("(2)")


def test_a_file_with_attempts_of_another_is_named_and_left_out(tmp_path: Path) -> None:
    """The sweep of a packed file is called what the file is: its name tells nothing."""
    one = sweep(tmp_path, "a", measured("simple"), measured("tp"))
    again = sweep(tmp_path, "b", measured("tp"), measured("simple"))
    fault = "b: 2 of 2 attempts are in a too; the file is left out"
    with pytest.warns(UserWarning, match=fault):
        files = of(again, one)
    assert [file.name for file in files] == ["a"]
    later = sweep(tmp_path, "c", measured("tp", created="later"), measured("simple", launch=1))
    assert [file.name for file in of(one, later)] == ["a", "c"]


def test_a_wrong_cell_is_in_no_row(tmp_path: Path) -> None:
    wrong = factory.unmeasured(factory.cell("simple"), "wrong")
    [one] = settings(sweep(tmp_path, "a", wrong, measured("tp"), measured("ep")))
    assert one.leaders == ("ep",)


SETTINGS: list[dict[str, Any]] = [
    {"batch": 8}, {"batch": 16}, {"workload": ("zipf", 1.2)}, {"workload": ("k_hot", 2.0)},
    {"tokens": "sharded"}, {"ranks": 4}, {"mode": "train"}, {"dtype": "bfloat16"},
]  # fmt: skip


def test_the_filters_leave_the_cells_of_the_row(tmp_path: Path) -> None:
    records = [
        measured(name, size)
        for size in SETTINGS
        for name in ("serial", "simple", "tp")
        if not (name == "serial" and "tokens" in size)
    ]
    path = sweep(tmp_path, "a", *records)
    rows, frame = settings(path), analysis.load(path)
    assert len(rows) == len(SETTINGS)
    for one in rows:
        left = filtered(frame, one.filters)
        assert sorted(left["strategy"]) == ["serial", "simple", "tp"]
        tested = left[left["strategy"] != "serial"]
        for name in ("batch_size", "world_size", "mode", "tokens", "dtype"):
            assert set(tested[name]) == {one.values[name]}
    by_ranks = next(one for one in rows if one.values["world_size"] == 4)
    assert "world_size=1,4" in by_ranks.filters


def test_filters_name_the_clock_and_the_machine_where_these_differ(tmp_path: Path) -> None:
    two = ("simple", "tp")
    clocks = sweep(
        tmp_path, "clocks", *(measured(name) for name in two),
        *(measured(n, launch=1, environment={"emulated": EMULATED}) for n in two),
    )  # fmt: skip
    machines = sweep(
        tmp_path, "machines", *(measured(name) for name in two),
        *(measured(name, launch=1, environment=OTHER) for name in two),
    )  # fmt: skip
    assert [one.filters for one in settings(clocks)] == [("emulated=false",), ("emulated=true",)]
    assert [one.filters for one in settings(machines)] == [
        ("host=0123456789ab",), ("host=ba9876543210",)
    ]  # fmt: skip


def test_columns_are_what_varies(tmp_path: Path) -> None:
    two = ("simple", "tp")
    one = sweep(tmp_path, "a", *(measured(n, {"batch": b}) for n in two for b in (8, 16)))
    other = sweep(tmp_path, "b", *(measured(n, {"mode": "train"}) for n in two))
    assert gallery_settings.columns(settings(one)) == []
    assert gallery_settings.columns(settings(one, other)) == ["mode"]
    assert gallery_settings.constant(settings(one, other))[:2] == [
        "dtype float32", "tokens replicated"
    ]  # fmt: skip
    sized = sweep(tmp_path, "c", *(measured(n, {"hidden": h}) for n in two for h in (64, 128)))
    assert gallery_settings.columns(settings(sized)) == ["hidden"]


def page_of(*paths: Path) -> str:
    return gallery_page.html(of(*paths))


def test_the_page_allows_only_its_own_style_and_script(tmp_path: Path) -> None:
    text = page_of(sweep(tmp_path, "a", measured("simple"), measured("tp")))
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    digests = []
    for tag in ("style", "script"):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        digests.append(f"{tag}-src 'sha256-{digest}'")
    # Quotes are escaped in the attribute; digests have characters that are not.
    assert policy.replace("&#39;", "'") == "; ".join([
        "default-src 'none'", *digests, "base-uri 'none'", "form-action 'none'"
    ])  # fmt: skip
    assert "style=" not in text and not re.search(r"<[^>]* on\w+=", text)


def test_names_of_files_are_text(tmp_path: Path) -> None:
    records = [
        measured(name, environment={"cpu_model": HOSTILE}, meta={"model": HOSTILE, "scale": 1})
        for name in ("simple", "tp")
    ]
    path = sweep(tmp_path, "<b>a]&", *records)
    text, index = page_of(path), gallery.index(of(path))
    assert text.count("<script>") == 1 and "<b>a]" not in text
    assert "&lt;script&gt;alert(&#39;x&#39;)" in text
    assert 'href="%3Cb%3Ea%5D%26"' in text
    assert "<script>" not in index and "<b>" not in index
    assert not re.search(r"(?<!\\)\]\(javascript", index)
    [row] = [line for line in index.splitlines() if "alert" in line]
    assert row.startswith("| [&lt;b&gt;a\\]&](%3Cb%3Ea%5D%26) | &lt;script&gt;")
    assert len(re.findall(r"(?<!\\)\|", row)) == len(gallery.HEADER) + 1


def test_the_pages_are_the_same_in_any_order_of_files(tmp_path: Path) -> None:
    a = sweep(tmp_path, "a", measured("simple"), measured("tp"))
    tp = measured("tp", created="later")
    b = sweep(tmp_path, "b", measured("ep"), tp, measured("dp", {"batch": 16}))
    assert page_of(a, b) == page_of(b, a)
    assert gallery.index(of(a, b)) == gallery.index(of(b, a))
    assert "1 measured cell\nwithout another strategy at the same setting is not listed" in page_of(
        b
    )


def test_the_index_says_what_is_in_a_file(tmp_path: Path) -> None:
    failed = factory.unmeasured(factory.cell("ep"), "failed", meta={"model": "reference"})
    [file] = of(sweep(tmp_path, "a", measured("simple"), measured("tp", {"batch": 16}), failed))
    facts = (file.machine, file.what, file.cells, file.date, file.commit)
    assert facts == (
        "Imaginary 9000, 2 cores",
        "reference: simple, tp and ep; batch size 8 and 16, top-k 2, ranks 8, learned, forward, "
        "float32",
        "2 of 3",
        "2026-01-01",
        "aaaaaaaaaa",
    )


def test_packed_files_to_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("pages/packed")
    folder.mkdir(parents=True)
    source = sweep(tmp_path, "a", measured("simple"), measured("tp"))
    packing = ["pack", str(source), "-o", str(folder / "one.moebench"), "--no-pictures"]
    assert cli.main(packing) == 0
    capsys.readouterr()
    assert gallery.main([str(folder), "-o", "pages"]) == 0
    assert capsys.readouterr().out == "pages/gallery.md\npages/gallery.html\n"
    text = Path("pages/gallery.html").read_text("utf-8")
    assert 'href="packed/one.moebench"' in text and "4.27x [4.27, 4.27]" in text
    command = "<pre>python -m analysis reproduce pages/packed/one.moebench --run</pre>"
    assert text.count(command) == 1
    index = Path("pages/gallery.md").read_text("utf-8")
    assert "| [one.moebench](packed/one.moebench) | Imaginary 9000, 2 cores |" in index
    (folder / "two.moebench").write_bytes(b"none")
    assert gallery.main([str(folder), "-o", "pages"]) == 2
    assert "two.moebench" in capsys.readouterr().err
    assert gallery.main(["gone"]) == 2
    assert capsys.readouterr().err.startswith("gallery: gone: no such folder")
    shutil.copy(folder / "one.moebench", folder / "two.moebench")
    assert gallery.main([str(folder), "-o", "pages"]) == 0
    assert capsys.readouterr().err.startswith("gallery: warning: two.moebench: 2 of 2 attempts are")


def test_pages_that_cannot_be_written_are_one_line(tmp_path: Path, capsys: Any) -> None:
    """A file in the place of the folder, above it, and a folder in the place of a page."""
    files = tmp_path / "files"
    files.mkdir()
    target, above = tmp_path / "target", tmp_path / "target" / "pages"
    target.write_text("")
    (tmp_path / "taken" / "gallery.md").mkdir(parents=True)
    for place in (target, above, tmp_path / "taken"):
        assert gallery.main([str(files), "-o", str(place)]) == 2
        output, error = capsys.readouterr()
        assert output == "" and error.count("\n") == 1, error
        assert error.startswith(f"gallery: {place}"), error
    assert target.read_text() == ""


def test_a_file_is_measured_whole_and_an_emulated_one_not_at_all(tmp_path: Path) -> None:
    """`reproduce --run` takes no filter, and no cells of an emulated cluster."""
    two, emulated = ("simple", "tp"), {"emulated": EMULATED}
    real = sweep(tmp_path, "real", *(measured(n, {"batch": b}) for n in two for b in (8, 16)))
    mixed = sweep(
        tmp_path, "mixed", *(measured(n, environment=emulated) for n in two),
        *(measured(n, launch=1) for n in two),
    )  # fmt: skip
    text = page_of(real)
    assert text.count("Measure all 4 cells of the file here") == 2, "a row each"
    assert text.count(f"<pre>python -m analysis reproduce {real} --run</pre>") == 2
    assert "analysis reproduce" not in page_of(mixed) and "Show it" in page_of(mixed)


def test_a_gallery_without_files_says_so() -> None:
    assert "There is no file yet." in gallery_page.html([])
    assert "There is no file yet." in gallery.index([])


def test_the_committed_pages_are_what_the_command_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name, text in gallery.texts(gallery.FOLDER, gallery.PAGES).items():
        assert (gallery.PAGES / name).read_text("utf-8") == text, f"{name}: run make gallery"


def test_every_committed_file_may_be_submitted() -> None:
    paths = sorted(PACKED.glob("[!.]*"))
    assert paths, PACKED
    for path in paths:
        assert submission.of_file(path).problems == (), path


def test_no_attempt_is_in_two_committed_files() -> None:
    counts = Counter(
        one for path in PACKED.glob("[!.]*") for one in attempts_of(analysis.load(path))
    )
    assert counts and set(counts.values()) == {1}
