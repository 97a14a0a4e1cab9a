"""Cells that were checked and not timed: said in tables, in no comparison and no plot, no fault."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import analysis
from analysis import cli, plots
from analysis.plots.canvas import PlotData
from analysis.publish import html
from analysis.sources.wandb_rows import row_of
from analysis.stats.summarize import summarize
from moe.spec import Cell, RankLayout
from runners.records import flat_row
from runners.records.record import Record
from runners.sweep.result import SweepResult, worst
from runners.track.run import run_of
from tests.support import analysis_factory as factory

NOTE = "messages were staged through the host: checked, not timed"


def checked(strategy: str, topk: int, **fields: object) -> Record:
    cell = factory.cell(strategy, topk=topk)
    place = RankLayout(cell.placement.world_size, "gloo", "cuda", cell.placement.threads)
    of = dataclasses.replace(cell, placement=place)
    gate = {"ok": True, "error": 1e-6, "tolerance": 1e-4, "tokens_checked": 8}
    return factory.unmeasured(of, "checked", gate=gate, notes=[NOTE], **fields)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing but checked cells."""
    records = [checked(s, k) for s in ("simple", "ep") for k in (2, 4)]
    return factory.write_all(tmp_path_factory.mktemp("alone"), records) / "sweep"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same cells timed on the CPU, beside them."""
    records = [checked(s, k) for s in ("simple", "ep") for k in (2, 4)]
    records += [factory.measured(factory.cell(s, topk=k)) for s in ("simple", "ep") for k in (2, 4)]
    return factory.write_all(tmp_path_factory.mktemp("mixed"), records) / "sweep"


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(list(arguments))
    return code, capsys.readouterr().out


def test_show_has_their_row_and_says_why_it_has_no_time(
    alone: Path, mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, name in ((alone, "experts 8; steady"), (mixed, "experts 8, device cuda; steady")):
        code, text = said(capsys, "show", str(folder))
        assert code == 0
        table = text.split(f"Duration (ms) by top-k; batch size 8, ranks 8, {name} state")[1]
        rows = [line.split("  ") for line in table.strip().splitlines()[2:4]]
        words = [[word.strip() for word in row if word] for row in rows]
        assert words == [[k, "checked, not timed", "checked, not timed"] for k in ("2", "4")]
        assert " ".join(text.split()).count(f" checked: {NOTE}") == 4  # lines may be wrapped
        assert "have no time" not in text


def test_status_and_check_find_no_fault_in_them(
    alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = said(capsys, "status", str(alone), "--format", "csv")
    header, row = text.strip().splitlines()[:2]
    counts = dict(zip(header.split(","), row.split(","), strict=True))
    assert (code, counts["checked"], counts["measured"], counts["other"]) == (0, "4", "0", "0")
    assert NOTE not in text
    assert said(capsys, "check", str(alone)) == (0, "nothing limits these numbers\n")


def test_they_are_in_no_comparison_and_no_plot(mixed: Path, alone: Path, tmp_path: Path) -> None:
    frame = analysis.load(mixed, samples=True)
    cells = summarize(frame)
    scene = PlotData(frame, cells, [str(mixed)])
    without = set(cells[cells["outcome"] == "checked"]["cell_id"])
    assert len(without) == 4
    for name, drawing in plots.figures(scene):
        if drawing is not None and not isinstance(drawing, str):
            shown = {cell for row in drawing.account.values.rows for cell in row.cells}
            assert not shown & without, name
    bare = analysis.load(alone, samples=True)
    empty = PlotData(bare, summarize(bare), [str(alone)])
    assert {drawing for _, drawing in plots.figures(empty)} == {None}
    page = html.page(scene)
    assert page.count("checked, not timed") >= 4
    assert 'class="bad">checked' not in page
    assert html.page(empty).count("checked, not timed") >= 4


def test_finish_ends_well_with_nothing_but_checked_cells(
    alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = said(capsys, "finish", str(alone))
    assert code == 0
    assert "checked, not timed" in text
    assert not list(alone.glob("plots/*.png"))


def test_a_failed_attempt_does_not_hide_a_checked_one(tmp_path: Path) -> None:
    failed = dataclasses.replace(checked("ep", 2), outcome="failed", launch=0)
    records = [failed, checked("ep", 2, launch=1)]
    cells = summarize(analysis.load(factory.write_all(tmp_path, records)))
    assert cells["outcome"].tolist() == ["checked"]


def test_a_run_of_one_is_no_failure_and_becomes_a_row_again() -> None:
    run = run_of(checked("ep", 2), "sweep")
    assert (run.exit_code, run.history) == (0, [])
    assert "checked" in run.tags
    config, summary = (json.loads(json.dumps(part)) for part in (run.config, run.summary))
    assert row_of(config, summary) == json.loads(json.dumps(flat_row.row(checked("ep", 2))))


def test_a_sweep_of_them_ended_well(tmp_path: Path) -> None:
    result = SweepResult(tmp_path, {"a": "checked", "b": "measured"})
    assert result.exit_code == 0
    assert result.counts() == {
        "measured": 1, "wrong": 0, "failed": 0, "interrupted": 0, "checked": 1,
    }  # fmt: skip
    result.outcomes["c"] = "wrong"
    assert result.exit_code == 1
    assert [worst("checked", new) for new in ("interrupted", "failed", "checked")] == [
        "checked", "failed", "checked",
    ]  # fmt: skip
    assert worst("interrupted", "checked") == worst(None, "checked") == "checked"


def test_only_ranks_that_share_messages_through_the_host_are_staged() -> None:
    assert not Cell().placement.staged
    assert RankLayout(2, "gloo", "cuda").staged
    assert not RankLayout(1, "gloo", "cuda").staged  # sends nothing
    assert not RankLayout(2, "nccl", "cuda").staged
    assert not RankLayout(2, "gloo", "cpu").staged


def test_check_tells_the_waits_of_cells_on_gpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        factory.measured(factory.cell("ep", topk=2), host_waits=[1, 1]),
        factory.measured(factory.cell("ep", topk=4), host_waits=[0, 2]),
        factory.measured(factory.cell("simple", topk=2), host_waits=[0, 0]),
    ]
    code, text = said(capsys, "check", str(factory.write_all(tmp_path, records) / "sweep"))
    assert "waits of the host for the GPU in a step, at most: simple 0, ep 2" in text
    assert code == (not text.startswith("nothing limits these numbers"))
