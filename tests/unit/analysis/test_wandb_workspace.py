"""A W&B workspace of a sweep: built and checked without a server, saved through the stand-in."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis import cli
from analysis.text import tables
from runners.records import flat_row
from runners.track.run import run_of
from tests.support import analysis_factory as factory
from tests.support.wandb_server import ENTITY, StandIn


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return factory.write_all(tmp_path_factory.mktemp("sweeps"), factory.rich_records())


@pytest.fixture(scope="module")
def spec(sweep: Path) -> dict[str, Any]:
    target = sweep / "workspace.json"
    assert cli.main(["dashboard", str(sweep), "--entity", "e", "-o", str(target)]) == 0
    return dict(json.loads(target.read_text("utf-8")))


def sections(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {s["name"]: s["panels"] for s in spec["section"]["panelBankConfig"]["sections"]}


def charts(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel["config"] for panels in sections(spec).values() for panel in panels]


def test_a_workspace_has_a_section_for_everything_asked(spec: dict[str, Any]) -> None:
    found = sections(spec)
    assert list(found) == [
        "Strategy against each axis", "Phases", "Skew", "Memory and traffic",
        "Roofline, crossover and other plots", "Samples", "Flags",
    ]  # fmt: skip
    titles = [p["config"]["chartTitle"] for p in found["Strategy against each axis"]]
    assert titles[:2] == [
        "Duration (ms) against batch size", "Throughput (tokens/s) against batch size",
    ]  # fmt: skip
    assert "Duration (ms) against workload" in titles and "Duration (ms) against mode" in titles
    phases = [p["config"]["chartTitle"].split(" ")[0] for p in found["Phases"]]
    assert phases[0] == "router" and {"backward", "gradients", "other"} <= set(phases)
    assert "oversubscribed** (56 of 63 cells)" in json.dumps(found["Flags"])
    assert "plots/roofline" in json.dumps(found["Roofline, crossover and other plots"])


def test_every_panel_reads_a_key_that_the_runs_have(spec: dict[str, Any]) -> None:
    """Axes are config keys, figures summary keys; a misspelt one would be an empty chart."""
    run = run_of(factory.measured(factory.cell("ep", mode="train")), "s")
    keys = {f"config:{name}.value" for name in run.config}
    keys |= {f"summary:{name}" for name in run.summary}
    plain = {f"summary_metrics.{name}" for name in run.summary}
    plain |= {f"summary_metrics.phase_ms.{name}" for name in run.summary["phase_ms"]}
    for chart in charts(spec):
        assert {chart[axis] for axis in ("xAxis", "yAxis") if ":" in chart.get(axis, "")} <= keys
        for name in chart.get("metrics", []):
            assert name in plain or name in run.history[0], name
        if "groupBy" in chart:
            assert chart["groupBy"].removesuffix(".value") in run.config


def test_runs_are_those_of_the_sweeps_grouped_by_the_forms_that_vary(spec: dict[str, Any]) -> None:
    (runset,) = spec["section"]["runSets"]
    text = json.dumps(runset["filters"])
    assert '"group"' in text and "training" in text and "skewed" in text
    assert [key["name"] for key in runset["grouping"]] == [
        "strategy.value", "dispatcher.value", "ep.value", "tp.value",
    ]  # fmt: skip
    assert spec["section"]["settings"]["maxRuns"] == 200


def test_panels_of_a_section_do_not_overlap(spec: dict[str, Any]) -> None:
    for panels in sections(spec).values():
        squares = [
            (x, y)
            for box in (panel["layout"] for panel in panels)
            for x in range(box["x"], box["x"] + box["w"])
            for y in range(box["y"], box["y"] + box["h"])
        ]
        assert len(squares) == len(set(squares)) and max(x for x, _ in squares) < 24


def test_metrics_are_the_tables_own() -> None:
    names = set(flat_row.row(factory.measured(factory.cell())))
    assert set(tables.METRICS) <= names


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    for name in ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    with StandIn() as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        yield running


def test_saving_sends_what_the_file_holds(
    server: StandIn, sweep: Path, spec: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from wandb_workspaces.workspaces import Workspace

    assert cli.main(["dashboard", str(sweep), "--project", "p", "--save"]) == 0
    address = capsys.readouterr().out.strip().splitlines()[-1]
    (view,) = server.views.values()
    assert (view["entityName"], view["projectName"]) == (ENTITY, "p")
    stored = json.loads(view["spec"])
    assert [c.get("chartTitle") for c in charts(stored)] == [
        c.get("chartTitle") for c in charts(spec)
    ]
    again = Workspace.from_url(address)
    assert [s.name for s in again.sections] == list(sections(spec))
    assert os.environ["WANDB_API_KEY"] not in address


def test_a_server_that_refuses_is_one_line(
    server: StandIn, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fail(401)
    assert cli.main(["dashboard", str(sweep), "--entity", "e", "--save"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("analysis: dashboard --save: not saved (")
    assert os.environ["WANDB_API_KEY"] not in said
