"""`cells=FILE`: which cells a source has, and what is typed beside it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from runners import bench
from runners.config import cells_here, recorded_cells
from runners.config.cell_overrides import Recorded
from runners.errors import ConfigError
from runners.host.machine import NodeResources
from runners.packed import packed_file
from runners.packed.packed_file import Packed
from runners.records import flat_row, record
from runners.records.emulation import Emulation
from runners.records.record import cell_key
from runners.records.sealed import sealed
from tests.support import analysis_factory as factory

TP, EP = factory.cell("tp", ranks=2), factory.cell("ep", ranks=2)


def sweep(folder: Path, *records: record.Record) -> str:
    for one in records:
        record.write(folder, one)
    return str(folder)


def keys(source: str) -> list[str]:
    return [one.cell_id for one in recorded_cells.recordings(source).cells]


def test_a_cell_is_measured_once_as_its_newest_attempt_was(tmp_path: Path) -> None:
    source = sweep(
        tmp_path,
        factory.measured(TP, launch=1, measure={"samples": 9}),
        factory.measured(TP, launch=0, measure={"samples": 3}),
        factory.measured(TP, launch=0, label="again", measure={"samples": 4}),
        factory.unmeasured(EP, "failed"),
    )
    cells = {one.cell_id: one for one in recorded_cells.recordings(source).cells}
    assert set(cells) == {cell_key(TP), f"{cell_key(TP)}.again", cell_key(EP)}
    assert cells[cell_key(TP)].measure["samples"] == 9
    assert cells[f"{cell_key(TP)}.again"].measure["samples"] == 4


@pytest.mark.parametrize("order", [(TP, EP), (EP, TP)])
def test_cells_are_in_the_order_of_the_plan(tmp_path: Path, order: Any) -> None:
    source = sweep(tmp_path, factory.measured(TP), factory.measured(EP))
    plan = {"cells": [{"cell_id": cell_key(cell)} for cell in order]}
    (tmp_path / "plan.json").write_text(sealed(plan), "utf-8")
    assert keys(source) == [cell_key(cell) for cell in order]


def test_a_damaged_record_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = sweep(tmp_path, factory.measured(TP), factory.measured(EP))
    path = record.record_path(tmp_path, factory.measured(EP))
    path.write_text(path.read_text("utf-8").replace("gloo", "gl00"), "utf-8")
    assert keys(source) == [cell_key(TP)]
    assert str(path) in capsys.readouterr().err


def test_times_of_an_emulated_cluster_are_refused(tmp_path: Path) -> None:
    emulated = {**factory.ENVIRONMENT, "emulated": dataclasses.asdict(Emulation())}
    source = sweep(tmp_path, factory.measured(TP, environment=emulated))
    with pytest.raises(ConfigError, match=r"^cells=.*emulated cluster.*benchmarks\.emulate"):
        recorded_cells.recordings(source)


def test_cells_of_an_emulated_cluster_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    emulated = {**factory.ENVIRONMENT, "emulated": dataclasses.asdict(Emulation())}
    source = sweep(tmp_path, factory.measured(TP, environment=emulated), factory.measured(EP))
    assert keys(source) == [cell_key(EP)]
    assert f"of an emulated cluster, left out: {cell_key(TP)}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("isolation", "expected"),
    [("cell", ["isolation=cell"]), ("group", []), (None, []), ("cell,group", [])],
)
def test_the_isolation_of_the_plan_is_that_of_every_job(
    tmp_path: Path, isolation: str | None, expected: list[str]
) -> None:
    source = sweep(tmp_path, factory.measured(TP), factory.measured(EP))
    plan: dict[str, Any] = {"cells": [], "isolation": isolation}
    (tmp_path / "plan.json").write_text(sealed(plan), "utf-8")
    for job in words(source):
        assert [word for word in job if word.startswith("isolation")] == expected
    for job in words(source, isolation=["isolation=group"]):
        assert [word for word in job if word.startswith("isolation")] == ["isolation=group"]


def test_a_source_without_cells_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty" / "cells").mkdir(parents=True)
    for name, why in (
        ("none", "no such file or folder"),
        ("", "holds no cells"),
        ("empty", "no whole"),
    ):
        source = str(tmp_path / name)
        with pytest.raises(ConfigError, match=f"^cells={source}.*{why}.*allowed are a packed file"):
            recorded_cells.recordings(source)


def test_runs_of_wandb_in_a_packed_file_give_the_cells_of_their_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newest first; the file has rows instead of records."""
    attempts = [
        factory.measured(TP, launch=n, label="a", measure={"samples": 3 + n}) for n in (1, 0)
    ]
    rows = tuple(flat_row.row(one) for one in attempts)
    packed = Packed("x", {}, rows=rows, damaged=("x: part y: checksum; left out",))
    monkeypatch.setattr(recorded_cells, "read_packed", lambda _: packed)
    (one,) = recorded_cells.recordings("x.moebench").cells
    assert one == Recorded(TP, {"samples": 4}, "a", "reference", 1)


