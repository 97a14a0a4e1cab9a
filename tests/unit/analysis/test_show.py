"""Tables, insights and verbs: what a sweep of known truth must be said to show."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import analysis
from analysis import cli
from analysis.data.cell_summary import summaries
from analysis.numbers import short, with_interval
from analysis.stats import roofline, summarize
from analysis.text import captions, diagnosis, insights, tables
from moe.spec import Cell
from tests.support import analysis_factory as factory

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = factory.reference_records()
    records.append(factory.unmeasured(factory.cell("ep", topk=1), "failed", sweep="reference_topk"))
    records.append(factory.unmeasured(factory.cell("tp", topk=1), "wrong", sweep="reference_topk"))
    records.append(factory.measured(factory.cell("simple", topk=1), sweep="reference_topk"))
    return factory.write_all(tmp_path_factory.mktemp("sweeps"), records)


@pytest.fixture(scope="module")
def loaded(sweeps: Path) -> pd.DataFrame:
    return analysis.load(sweeps)


def table(found: list[tables.Table], start: str) -> tables.Table:
    return next(t for t in found if t.title.startswith(start) and "sharded" not in t.title)


def test_numbers() -> None:
    assert [short(v) for v in (0.13712, 12.345, 1234.5, 9.999, 0.0, float("nan"))] == [
        "0.137", "12.3", "1,234", "10.0", "0", "-",
    ]  # fmt: skip
    assert with_interval(0.13712, 0.131, 0.1419) == "0.137 [0.131, 0.142]"
    assert with_interval(2.0, float("nan"), float("nan")) == "2.00"


def test_the_seeds_tables(loaded: pd.DataFrame) -> None:
    found = tables.sweep_tables(summarize.summarize(loaded))
    by_topk = table(found, "Duration (ms) by top-k")
    assert by_topk.columns == ["serial", "simple", "tp", "ep"]
    assert by_topk.rows == ["1", "2", "4", "8"]
    assert table(found, "Duration (ms) by batch size").rows == ["8", "16", "32"]
    by_ranks = table(found, "Duration (ms) by ranks")
    assert by_ranks.rows == ["2 (top-k 4 ran as 2)", "4", "8"]
    assert "experts = ranks" in by_ranks.title
    throughput = table(found, "Throughput (10^3 tokens/s) by top-k")
    assert table(found, "Throughput (10^3 tokens/s) by ranks").rows == by_ranks.rows
    cell = summarize.summarize(loaded).set_index("cell_id").loc[by_topk.entries["8", "ep"].cell_id]
    assert throughput.entries["8", "ep"].value == pytest.approx(8 / cell["mean_ms"])
    assert by_topk.entries["8", "ep"].text.endswith("(o)")
    assert table(found, "Throughput (10^3 tokens/s) by batch size").rows == ["8", "16", "32"]


def test_a_table_names_its_own_sweeps_intervals_and_drift(tmp_path: Path) -> None:
    """Of two sweeps that share a cell: only the table with that cell says so."""
    moved = factory.anchors(1.0, 1.4)
    records = [factory.measured(factory.cell("ep", topk=k), sweep="a") for k in (2, 4)]
    records += [factory.measured(factory.cell("tp", topk=k), sweep="a") for k in (2, 4)]
    records += [
        factory.measured(factory.cell("ep", topk=4, batch=b), sweep="b", anchors=moved)
        for b in (8, 16)
    ]
    records += [factory.measured(factory.cell("ep", ranks=r, topk=8), sweep="c") for r in (2, 4)]
    summarized = summarize.summarize(analysis.load(factory.write_all(tmp_path, records)))
    found = tables.sweep_tables(summarized)
    assert table(found, "Duration (ms) by top-k").notes == [
        "DRIFT: the machine changed by up to 40% while 1 of these 4 cells were measured.",
        "From a, b.",
        "Intervals: within one launch in 3 cells; the span of 2 launches in 1 cells.",
    ]
    assert table(found, "Duration (ms) by ranks").notes == ["From c."]


def test_cells_without_a_time_show_no_number(loaded: pd.DataFrame) -> None:
    by_topk = table(tables.sweep_tables(summarize.summarize(loaded)), "Duration (ms) by top-k")
    assert by_topk.entries["1", "ep"].text == "failed"
    assert by_topk.entries["1", "tp"].text == "wrong"
    lines = tables.problems(summarize.summarize(loaded))
    assert any("it broke" in line and "rank1.log" in line for line in lines)
    assert any("disagree with the oracle" in line for line in lines)


def test_a_sweep_of_strategies_alone_is_one_table(tmp_path: Path) -> None:
    records = [factory.measured(factory.cell(s)) for s in ("simple", "ep")]
    found = tables.sweep_tables(
        summarize.summarize(analysis.load(factory.write_all(tmp_path, records)))
    )
    assert len(found) == 1 and found[0].rows == ["simple", "ep"]


def test_variants_and_labels_are_series_of_their_own(tmp_path: Path) -> None:
    records = [
        factory.measured(factory.cell("ep", topk=k, dispatcher=d), label=label)
        for k in (2, 4)
        for d in ("local", "alltoall")
        for label in ("a", "b")
    ]
    found = tables.sweep_tables(
        summarize.summarize(analysis.load(factory.write_all(tmp_path, records)))
    )
    assert found[0].columns == ["ep alltoall a", "ep alltoall b", "ep local a", "ep local b"]


def insights_of(frame: pd.DataFrame) -> list[insights.Insight]:
    """The paragraphs after "In short"."""
    return insights.headline_and_insights(frame, summarize.summarize(frame))[1]


def test_a_paragraph_for_every_axis(loaded: pd.DataFrame) -> None:
    paragraphs = insights_of(loaded)
    titles = [paragraph.title.split(" (")[0] for paragraph in paragraphs]
    assert list(dict.fromkeys(titles)) == [
        "Top-k", "Batch size", "Number of ranks", "How the tokens are spread",
    ]  # fmt: skip
    ranks = next(p for p in paragraphs if p.title.startswith("Number of ranks"))
    assert any("ep takes 1.4 times" in claim.text for claim in ranks.claims)
    assert "experts grow with ranks" in ranks.notes["Note"]
    split = [p for p in paragraphs if p.title.startswith("How the tokens")]
    assert all("as fast with sharded tokens as with replicated" in p.claims[0].text for p in split)
    assert set(ranks.cells) <= set(loaded["cell_id"])


def test_every_claim_rests_on_cells_that_it_names(loaded: pd.DataFrame) -> None:
    """A sentence on ep rests on ep's cells alone; the numbers behind it lead to them."""
    batch = next(p for p in insights_of(loaded) if p.title.startswith("Batch size"))
    growth = next(c for c in batch.claims if c.text.startswith("simple takes"))
    strategy = dict(zip(loaded["cell_id"], loaded["strategy"], strict=True))
    assert len(growth.cells) == 3 and {strategy[c] for c in growth.cells} == {"simple"}
    assert all(c.cells and set(c.cells) <= set(batch.cells) for c in batch.claims)
    at = batch.lines(detail=True).index(f"  {growth.text}.")
    detail = batch.lines(detail=True)[at + 1]
    assert detail.endswith(f" [{batch.refs(growth)}]") and "at 32" in detail


