"""Cold cells on GPUs: how many copies they rotate over, and whether times prove them cold."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moe import build
from moe.parallel.comm import Comm
from moe.spec import Cell, LayerSpec, WorkloadSpec
from moe.step import Step
from moe.workload import batches
from runners.rank import cold_sets, gpu
from runners.rank.cells import CellRunner
from runners.records import cold_proof, stats
from runners.records.cold_proof import judge
from tests.support import analysis_factory as factory
from tests.support.fake_cuda import DEVICE, FakeCuda

MIB = 1 << 20
L2 = 50 * MIB
MEMORY, CACHE = 3e12, 6e12  # bytes per s
WARM = {str(L2 // 4): CACHE, str(L2): CACHE, str(4 * L2): MEMORY}


@pytest.mark.parametrize(
    ("rows", "sets"),
    [
        # bytes used, cache, sets that memory holds, node, GPU
        ([[10 * MIB, L2, 99, 0, 0]], 11),  # 10 of them are twice the cache
        ([[10 * MIB, L2, 99, 0, rank] for rank in range(8)], 11),  # eight GPUs, eight caches
        ([[10 * MIB, L2, 99, node, 0] for node in range(2)], 11),
        ([[10 * MIB, L2, 99, 0, 0] for _ in range(2)], 6),  # two ranks share a cache
        ([[10 * MIB, L2, 99, 0, 0], [4 * MIB, L2, 99, 0, 1]], 26),  # the GPU that needs most
        ([[10 * MIB, L2, 4, 0, 0], [10 * MIB, L2, 99, 0, 1]], 4),  # the rank with least memory
        ([[3 << 30, L2, 5, 0, 0]], 2),
        ([[0, L2, 9999, 0, 0]], cold_sets.SETS_MAX),
    ],
)
def test_every_gpu_needs_twice_its_own_cache(rows: list[list[int]], sets: int) -> None:
    assert cold_sets.count(rows) == sets


def cell(batch: int = 4, topk: int = 2, dtype: str = "bfloat16") -> Cell:
    layer = LayerSpec(
        dim=64, hidden=128, dim_out=64, num_experts=16, topk=topk, topk_requested=topk, dtype=dtype
    )
    return Cell(layer=layer, workload=WorkloadSpec(batch_size=batch, cache="cold"))


def test_few_tokens_read_few_experts() -> None:
    assert cold_sets.reached_share(cell(batch=4)) == 0.5
    assert cold_sets.reached_share(cell(batch=1)) == 0.125
    assert cold_sets.reached_share(cell(batch=100)) == 1.0
    assert cold_sets.reached([3, 0, 0, 1], cell()) == 0.5
    assert cold_sets.reached([0, 0, 0, 0], cell()) == 0.5  # not known


def a_step(of: Cell) -> Step:
    comm = Comm(torch.device("cpu"), 1, 0)
    layer = build.build(of, comm, None)
    return Step(of, layer, batches.inputs(of, 0, comm.device))


def test_what_count_must_know_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    step = a_step(cell())
    weights, tokens = step.layer.weights_bytes(), 4 * 64 * 2
    assert step.x_TD.nbytes == tokens
    monkeypatch.setattr(gpu, "l2_bytes", lambda device: L2)
    monkeypatch.setattr(gpu, "free_bytes", lambda device: 7 * (weights + tokens))
    assert cold_sets.row(step, cell(), (1, 2)) == [weights // 2 + tokens, L2, 1 + 3, 1, 2]


def test_parts_are_the_start_of_every_parameter_in_memory() -> None:
    step = a_step(cell())
    whole = cold_sets.parts(step, 1.0)
    assert sum(part.nbytes for part in whole) == step.layer.weights_bytes() + step.x_TD.nbytes
    assert {part.dtype for part in whole} == {torch.float32}
    assert {part.data_ptr() for part in whole} == {
        tensor.data_ptr() for tensor in [*step.layer.parameters(), step.x_TD]
    }
    half = cold_sets.parts(step, 0.5)
    assert sum(part.nbytes for part in half) == step.layer.weights_bytes() // 2 + step.x_TD.nbytes


class Cache:
    """A cache of L2 bytes that drops what was read longest ago."""

    def __init__(self) -> None:
        self.held: collections.OrderedDict[int, int] = collections.OrderedDict()

    def device_s(self, reads: Sequence[Any], queue: Any) -> float:
        return sum(self.read_s(read.args[0]) for read in reads)

    def read_s(self, part: torch.Tensor) -> float:
        hit = self.held.pop(part.data_ptr(), None) is not None
        self.held[part.data_ptr()] = part.nbytes
        while sum(self.held.values()) > L2:
            self.held.popitem(last=False)
        return part.nbytes / (CACHE if hit else MEMORY)


@pytest.mark.parametrize(("sets", "proven"), [(11, True), (6, True), (4, False), (1, False)])
def test_sets_that_a_cache_holds_are_not_cold(
    monkeypatch: pytest.MonkeyPatch, sets: int, proven: bool
) -> None:
    """Sets of 10 MiB under a cache of 50."""
    tensors = [torch.empty(10 * MIB, dtype=torch.uint8) for _ in range(sets)]
    given = iter(tensors)
    monkeypatch.setattr(cold_sets, "parts", lambda step, share: [next(given)])
    monkeypatch.setattr(cold_sets, "device_s", Cache().device_s)
    monkeypatch.setattr(gpu, "l2_bytes", lambda device: L2)
    steps: Any = [a_step(cell())] * sets
    measured = cold_sets.read_times(steps, 1.0)
    assert measured["bytes"] == 10 * MIB
    assert (measured["sets"], measured["l2_bytes"]) == (sets, L2)
    assert measured["warm_s"] == pytest.approx(10 * MIB / CACHE)
    assert measured["cold_s"] == pytest.approx(10 * MIB / (MEMORY if proven else CACHE))
    assert judge(measured, MEMORY, WARM).proven == proven


@pytest.mark.parametrize(
    ("size", "cold_us", "warm_us", "proven"),
    [
        (30e6, 11.0, 6.0, True),  # 10 us from memory, 5 from the cache, and a microsecond
        (30e6, 6.1, 6.0, False),  # silently warm
        (30e6, 8.1, 8.0, False),  # longer than 80% of 10 us by its launches alone
        (30e6, 8.1, 6.0, True),
        (30e6, 7.9, 4.0, False),
        (3e9, 1000.0, 1000.0, True),  # no cache holds it: both are equal
        (3e9, 500.0, 500.0, False),  # faster than memory
        (3e5, 3.0, 3.0, True),  # nothing to see: 0.1 us from memory, and the rest is its launches
    ],
)
def test_a_proof_by_hand(size: float, cold_us: float, warm_us: float, proven: bool) -> None:
    times = {"bytes": size, "cold_s": cold_us / 1e6, "warm_s": warm_us / 1e6}
    assert judge(times, MEMORY, WARM).proven == proven


def test_the_expected_ratio_is_that_of_the_rates() -> None:
    times = {"bytes": 30e6, "cold_s": 1e-5, "warm_s": 5e-6}
    assert judge(times, MEMORY, WARM).expected_ratio == pytest.approx(2.0)
    assert judge({**times, "bytes": 100e6}, MEMORY, WARM).expected_ratio == 1.0
    assert judge({**times, "bytes": 1e9}, MEMORY, WARM).expected_ratio == 1.0


def test_a_record_whose_sets_were_warm_on_one_rank_is_flagged() -> None:
    cold = {"bytes": 30e6, "sets": 5, "l2_bytes": L2, "cold_s": 1.1e-5, "warm_s": 6e-6}
    warm = {**cold, "cold_s": 6e-6}
    rates = {"read_bytes_per_s": MEMORY, "read_warm_bytes_per_s": WARM}
    calibration = {**factory.CALIBRATION, **rates}
    one = factory.measured(factory.cell("ep", ranks=2), calibration=calibration)
    for caches, flagged in (([cold, cold], False), ([cold, warm], True)):
        ranks = [{**(one.memory or [])[0], "cache": cache} for cache in caches]
        of_gpus = dataclasses.replace(one, memory=ranks)
        assert ("not_cold" in stats.flags(of_gpus)) == flagged
        assert [proof.proven for proof in cold_proof.of_record(of_gpus)] == [True, not flagged]
        assert "not_cold" not in stats.flags(dataclasses.replace(of_gpus, calibration=None))
    assert cold_proof.of_record(one) == []


def test_a_cold_cell_on_a_gpu_is_rotated_and_its_reading_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the simulated GPU, whose time is the number of kernels: 50 MiB of cache, and two of 16
    experts that a token reaches."""
    monkeypatch.setattr(cold_sets, "SETS_MAX", 20)
    of = cell(batch=1)
    logged: dict[str, Any] = {}
    log: Any = SimpleNamespace(write=lambda event, cell, name, value: logged.update({name: value}))
    measure = SimpleNamespace(phases=0)
    plan: Any = SimpleNamespace(
        cells=[of], kernels={}, measure=measure, launch=0, launch_dir="", placement=of.placement
    )
    ranks: Any = SimpleNamespace(place=SimpleNamespace(node=0), gather=lambda row: [row])
    with FakeCuda():
        runner = CellRunner(plan, Comm(DEVICE, 1, 0), ranks, log)
        assert runner.verify(0)
        assert len(runner.built[0].steps) == 20
        runner.inspect(0)
    cache = logged["memory"]["cache"]
    weights = logged["memory"]["weights_bytes"]
    assert cache["sets"] == 20
    assert cache["bytes"] == pytest.approx(weights / 8 + 64 * 2, abs=64)
    assert cache["cold_s"] > 0
    assert cache["warm_s"] > 0