def test_a_packed_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.moebench"
    path.write_bytes(b"no zip")
    for source in (str(path), str(tmp_path / "none.moebench"), "http://example.org/x.moebench"):
        with pytest.raises(ConfigError, match=f"^cells={source}: "):
            recorded_cells.recordings(source)


def words(source: str, **typed: list[str]) -> list[list[str]]:
    return recorded_cells.jobs(source, {key.replace("__", "."): v for key, v in typed.items()})


def test_what_is_typed_beside_applies_to_all_cells_and_wins(tmp_path: Path) -> None:
    measure = {"samples": 3, "cache": "warm"}
    source = sweep(
        tmp_path, factory.measured(TP, measure=measure), factory.measured(EP, measure=measure)
    )
    for job in words(source):
        assert "measure.samples=3" in job
    for job in words(source, measure__samples=["measure.samples=5"]):
        assert [w for w in job if w.startswith("measure.samples=")] == ["measure.samples=5"]
    for job in words(source, measure=["measure=quick"]):
        assert [word for word in job if word.startswith("measure")] == ["measure=quick"]
    assert len(words(source, topk=["topk=1", "topk=2"])) == 4


def test_a_preset_of_measure_leaves_what_the_cell_is(tmp_path: Path) -> None:
    graph = dataclasses.replace(EP, strategy=dataclasses.replace(EP.strategy, graph="on"))
    cold = dataclasses.replace(TP, workload=dataclasses.replace(TP.workload, cache="cold"))
    source = sweep(tmp_path, factory.measured(graph), factory.measured(cold))
    jobs = words(source, measure=["measure=quick"])
    assert sorted(word for job in jobs for word in job if word.startswith("measure.")) == [
        "measure.cache=cold",
        "measure.graph=on",
    ]


def test_a_file_of_choices_is_for_the_cells_that_have_them(tmp_path: Path) -> None:
    traced = dataclasses.replace(
        EP, workload=dataclasses.replace(EP.workload, kind="trace", trace_sha256="ab" * 32)
    )
    source = sweep(tmp_path, factory.measured(TP), factory.measured(traced))
    jobs = words(source, workload__trace=["workload.trace=x.npz"])
    by_strategy = {next(w for w in job if w.startswith("strategy.name")): job for job in jobs}
    assert "workload.trace=x.npz" in by_strategy["strategy.name=ep"]
    assert f"workload.trace_sha256='{'ab' * 32}'" in by_strategy["strategy.name=ep"] or (
        f"workload.trace_sha256={'ab' * 32}" in by_strategy["strategy.name=ep"]
    )
    assert not [word for word in by_strategy["strategy.name=tp"] if "trace" in word]


def test_a_cell_that_cannot_run_here_says_why() -> None:
    on_gpus = dataclasses.replace(
        EP, placement=dataclasses.replace(EP.placement, backend="nccl", device="cuda")
    )
    recorded = [Recorded(cell, {}) for cell in (TP, on_gpus)]
    reasons = cells_here.refusals(recorded, NodeResources(cores=2))
    assert reasons[cell_key(TP)] is None
    assert "device=cuda: allowed with at least one CUDA device" in str(reasons[cell_key(on_gpus)])
    assert set(cells_here.refusals(recorded, NodeResources(2, 2)).values()) == {None}


@pytest.mark.parametrize("isolation", ["group", "cell", None, "x; rm", ["cell"]])
def test_the_isolation_of_a_packed_plan_is_one_of_a_closed_list(isolation: Any) -> None:
    """An older file's plan has none; one with another value is named and left out."""
    damaged: list[str] = []
    written = {"name": "x", "command": "", "resumed": [], "cells": [], "isolation": isolation}
    plan = packed_file._plan(written, damaged)
    if isolation in ("group", "cell"):
        assert plan and plan["isolation"] == isolation
    elif isolation is None:
        assert plan and "isolation" not in plan
    else:
        assert plan is None
        assert damaged[0].startswith("plan.json: isolation=")


@pytest.mark.parametrize("word", ["cells=", "cells=''"])
def test_no_source_at_all_is_refused(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench.py", "-m", word])
    assert bench.run() == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {word}: names no source; allowed are a packed file")
    assert err.count("\n") == 1
