"""The choice of a kernel on the simulated GPU, whose time is the number of kernels that ran."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from moe.layer import kernel_choice
from moe.layer.gpu_time import HeldQueue
from moe.parallel.comm import Comm
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec
from moe.strategies.simple.layer import Simple
from moe.workload import batches
from tests.support.fake_cuda import DEVICE, FakeCuda

# (ns on the host, kernels): `few` gives the GPU less to do, and takes longer to launch.
COSTS = {"many": (1_000_000, 10), "few": (2_000_000, 1)}


@pytest.mark.parametrize(("captured", "name"), [(False, "many"), (True, "few")])
def test_launches_count_unless_a_graph_replays_the_step(
    captured: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns = 0
    clock = SimpleNamespace(monotonic_ns=lambda: now_ns)
    monkeypatch.setattr(kernel_choice, "time", clock)
    used: list[str] = []
    with FakeCuda():
        x = torch.ones(4, device=DEVICE)

        def call() -> None:
            nonlocal now_ns
            host_ns, kernels = COSTS[used[-1]]
            now_ns += host_ns
            for _ in range(kernels):
                x.add_(1)

        comm = Comm(DEVICE, 1, 0)
        choice = kernel_choice.choose(list(COSTS), call, used.append, comm, captured)
    assert (choice["name"], choice["how"], used[-1]) == (name, "measured", name)
    expected = {"many": 0.01, "few": 0.001} if captured else {"many": 1, "few": 2}
    assert choice["candidates_ms"] == pytest.approx(expected)


@pytest.mark.parametrize("graph", ["on", "off"])
def test_the_layer_of_a_graph_is_tuned_by_the_gpu_s_time(
    graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = LayerSpec(dim=32, hidden=64, dim_out=32, bias="none", dtype="bfloat16")
    place = RankLayout(1, "nccl", "cuda", 1)
    cell = Cell(layer, StrategySpec("simple", graph=graph), WorkloadSpec(batch_size=16), place)
    with FakeCuda():
        holds: list[int] = []
        monkeypatch.setattr(torch.cuda, "_sleep", holds.append)
        tuned = Simple(cell, Comm(DEVICE, 1, 0))
        tuned.tune(batches.inputs(cell, 0, DEVICE))
    assert bool(holds) == (graph == "on")


def test_a_gpu_is_held_until_all_is_enqueued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two holds are over too soon; the third, four times as long, is kept for the next call."""
    held: list[int] = []
    with FakeCuda() as gpu:

        def sleep(cycles: int) -> None:
            held.append(cycles)
            gpu.held = cycles >= 16_000_000

        monkeypatch.setattr(torch.cuda, "_sleep", sleep)
        queue, x = HeldQueue(), torch.ones(4, device=DEVICE)
        assert [queue.ms(lambda: x.add_(1)) for _ in range(2)] == [0.001, 0.001]
    assert held == [4_000_000, 8_000_000, 16_000_000, 16_000_000]


def test_a_host_that_is_always_late_is_timed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeCuda():
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
        x = torch.ones(4, device=DEVICE)
        assert HeldQueue().ms(lambda: x.add_(1)) == 0.001