def test_growth_of_a_known_power(tmp_path: Path) -> None:
    """Durations of exactly batch^0.5 give the exponent 0.5."""
    records = []
    for batch in (8, 32, 128):
        of = factory.cell("ep", batch=batch)
        scale = (batch / 8) ** 0.5 / factory.truth_ms(of)
        records.append(factory.measured(of, scale=scale, noise=0.001))
    (batch_size,) = insights_of(analysis.load(factory.write_all(tmp_path, records)))
    (claim,) = batch_size.claims
    assert claim.text == "ep takes 4.0 times as long at batch size 128 as at 8"
    assert claim.detail.endswith("~ batch size^0.50 [0.50, 0.50]")


@pytest.mark.parametrize("times_ms", [{8: 1.0, 32: 8.0, 128: 1.0}, {8: 1.0, 32: 2.0}])
def test_a_power_needs_three_values_that_fit(tmp_path: Path, times_ms: dict[int, float]) -> None:
    """A peak lies far off any line; two values lie on every line."""
    records = []
    for batch, ms in times_ms.items():
        of = factory.cell("ep", batch=batch)
        records.append(factory.measured(of, scale=ms / factory.truth_ms(of), noise=0.001))
    (batch_size,) = insights_of(analysis.load(factory.write_all(tmp_path, records)))
    assert "^" not in "".join(claim.detail for claim in batch_size.claims)


