"""Kernels that run out of a GPU's memory, by errors raised by hand on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moe import weights
from moe.layer import kernel_choice
from moe.layer.experts import Experts
from moe.layer.out_of_memory import is_out_of_memory, out_of_memory_text
from moe.parallel.comm import Comm
from moe.parallel.row_counts import RowCounts
from moe.spec import Cell, LayerSpec, StrategySpec, WorkloadSpec
from moe.strategies.simple.layer import Simple
from moe.workload import batches

LAYER = LayerSpec(dim=8, hidden=16, dim_out=12, num_experts=4, topk=2, topk_requested=2)
CPU = torch.device("cpu")
TORCHS = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 3.10 GiB is free. Including non-PyTorch memory, this process has 76.00 GiB memory in "
    "use.\nSee the documentation"
)


def cell(mode: str) -> Cell:
    return Cell(LAYER, StrategySpec("simple"), WorkloadSpec(batch_size=6, mode=mode))


def failing(names: set[str], real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An Experts method that does its work, and then has no memory if the kernel is of `names`."""

    def method(self: Experts, *arguments: Any) -> Tensor:
        y = real(self, *arguments)
        if self.kernel in names:
            raise torch.OutOfMemoryError(TORCHS)
        return y

    return method


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("names", [{"bmm"}, {"bmm", "bmm_t", "dense", "grouped"}])
def test_a_kernel_that_runs_out_is_out_of_the_choice_and_named(
    mode: str, names: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("rows", "dense"):
        monkeypatch.setattr(Experts, method, failing(names, getattr(Experts, method)))
    of = cell(mode)
    layer = Simple(of, Comm(CPU, 1, 0))
    tried = set(layer.experts.variants("auto", torch.float32))
    chosen = layer.tune(batches.inputs(of, 0, CPU))
    assert chosen["out_of_memory"] == sorted(names & tried)
    assert set(chosen["candidates_ms"]) == tried - names
    assert chosen["name"] in tried - names
    assert layer.experts.kernel == chosen["name"]
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_where_every_kernel_runs_out_so_does_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Simple(cell("forward"), Comm(CPU, 1, 0))
    every = set(layer.experts.variants("auto", torch.float32))
    x_TD = batches.inputs(layer.cell, 0, CPU)

    def stage(*arguments: object) -> tuple[Callable[[], None], set[str]]:
        def call() -> None:
            raise torch.OutOfMemoryError(TORCHS)

        return call, set()

    monkeypatch.setattr(kernel_choice, "replay", stage)
    with pytest.raises(torch.OutOfMemoryError, match="not enough for any kernel: loop, ") as caught:
        layer.tune(x_TD)
    assert all(name in str(caught.value) for name in every)


def test_nothing_is_said_of_memory_where_there_was_enough() -> None:
    layer = Simple(cell("forward"), Comm(CPU, 1, 0))
    assert "out_of_memory" not in layer.tune(batches.inputs(layer.cell, 0, CPU))


def test_another_error_of_a_kernel_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(self: Experts, *arguments: object) -> Tensor:
        if self.kernel == "bmm":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(self, *arguments)

    real: Callable[..., Tensor] = Experts.rows
    monkeypatch.setattr(Experts, "rows", rows)
    layer = Simple(cell("forward"), Comm(CPU, 1, 0))
    with pytest.raises(RuntimeError, match="can't allocate"):
        layer.tune(batches.inputs(layer.cell, 0, CPU))


class OtherRank(Comm):
    """Of two ranks, the one here has enough memory, the other has not for `names`."""

    def __init__(self, tried: list[str], names: set[str]) -> None:
        super().__init__(CPU, 1, 0)
        self.tried, self.names = tried, names
        self.world = self  # type: ignore[assignment]

    def combine_(self, times_ms: Tensor, operation: str) -> Tensor:
        assert operation == "max"
        for i in range(len(times_ms)):
            if self.tried[-len(times_ms) + i] in self.names:
                times_ms[i] = torch.inf
        return times_ms


def test_a_kernel_that_runs_out_on_another_rank_is_out_here_too() -> None:
    used: list[str] = []
    chosen = kernel_choice.choose(
        ["a", "b", "c"], lambda: None, used.append, OtherRank(used, {"a", "c"})
    )
    assert (chosen["name"], used[-1], chosen["out_of_memory"]) == ("b", "b", ["a", "c"])
    assert list(chosen["candidates_ms"]) == ["b"]


def test_a_kernel_that_runs_out_later_is_out_too() -> None:
    """The first look is short; in the next pass it asks for more."""
    calls = {"a": 0, "b": 0}
    used: list[str] = []

    def call() -> None:
        calls[used[-1]] += 1
        if used[-1] == "a" and used.count("a") == 2:
            raise torch.OutOfMemoryError(TORCHS)

    class Equal(OtherRank):
        def combine_(self, times_ms: Tensor, operation: str) -> Tensor:
            return times_ms.copy_(torch.where(times_ms.isinf(), times_ms, 1.0))

    chosen = kernel_choice.choose(["a", "b"], call, used.append, Equal(used, set()))
    assert (chosen["name"], chosen["out_of_memory"]) == ("b", ["a"])
    assert chosen["candidates_ms"] == {"b": 1.0}


@pytest.mark.parametrize("fails_at", [1, 2])
@pytest.mark.parametrize("then", ["loop", "dense", "bmm_t"])
def test_weights_are_right_after_a_change_of_layout_that_had_no_memory(
    fails_at: int, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = Experts(LAYER, range(4), (0, 16), CPU)
    x_SD, counts = torch.randn(6, 8), RowCounts([1, 2, 0, 3])
    want = experts.rows(x_SD, counts).detach()
    copied, real = 0, Tensor.contiguous

    def contiguous(self: Tensor) -> Tensor:
        nonlocal copied
        copied += 1
        if copied == fails_at:
            raise torch.OutOfMemoryError(TORCHS)
        return real(self)

    monkeypatch.setattr(Tensor, "contiguous", contiguous)
    with pytest.raises(torch.OutOfMemoryError):
        experts.use("bmm_t")
    monkeypatch.undo()
    experts.use(then)
    assert torch.allclose(experts.rows(x_SD, counts), want, atol=1e-5)
    tensors = {"fc1": experts.fc1, "fc2": experts.fc2, "b1": experts.b1, "b2": experts.b2}
    for expert, matrices in experts.by_expert(tensors):  # type: ignore[arg-type]
        for name, matrix in matrices.items():
            assert torch.equal(matrix, weights.sliced(LAYER, expert, name, (0, 16))), (then, name)


def test_the_error_says_what_was_asked_for_and_what_was_free() -> None:
    error = torch.OutOfMemoryError(TORCHS)
    words = "ran out of GPU memory: 20.00 GiB were asked for, 3.10 GiB were free"
    assert out_of_memory_text(error) == words
    bare = torch.OutOfMemoryError("none for any kernel\nmore")
    assert out_of_memory_text(bare) == "ran out of GPU memory: none for any kernel"
    assert out_of_memory_text(torch.OutOfMemoryError()) == "ran out of GPU memory"


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("any"), True),
        (torch.cuda.OutOfMemoryError("any"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), False),
        (MemoryError(), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
)
def test_what_counts_as_running_out_of_a_gpus_memory(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one
