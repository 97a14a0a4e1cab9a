"""What the pages name is there: links, files, commands, keys; generated pages are up to date."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.data import schema as frame_schema
from benchmarks.docs import results
from benchmarks.gpu import page as gpu_page
from runners.config import schema as config_schema
from runners.packed import record_fields
from tests.support import docs
from tests.support.docs import ROOT

PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
         ROOT / "tests" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]  # fmt: skip
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
MOST_LINES = 300
OUTPUTS = ("tour.md", "getting-started.md")  # of commands, as long as they are
GENERATED: dict[str, Callable[[], str]] = {
    "docs/configuration.md": config_schema.markdown,
    "docs/frame.md": frame_schema.markdown,
    "docs/gpu.md": gpu_page.markdown,
    **{str(path.relative_to(ROOT)): (lambda text=text: text) for path, text in results.pages()},
}
ELSEWHERE = frozenset({
    "sweep.yaml",  # that a reader writes, as the next six
    "top1.py",
    "moe_peer_notebook.py",
    "moe_peer_<name>.py",
    "conf/strategy/peer_notebook.yaml",
    "conf/strategy/dp_tp.yaml",
    "tables.md",  # in a sweep's folder
    "job.yaml",  # a block of docs/manifests.md, as the next four
    "jobset.yaml",
    "trainjob.yaml",
    "rayjob.yaml",
    "sky.yaml",
})  # fmt: skip
NO_KEYS = frozenset({
    "measure.pause_ms",  # the knob that CONTRIBUTING.md adds as an example
    "pre-commit",
})  # fmt: skip


def figures_out_of_place(entries: list[str], stored: list[str], shown: list[str]) -> list[str]:
    """Figures that lack an entry, a file or a page, or are on more than one."""
    return [name for name in sorted({*entries, *stored, *shown})
            if [group.count(name) for group in (entries, stored, shown)] != [1, 1, 1]]  # fmt: skip


def is_too_long(text: str) -> bool:
    return len(text.splitlines()) > MOST_LINES


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    assert docs.broken_links(ROOT / name, text_of(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_paths_are_there(name: str) -> None:
    assert docs.lost_paths(text_of(name), ELSEWHERE) == []


@pytest.mark.parametrize("name", NAMES)
def test_commands_can_be_typed(name: str) -> None:
    assert docs.wrong_commands(text_of(name), NO_KEYS) == []


@pytest.mark.parametrize("name", NAMES)
def test_config_keys_exist(name: str) -> None:
    assert docs.wrong_keys(text_of(name), NO_KEYS) == []


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in GENERATED and not name.endswith(OUTPUTS)]
)
def test_a_page_is_short(name: str) -> None:
    assert not is_too_long(text_of(name))


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_is_what_its_command_writes(name: str) -> None:
    assert text_of(name) == GENERATED[name]()
    assert text_of(name).startswith("<!-- Written by `python -m ")


def test_no_page_of_figures_is_written_by_hand() -> None:
    written = {path for path, _ in results.pages()}
    assert set(results.PAGES.rglob("*.md")) == written


def test_the_table_of_a_records_fields_is_what_the_code_has() -> None:
    assert record_fields.markdown() in text_of("docs/records.md")


def test_every_figure_has_a_command_a_file_and_one_place() -> None:
    templates = [path.read_text("utf-8") for path in results.TEMPLATES.glob("*.md")]
    shown = [name for template in templates for name in results.names_in(template)]
    stored = [path.stem for path in results.STORE.glob("*.md")]
    assert figures_out_of_place(list(results.figures()), stored, shown) == []


def test_the_checks_see_enough() -> None:
    pages = [docs.parsed(text_of(name)) for name in NAMES]
    assert sum(len(docs.commands(page)) for page in pages) > 100
    assert sum(len(page.spans) for page in pages) > 1000


@pytest.mark.parametrize(("link", "fault"), [
    ("[a](no-such-page.md)", "no-such-page.md: no such file"),
    ("![a](no-such-picture.png)", "no-such-picture.png: no such file"),
    ("[a](strategies.md#no-such)", "strategies.md#no-such: no such heading"),
    ("[a](#no-such)", "#no-such: no such heading"),
    ('<img src="gone.png">', "gone.png: no such file"),
])  # fmt: skip
def test_a_broken_link_is_found(link: str, fault: str) -> None:
    assert docs.broken_links(ROOT / "docs" / "x.md", f"# Title\n\n{link}\n") == [fault]


def test_good_links_are_no_faults() -> None:
    text = ("# A title: `two` parts\n\n[a](#a-title-two-parts) [b](strategies.md#letters) "
            "[c](https://x.org/y#z) `[d](gone.md)`\n\n    [e](gone.md)\n")  # fmt: skip
    assert docs.broken_links(ROOT / "docs" / "x.md", text) == []


@pytest.mark.parametrize("text", [
    "`moe/gone.py`", "`gone.py`", "`docs/gone/`", "`conf/gone/NAME.yaml`", "`moe.gone.gate`",
    "`runners.plan.gone`", "`runners/plan.py`, `gone.yaml`", "x\n\n    make T=gone.py",
])  # fmt: skip
def test_a_lost_path_is_found(text: str) -> None:
    (fault,) = docs.lost_paths(text, ELSEWHERE)
    assert "gone" in fault


def test_good_paths_are_no_faults() -> None:
    text = ("`conf/strategy/NAME.yaml` `moe/strategies/<name>/` `runners/plan.py` `outputs/x.md` "
            "`plan.py` `analysis.load` `runners.worker` `moe/peers/` `sweep.yaml`")  # fmt: skip
    assert docs.lost_paths(text, ELSEWHERE) == []


@pytest.mark.parametrize(("command", "fault"), [
    ("make gone", "no target gone"),
    ("python -m gone", "no module gone"),
    ("python -m benchmarks.gone", "no module benchmarks.gone"),
    ("python -m analysis gone", "no verb gone"),
    ("python -m analysis show --gone 3", "no option --gone"),
    ("moe-bench-analysis plot --format csv", "no option --format"),
    ("python -m runners.track --gone", "no option --gone"),
    (".venv-peers/bin/python -m benchmarks.speed gone", "no choice gone"),
    ("python runners/bench.py gone=3", "no key gone"),
    ("python runners/bench.py -m measure.gone=3 topk=2", "no key measure.gone"),
    ("WANDB_MODE=offline python runners/bench.py -m strategy=tp,gone", "no strategy=gone"),
    ("moe-bench tokens=gone", "allowed are replicated, sharded"),
    ("python runners/bench.py --gone", "no option --gone"),
    ("python runners/bench.py -m \\\n        topk=2 gone=1", "no key gone"),
    ("make bench && make gone", "no target gone"),
])  # fmt: skip
def test_a_wrong_command_is_found(command: str, fault: str) -> None:
    fenced = command.replace("\n    ", "\n")
    blocks = f"    {command}\n", f"```\n{fenced}\n```", f"```console\n$ {fenced}\n```"
    for text in blocks:
        (found,) = docs.wrong_commands(text, NO_KEYS)
        assert fault in found


def test_good_commands_are_no_faults() -> None:
    text = """
    make bench      # words
    make test T=engine
    python -m analysis show     [SOURCE...]   tables --gone
    python -m analysis compare A B
    python -m runners.track [SOURCE...] --mode offline|online
    python runners/bench.py -m strategy=tp,ep topk=2,4 hydra/launcher=slurm measure.pause_ms=5
    for n in 0 1; do python runners/bench.py -m hosts=many; done
    NNODES=2 moe-bench -m hosts=many world_size=16
    python -m pytest -q tests/unit/test_docs.py
    """
    assert docs.wrong_commands(text, NO_KEYS) == []


@pytest.mark.parametrize(("span", "fault"), [
    ("measure.gone", "no key measure.gone"),
    ("model.router.gone", "no key model.router.gone"),
    ("gone=3", "no key gone"),
    ("strategy=gone", "no strategy=gone"),
    ("tokens=gone", "allowed are replicated, sharded"),
    ("mode=train gone=3", "no key gone"),
])  # fmt: skip
def test_a_wrong_key_is_found(span: str, fault: str) -> None:
    (found,) = docs.wrong_keys(f"See `{span}`.", NO_KEYS)
    assert fault in found


def test_good_keys_are_no_faults() -> None:
    text = ("`measure.samples` `model.router` `mode=train` `strategy.placement=FILE` `topk=2,4` "
            "`strategy=simple,ep` `WANDB_MODE=offline` `gate.after` `measure.block=N`")  # fmt: skip
    assert docs.wrong_keys(text, NO_KEYS) == []


def test_a_long_page_and_a_figure_out_of_place_are_found() -> None:
    assert is_too_long("line\n" * 301) and not is_too_long("line\n" * 300)
    assert figures_out_of_place(["a", "b"], ["b", "c"], ["b", "d"]) == ["a", "c", "d"]
    assert figures_out_of_place(["a"], ["a"], ["a", "a"]) == ["a"]


def test_a_page_that_was_edited_or_shows_an_unknown_figure_is_found() -> None:
    template = results.TEMPLATES / "performance.md"
    page = (results.PAGES / "performance.md").read_text("utf-8")
    assert results.rendered(template) == page != page.replace("2.53", "2.54")
    with pytest.raises(KeyError, match="gone"):
        results.filled("{{ figure: gone }}")


def test_a_figure_stands_below_its_command_with_day_and_machine() -> None:
    figure = results.figures()["isolation"]
    first, second = figure.command.split(" && ")
    start = f"    {first}\n    {second}\n\n*{figure.measured_on}, {figure.machine}."
    assert figure.markdown().startswith(start)
    assert figure.markdown().endswith(figure.path.read_text("utf-8").rstrip())


def test_a_figure_gets_a_new_date_and_nothing_else() -> None:
    table = results.TABLE.read_text("utf-8")
    changed = results.dated(table, "drift", datetime.date(2030, 1, 2))
    lines = zip(table.splitlines(), changed.splitlines(), strict=True)
    assert [new for old, new in lines if old != new] == ["measured_on = 2030-01-02"]
    with pytest.raises(ValueError, match="gone: 0 entries"):
        results.dated(table, "gone", datetime.date(2030, 1, 2))


@pytest.mark.parametrize(("printed", "code", "stored"), [
    ("| a |", 0, True), ("", 0, False), ("| a |", 3, False)
])  # fmt: skip
def test_measuring_stores_what_was_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, code: int, stored: bool
) -> None:
    table = (f'[machines]\nm = "M"\n\n[figures.one]\ncommand = "echo \'{printed}\'; exit {code}"\n'
             'machine = "m"\nmeasured_on = 2020-01-01\n')  # fmt: skip
    (tmp_path / "figures.toml").write_text(table, "utf-8")
    (tmp_path / "one.md").write_text("before\n", "utf-8")
    monkeypatch.setattr(results, "STORE", tmp_path)
    monkeypatch.setattr(results, "TABLE", tmp_path / "figures.toml")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    results.figures.cache_clear()
    try:
        if stored:
            results.measure("one")
        else:
            with pytest.raises(SystemExit, match="nothing was stored"):
                results.measure("one")
        with pytest.raises(SystemExit, match="--measure two: allowed are one"):
            results.measure("two")
        assert results.figures()["one"].path.read_text("utf-8") == (
            f"{printed}\n" if stored else "before\n"
        )
        assert (results.figures()["one"].measured_on > datetime.date(2020, 1, 1)) is stored
    finally:
        results.figures.cache_clear()