def test_drift_puts_a_banner_on_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        factory.measured(factory.cell("ep", topk=k), anchors=factory.anchors(1.0, 1.4))
        for k in (2, 4)
    ]
    factory.write_all(tmp_path, records)
    assert cli.main(["show", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert (
        out.startswith("DRIFT: the machine's speed changed by up to 40% during the wave")
        and "(o,d)" in out
    )


def test_check_says_what_to_do_next(tmp_path: Path) -> None:
    few = factory.measured(factory.cell("ep"), rounds=3)
    frame = analysis.load(factory.write_all(tmp_path / "few", [few]))
    lines = [f.line() for f in diagnosis.findings(frame, summarize.summarize(frame))]
    for word in ("fewer than 6 samples", "too few rounds", "one launch", "oversubscribed"):
        assert any(word in line and "next: " in line for line in lines), word
    fine = [factory.measured(factory.cell("ep", ranks=2), launch=n, noise=0.005) for n in range(5)]
    frame = analysis.load(factory.write_all(tmp_path / "fine", fine))
    assert diagnosis.findings(frame, summarize.summarize(frame)) == []


def test_bounds_by_hand(tmp_path: Path) -> None:
    """B 8, K 2: 2*16*(32*128 + 128*64) FLOPs at 1e11 per s are 3.93 us; one all-reduce 1.004 ms."""
    made = factory.measured(factory.cell("ep"), calibration=factory.CALIBRATION)
    (row,) = summaries(summarize.summarize(analysis.load(factory.write_all(tmp_path, [made]))))
    assert roofline.flops(row) == 2 * 16 * (32 * 128 + 128 * 64)
    limit = roofline.bound(row)
    assert limit is not None and not limit.wrong
    assert limit.compute_ms == pytest.approx(393216 / 1e11 * 1e3)
    assert limit.communication_ms == pytest.approx(1e3 * (1e-3 + 4096e-9))
    assert roofline.rows(summarize.summarize(analysis.load(tmp_path)))[1][0] == "ep"


def test_a_fraction_over_one_is_a_wrong_bound(tmp_path: Path) -> None:
    slow = json.loads(json.dumps(factory.CALIBRATION))
    slow["collectives"]["all_reduce"]["alpha_s"] = 1.0
    made = factory.measured(factory.cell("ep"), calibration=slow)
    found = roofline.wrong(summarize.summarize(analysis.load(factory.write_all(tmp_path, [made]))))
    assert len(found) == 1 and "calibrate again" in found[0]


def test_captions_name_machine_engine_cache_flags_command(loaded: pd.DataFrame) -> None:
    text = "\n".join(
        captions.lines(loaded, summarize.summarize(loaded), "python -m analysis show x")
    )
    for word in ("Imaginary 9000, 2 cores", "gloo on cpu", "warm cache", "oversubscribed in",
                 "python -m analysis show x", "torch 2.13.0", "commit aaaaaaaaaa"):  # fmt: skip
        assert word in text, word


@pytest.mark.parametrize("style", ["text", "markdown", "csv"])
def test_show_formats(sweeps: Path, style: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["show", str(sweeps), "--format", style, "--filter", "sweep=reference_batch"]) == 0
    )
    out = capsys.readouterr().out
    if style == "csv":
        rows = list(csv.DictReader(io.StringIO(out)))
        assert {r["series"] for r in rows} == {"serial", "simple", "tp", "ep"}
        assert all(float(r["low"]) <= float(r["value"]) <= float(r["high"]) for r in rows)
    else:
        assert ("| batch size" in out) == (style == "markdown")
        assert "Batch size (top-k 4, ranks 8, experts 8)" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "NOWHERE"],
        ["show", "SWEEPS", "--filter", "nonsense=1"],
        ["show", "SWEEPS", "--filter", "topk"],
        ["show", "SWEEPS", "--group", "nonsense"],
        ["show", "SWEEPS", "--group", "created"],
        ["show", "SWEEPS", "--metric", "strategy"],
        ["compare", "SWEEPS"],
        ["compare", "SWEEPS", "--group", "git_sha"],
        ["compare", "SWEEPS", "SWEEPS", "--threshold", "7"],
        ["plot", "SWEEPS", "--name", "nonsense"],
        ["export", "SWEEPS", "-o", "file.exe"],
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    sweeps: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    threads = {name: os.environ.get(name) for name in cli.ONE_THREAD}
    assert cli.main([a.replace("SWEEPS", str(sweeps)) for a in arguments]) == 2
    assert {name: os.environ.get(name) for name in cli.ONE_THREAD} == threads
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.err.startswith("analysis: ") and said.out == ""


