"""Predictions: closed forms by hand, monotonicity, and a fit that finds what made the data."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest

import analysis
from analysis import cli
from analysis.data.cell_summary import summaries
from analysis.errors import InputError
from analysis.predict import command, features, fit, hardware, model, network, problem
from analysis.predict.fit import Measured
from analysis.predict.hardware import HardwareModel, Link
from analysis.predict.model import Coefficients
from analysis.stats import summarize
from moe.cost import Call
from moe.parallel.traffic import GroupShape
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec
from tests.support import analysis_factory as factory

TWO_TIERS = HardwareModel(
    "test", 4, 1e9, {"float32": 1e12, "bfloat16": 2e12}, 1e11,
    intra=Link(1e10, 1e-6), inter=Link(1e9, 1e-5, 1e-6),
)  # fmt: skip
KNOWN = {("", "operations"): 3e-6, ("", "experts"): 5e-6, ("", "matrix"): 1.5, ("", "read"): 1.2,
         ("", "move"): 2.0, ("", "alpha"): 1.1, ("", "wire"): 1.3}  # fmt: skip


def cell(name: str = "ep", ranks: int = 4, batch: int = 1024, topk: int = 2, dim: int = 64) -> Cell:
    layer = LayerSpec(dim, 2 * dim, dim, num_experts=8, topk=topk, topk_requested=topk)
    strategy = StrategySpec(name, "alltoall" if name == "ep" else "local", kernel="loop")
    work = WorkloadSpec(batch_size=batch, tokens="sharded")
    return Cell(layer, strategy, work, RankLayout(world_size=ranks))


def test_all_to_all_takes_the_slower_tier() -> None:
    # 8 ranks, 4 a node: of 7 others 3 are near and 4 far
    call = Call("all_to_all", GroupShape("world", 8, 1), "dispatch", 7e6, 7e6)
    times = network.call_times(call, TWO_TIERS)
    assert times.wire_s == pytest.approx(max(3e6 / 1e10, 4e6 / 1e9))
    assert times.alpha_s == pytest.approx(1e-5 + 7 * 1e-6)
    near = Call("all_to_all", GroupShape("world", 4, 1), "dispatch", 3e6, 3e6)
    assert network.call_times(near, TWO_TIERS).total_s == pytest.approx(1e-6 + 3e6 / 1e10)


def test_rings_share_a_nodes_ports() -> None:
    # 8 ranks x 1 MB gathered: X = 8 MB; half of it enters a node through 4 ports
    call = Call("all_gather", GroupShape("world", 8, 1), "combine", 7e6, 7e6)
    wire = network.call_times(call, TWO_TIERS).wire_s
    assert wire == pytest.approx(max(7e6 / 1e10, 8e6 * 0.5 / 4 / 1e9))


def test_strided_groups_leave_the_node_sooner() -> None:
    assert network.members_per_node(8, 1, 4) == 4
    assert network.members_per_node(8, 2, 4) == 2
    assert network.members_per_node(4, 8, 4) == 1


def test_chunks_overlap_as_a_pipeline() -> None:
    phases = {"dispatch": 2.0, "experts": 6.0, "combine": 4.0, "router": 1.0}
    assert model.overlapped_s(phases, 1) == 13.0
    assert model.overlapped_s(phases, 2) == 1 + 12 / 2 + 6 / 2


def test_cold_and_warm_reads_meet() -> None:
    made = dataclasses.replace(TWO_TIERS, read_warm=((1e6, 4e11), (4e6, 2e11)))
    assert made.read_rate(1e5) == 4e11
    assert made.read_rate(2e6) == pytest.approx(math.sqrt(4e11 * 2e11))
    assert made.read_rate(1e9) == 1e11


def test_much_that_is_freed_has_to_be_mapped_again() -> None:
    """4 (D + 2 H + O) = 1536 bytes a slot; all-to-all: 4 (D + O) a row on either side as well."""
    here = dataclasses.replace(TWO_TIERS, calibrated=True)

    def fresh(made: Cell, on: HardwareModel = here) -> float | None:
        return features.terms(features.busiest(made), on).get(("experts", "fresh"))

    assert fresh(cell("simple", 1, 8192)) is None  # 25 MB
    large = cell("simple", 1, 16384)
    assert fresh(large) == pytest.approx(32768 * 1536 / 1e11)
    assert fresh(large, TWO_TIERS) is None
    on_gpu = dataclasses.replace(large.placement, device="cuda")
    assert fresh(dataclasses.replace(large, placement=on_gpu)) is None
    both_ways = 16384 * 1536 + 2 * 16384 * 512
    assert fresh(cell("ep", 4, 32768)) == pytest.approx(both_ways / 1e11)


@pytest.mark.parametrize("name", ["ep", "tp", "simple"])
def test_more_work_never_takes_less_time(name: str) -> None:
    coefficients = Coefficients(KNOWN)

    def time(made: Cell, skew: float = 1.0) -> float:
        return model.time_s(made, TWO_TIERS, coefficients, skew)[1]

    assert time(cell(name)) < time(cell(name, batch=2048))
    assert time(cell(name)) < time(cell(name, topk=4))
    assert time(cell(name)) < time(cell(name, dim=128))
    assert time(cell(name)) <= time(cell(name), 1.5)


def synthetic(noise: float = 0.0) -> list[Measured]:
    truth = Coefficients(KNOWN)
    found = []
    for number, (name, batch, topk, dim) in enumerate(
        (n, b, k, d) for n in ("ep", "simple") for b in (64, 256, 1024) for k in (1, 2, 4)
        for d in (64, 256, 1024)
    ):  # fmt: skip
        of = cell(name, 2, batch, topk, dim)
        phases = model.phases_s(features.terms(features.busiest(of), TWO_TIERS), truth)
        factor = math.exp(noise * math.sin(7.0 * number))
        total = sum(phases.values()) * factor
        found.append(Measured(of, TWO_TIERS, total, {k: v * factor for k, v in phases.items()}))
    return found


def test_a_fit_finds_what_made_the_data() -> None:
    made = fit.fit(synthetic())
    assert made.error < 0.02
    assert made.values["experts", "matrix"] == pytest.approx(1.5, rel=0.1)
    assert made.values["experts", "experts"] == pytest.approx(5e-6, rel=0.1)
    noisy = fit.fit(synthetic(0.1))
    assert 0.02 < noisy.error < 0.15
    assert noisy.spread > made.spread


def test_what_lies_outside_of_the_records_is_said_and_gets_a_wider_interval() -> None:
    made = fit.fit(synthetic(0.05))
    inside = model.predict(cell("ep", 2, 256), TWO_TIERS, made)
    beyond = model.predict(cell("ep", 4, 256), TWO_TIERS, made)
    assert (inside.status, beyond.status) == ("interpolated", "extrapolated")
    assert "world_size 4 (measured 2 to 2)" in beyond.reason
    assert beyond.high_ms / beyond.total_ms > inside.high_ms / inside.total_ms


def test_few_cells_and_unknown_clusters_are_refused() -> None:
    with pytest.raises(InputError, match="measured cells"):
        fit.fit(synthetic()[:3])
    with pytest.raises(InputError, match="h100"):
        hardware.load("nowhere")
    assert problem.world_sizes("8..64") == [8, 16, 32, 64]
    with pytest.raises(InputError, match="--world-size"):
        problem.world_sizes("8..x")


@pytest.mark.parametrize("cluster", ["h100", "h200", "ethernet"])
def test_the_verbs_answer_for_every_cluster(
    cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--cluster", cluster, "--model", "mixtral_8x7b"]
    assert cli.main(["predict", *common, "--world-size", "8..4096", "--strategy", "tp"]) == 0
    text = capsys.readouterr().out
    assert "OUT OF MEMORY" in text
    assert "extrapolated" in text
    assert cli.main(["advise", *common, "--world-size", "8", "--skew", "1.5"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("For prefill with 4,096 tokens a rank on 8 ranks")
    assert "The runner-up, " in text
    assert "python runners/bench.py -m strategy=" in " ".join(text.split())


GIB = 1 << 30


def here(tmp_path: Path, sizes: list[int | None], *words: str) -> list[str]:
    """The rows of `predict` on the machine of records, which say so much memory in turn."""
    records = factory.rich_records()
    for number, made in enumerate(records):
        size = sizes[number % len(sizes)]
        made.environment["memory_total_bytes"] = size
    folder = factory.write_all(tmp_path / str(sizes), records)
    common = ["--strategy", "simple", "--format", "csv", *words]
    cells = summaries(summarize.summarize(analysis.load(folder)))
    answer = command.predict(cli.parser().parse_args(["predict", *common]), cells)
    text = answer.text("csv")
    return [line for line in text.splitlines() if re.match(r"\d+,simple", line)]


@pytest.mark.parametrize(("size", "fits"), [(96, True), (40, False)])
def test_memory_of_the_machine_of_the_records(tmp_path: Path, size: int, fits: bool) -> None:
    """Mixtral's layer is 5.3 GiB in float32: 16 whole copies fit 96 GiB, and 8 of them not 40."""
    words = ["--model", "mixtral_8x7b", "--batch-size", "64", "--world-size"]
    for ranks in ("16", "8"):
        rows = here(tmp_path, [size * GIB, None], *words, ranks)
        assert len(rows) == 1
        assert ("OUT OF MEMORY" not in rows[0]) is fits


