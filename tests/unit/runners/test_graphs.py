"""measure.graph from the command line to the jobs of a sweep; nothing is started."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from runners.config.validate import validate
from runners.host.machine import NodeResources
from runners.plan import Job
from runners.sweep import entry
from tests.support import bad_input

ON_CPU = (
    "error: measure.graph=on: allowed is off but on GPUs with backend=nccl; set measure.graph=off"
)


def asked(words: list[str], folder: Path, gpus: int = 1) -> tuple[bad_input.Answer, list[Job]]:
    """What the bench says on a machine with so many GPUs, and the jobs of its sweep."""
    valid: dict[int, Job] = {}

    def seen(*arguments: Any) -> tuple[Mapping[int, Job], Mapping[int, str]]:
        jobs, errors = validate(*arguments)
        valid.update(jobs)
        return jobs, errors

    machine = NodeResources(cores=2, cuda_devices=gpus)
    with (
        mock.patch.object(entry, "this_machine", lambda: machine),
        mock.patch.object(entry, "validate", seen),
    ):
        answer = bad_input.ask([*words, "world_size=1"], folder)
    return answer, list(valid.values())


def graphs(jobs: list[Job]) -> list[tuple[str, str]]:
    return [(job.cell.strategy.name, job.cell.strategy.graph) for job in jobs]


@pytest.mark.parametrize("words, cells", [
    ([], [("simple", "off")]),
    (["measure.graph=on"], [("simple", "on")]),
    (["measure.graph=both"], [("simple", "off"), ("simple", "on")]),
    (["-m", "strategy=simple,tp", "measure.graph=both"],
     [("simple", "off"), ("simple", "on"), ("tp", "off"), ("tp", "on")]),
    (["-m", "strategy=simple,tp", "measure.graph=off,on"],
     [("simple", "off"), ("simple", "on"), ("tp", "off"), ("tp", "on")]),
], ids=str)  # fmt: skip
def test_both_is_a_cell_without_graphs_and_one_with(
    words: list[str], cells: list[tuple[str, str]], tmp_path: Path
) -> None:
    words = ["strategy=simple", *words] if "-m" not in words else words
    answer, jobs = asked(words, tmp_path)
    assert (answer.code, answer.would_run) == (0, True)
    assert sorted(graphs(jobs)) == sorted(cells)
    assert len({job.key for job in jobs}) == len(cells)
    assert {job.cell.placement.device for job in jobs} == {"cuda"}


def test_the_two_cells_differ_in_nothing_else(tmp_path: Path) -> None:
    _, (eager, graph) = asked(["measure.graph=both"], tmp_path)
    assert eager.measure == graph.measure
    assert eager.cell.layer == graph.cell.layer
    assert eager.cell.workload == graph.cell.workload
    assert eager.cell.placement == graph.cell.placement
    assert [one.config["measure"]["graph"] for one in (eager, graph)] == ["off", "on"]


@pytest.mark.parametrize("graph", ["on", "both"])
def test_on_a_processor_it_is_refused_before_anything_starts(graph: str, tmp_path: Path) -> None:
    answer, _ = asked([f"measure.graph={graph}"], tmp_path, gpus=0)
    assert (answer.code, answer.would_run, answer.lines) == (2, False, [ON_CPU])


def test_a_cell_that_cannot_be_captured_is_skipped_where_the_user_says_so(tmp_path: Path) -> None:
    words = ["measure.graph=both", "strategy=ep", "strategy.dispatcher=alltoall"]
    answer, _ = asked(words, tmp_path)
    assert (answer.code, answer.would_run) == (2, False)
    assert "strategy.dispatcher=alltoall" in answer.lines[0]
    answer, jobs = asked([*words, "on_invalid=skip"], tmp_path)
    assert answer.would_run
    assert graphs(jobs) == [("ep", "off")]


@pytest.mark.parametrize("value", ["1", "yes", "auto", "null"])
def test_another_word_is_refused(value: str, tmp_path: Path) -> None:
    answer, _ = asked([f"measure.graph={value}"], tmp_path)
    assert answer.code == 2
    assert len(answer.lines) == 1 and "off, on, both" in answer.lines[0]