def test_status_counts_against_the_plan(sweeps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = {"name": "reference_topk", "command": "x", "cells": [{"cell_id": "never"}]}
    (sweeps / "reference_topk" / "plan.json").write_text(json.dumps(plan))
    assert cli.main(["status", str(sweeps / "reference_topk"), "--format", "csv"]) == 1
    row = next(csv.DictReader(io.StringIO(capsys.readouterr().out.split("\n\n")[0])))
    assert (row["planned"], row["missing"], row["failed"], row["wrong"]) == ("1", "1", "1", "1")


@pytest.mark.parametrize("ending", ["csv", "parquet", "json", "md"])
def test_export(sweeps: Path, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"out.{ending}"
    assert cli.main(["export", str(sweeps), "-o", str(path)]) == 0
    if ending == "csv":
        back = pd.read_csv(path)
        assert back["topk"].tolist() == analysis.load(sweeps)["topk"].tolist()
    assert path.stat().st_size > 1000


def test_help_starts_without_pandas_matplotlib_torch() -> None:
    code = (
        "import sys, analysis.cli\n"
        "try: analysis.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'pandas','matplotlib','torch','wandb','scipy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.stdout.strip().endswith("[]") and "examples:" in done.stdout


def on_gpus(of: Cell) -> Cell:
    placement = dataclasses.replace(of.placement, device="cuda", backend="nccl")
    return dataclasses.replace(of, placement=placement)


def test_bounds_of_gpus_by_hand(tmp_path: Path) -> None:
    """Eight GPUs beside two cores. A call sends 4096 bytes: 1 ms as the smaller message took, more
    than at the best rate, of the larger one, and less than the fitted line. Each rank's weights are
    read at 1e13 bytes per s from its GPU's cache, on all eight GPUs."""
    points = [[1024, 1.5e-3, 1e-3], [1 << 20, 3e-3, 2e-3]]
    fit = {"alpha_s": 5e-3, "beta_s_per_byte": 1e-9, "error": 0.5, "points": points}
    calibration = {
        **factory.CALIBRATION, "device": "cuda", "backend": "nccl",
        "collectives": {"all_reduce": fit},
        "read_warm_bytes_per_s": {"16384": 1e13, "33554432": 1e12},
        "read_bytes_per_s": 1e12,
        "matmul_flops_per_s": {"float32": {"peak": 1e30}},
    }  # fmt: skip
    made = factory.measured(on_gpus(factory.cell("ep")), calibration=calibration)
    (row,) = summaries(summarize.summarize(analysis.load(factory.write_all(tmp_path, [made]))))
    limit = roofline.bound(row)
    assert limit is not None
    assert limit.communication_ms == pytest.approx(1.0)
    assert roofline.read_rate(row) == 8e13
    assert roofline.least_s(points, 1 << 19) == 1e-3  # as long as the smaller one, at least
    assert roofline.least_s(points, 1 << 21) == pytest.approx(4e-3)
    assert roofline.least_s(points, 512) == pytest.approx(512 / (1 << 20) * 2e-3)
    assert roofline.least_s([[0.0, 2e-5, 1e-5]], 0.0) == 1e-5  # a barrier


def test_check_says_why_gpus_were_throttled(tmp_path: Path) -> None:
    wave = {"gpus": [{"gpu": 0, "readings": 50, "reasons": 0x24, "harmful": 30}]}
    hot = {**factory.ENVIRONMENT, "cores": 64, "after": [wave] + [{}] * 7}
    frame = analysis.load(factory.write_all(
        tmp_path, [factory.measured(on_gpus(factory.cell("ep")), environment=hot)]
    ))  # fmt: skip
    lines = [f.line() for f in diagnosis.findings(frame, summarize.summarize(frame))]
    (said,) = [line for line in lines if "throttled" in line]
    assert "software power cap, software thermal slowdown" in said
    assert "next: cool the GPUs" in said