def test_memory_of_several_machines_and_of_none(tmp_path: Path) -> None:
    words = ["--model", "mixtral_8x7b", "--batch-size", "64", "--world-size", "8"]
    assert "OUT OF MEMORY" in here(tmp_path, [1000 * GIB, 16 * GIB], *words)[0]
    assert "OUT OF MEMORY" not in here(tmp_path, [None], *words)[0]


@pytest.mark.parametrize("odd", [
    {"shared": 5}, {"ranks": "x"}, {"ranks": 3, "collectives": [1]}, {"read_warm_bytes_per_s": 1},
    {"shared": {"matmul_flops_per_s": {"float32": "fast"}}}, {"matmul_flops_per_s": None},
])  # fmt: skip
def test_an_odd_calibration_is_passed_over(tmp_path: Path, odd: dict[str, Any]) -> None:
    """Of one record: what the others say is used, and no limit is told of its cell."""
    records = factory.rich_records()
    records[3].calibration = {**factory.CALIBRATION, **odd}
    folder = factory.write_all(tmp_path, records)
    cells = summaries(summarize.summarize(analysis.load(folder)))
    words = ["predict", "--world-size", "8,3", "--strategy", "simple"]
    answer = command.predict(cli.parser().parse_args(words), cells)
    assert "simple" in answer.text("text")
    assert cli.main(["check", str(folder)]) == 1


def test_what_was_measured_had_the_memory(tmp_path: Path) -> None:
    rows = here(tmp_path, [1 << 20], "--world-size", "8,16")
    assert ["OUT OF MEMORY" in row for row in rows] == [False, True]
    assert "measured" in rows[0]


@pytest.mark.parametrize("name", hardware.names())
def test_every_cluster_loads(name: str) -> None:
    if name == "here":  # its rates are those of the records' calibration
        with pytest.raises(InputError, match="from_calibration"):
            hardware.load(name)
        return
    found = hardware.load(name)
    assert found.name == name
    assert found.ranks_per_node >= 1
    assert set(found.matrix_flops_per_s) >= {"float32", "bfloat16"}
