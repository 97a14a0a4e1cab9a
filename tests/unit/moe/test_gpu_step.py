"""A step's CUDA graph on the simulated GPU: what is refused, what is held."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moe import step as step_module
from moe.build import build
from moe.parallel.comm import Comm
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, Unsupported, WorkloadSpec
from moe.step import Step, release_graphs
from moe.workload import batches
from tests.support.fake_cuda import DEVICE, FakeCuda

LAYER = LayerSpec(dim=32, hidden=64, dim_out=32, activation="silu_gated", bias="none",
                  dtype="bfloat16")  # fmt: skip


def step_of(kernel: str = "grouped", mode: str = "forward") -> Step:
    strategy = StrategySpec("simple", kernel=kernel, graph="on")
    work = WorkloadSpec(batch_size=16, mode=mode)
    cell = Cell(LAYER, strategy, work, RankLayout(1, "nccl", "cuda", 1))
    comm = Comm(DEVICE, 1, 0)
    return Step(cell, build_of(cell, comm), batches.inputs(cell, 0, DEVICE))


def build_of(cell: Cell, comm: Comm) -> Any:
    """The layer, also where the cell is refused by name."""
    from moe.strategies.simple.layer import Simple

    return build(cell, comm) if cell.strategy.kernel == "grouped" else Simple(cell, comm)


def test_a_step_that_waits_is_refused_before_its_capture() -> None:
    with FakeCuda(), pytest.raises(Unsupported, match="off for a step that waits"):
        step_of("loop")


def test_graphs_live_until_they_are_released() -> None:
    release_graphs()
    with FakeCuda():
        for number in (1, 2):
            step_of()
            assert len(step_module._graphs) == number
        release_graphs()
        assert step_module._graphs == []


def test_no_gradient_of_the_warm_up_is_held_through_the_capture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[bool] = []
    with FakeCuda():
        capture = torch.cuda.graph

        def noting(graph: Any, **rest: Any) -> Any:
            held.extend(leaf.grad is not None for leaf in leaves)
            return capture(graph, **rest)

        leaves: list[torch.Tensor] = []
        made = step_module._captured

        def captured(call: Any, given: Any, device: torch.device) -> Any:
            leaves.extend(given)
            return made(call, given, device)

        monkeypatch.setattr(torch.cuda, "graph", noting)
        monkeypatch.setattr(step_module, "_captured", captured)
        step = step_of(mode="train")
        assert held and not any(held)
        step()
        assert all(leaf.grad is not None for leaf in leaves)
    release_graphs()


def test_the_stream_is_put_back_where_a_capture_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    back: list[Any] = []
    with FakeCuda():
        monkeypatch.setattr(torch.cuda, "set_stream", back.append)

        def failing(graph: Any, **rest: Any) -> Any:
            raise RuntimeError("capture failed")

        monkeypatch.setattr(torch.cuda, "graph", failing)
        with pytest.raises(RuntimeError, match="capture failed"):
            step_of()
    assert len(back) == 1
