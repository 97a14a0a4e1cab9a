"""What a calibration measures on a GPU, with a fake clock and fake sizes of its memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runners.rank import calibrate, gpu, gpu_probe, links, probe
from runners.rank.gpu_probe import GpuMemory
from runners.records import calibrations as limits
from tests.dist.test_calibrate import COSTS, Clock, calibration, on_ranks
from tests.support.ranks import run_ranks

CUDA = torch.device("cuda", 0)
GIB, MIB, KIB = 1 << 30, 1 << 20, 1 << 10
L2 = 50 * MIB


@pytest.fixture(autouse=True)
def an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "l2_bytes", lambda device: L2)
    monkeypatch.setattr(gpu, "free_bytes", lambda device: 80 * GIB)
    monkeypatch.setattr(probe.Probe, "sync", lambda self: None)


def a_probe(clock: Clock) -> probe.Probe:
    """Of a GPU, whose tensors are on the processor."""
    one = probe.Probe(torch.device("cpu"), clock, clock.pass_)
    one.device = CUDA
    return one


def a_memory(clock: Clock, free_bytes: int, monkeypatch: pytest.MonkeyPatch) -> GpuMemory:
    monkeypatch.setattr(gpu, "free_bytes", lambda device: free_bytes)
    one = a_probe(clock)
    one.device = torch.device("cpu")
    memory = GpuMemory(one)
    one.device = CUDA
    return memory


def test_chunks_are_a_gib_or_a_quarter_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = a_memory(Clock(), 64 * MIB, monkeypatch)
    assert memory.chunk_bytes == 16 * MIB
    assert [chunk.nbytes for chunk in memory.chunks] == [16 * MIB, 16 * MIB]
    assert memory.chunk().data_ptr() != memory.chunk().data_ptr()
    monkeypatch.setattr(gpu_probe, "CHUNK_BYTES", 8 * MIB)
    assert a_memory(Clock(), 64 * MIB, monkeypatch).chunk_bytes == 8 * MIB
    assert gpu_probe.CHUNK_BYTES == 8 * MIB


def test_a_chunk_is_far_larger_than_the_cache_of_a_gpu() -> None:
    assert gpu_probe.CHUNK_BYTES == GIB >= 20 * L2


def test_warm_sizes_lie_around_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = a_memory(Clock(), 64 * MIB, monkeypatch)
    memory.chunk_bytes = GIB
    sizes = memory.warm_sizes()
    assert sizes == [3 * MIB + 128 * KIB, 12 * MIB + 512 * KIB, 25 * MIB, L2, 2 * L2, 4 * L2]
    memory.chunk_bytes = 30 * MIB
    assert memory.warm_sizes() == sizes[:3]


@pytest.mark.parametrize(("copy_s", "read"), [(0.5, 4.0), (2.0, 1.25)])
def test_memory_reads_at_least_as_fast_as_it_copies(
    monkeypatch: pytest.MonkeyPatch, copy_s: float, read: float
) -> None:
    """In chunks per s: a sum takes 1 s, a product 0.8 s; a copy moves two chunks."""
    clock = Clock()
    memory = a_memory(clock, 64 * MIB, monkeypatch)
    monkeypatch.setattr(memory, "sum", lambda: clock.pass_(1.0))
    monkeypatch.setattr(memory, "product", lambda: clock.pass_(0.8))
    monkeypatch.setattr(memory, "copy", lambda: clock.pass_(copy_s))
    monkeypatch.setattr(memory, "warm_s", lambda size, share_s: 0.25)
    rates = memory.rates(10.0)
    assert rates["read_bytes_per_s"] == pytest.approx(read * 16 * MIB)
    assert rates["copy_bytes_per_s"] == pytest.approx(2 * 16 * MIB / copy_s)
    assert rates["l2_bytes"] == L2
    assert rates["read_warm_bytes_per_s"][str(12 * MIB + 512 * KIB)] == 4 * (12 * MIB + 512 * KIB)


def test_small_sizes_are_read_many_times_in_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_probe, "WARM_READ_BYTES", 16 * MIB)
    memory = a_memory(Clock(), 64 * MIB, monkeypatch)
    calls: list[Callable[[], Any]] = []

    def best_s(self: probe.Probe, step: Callable[[], Any], budget_s: float) -> float:
        calls.append(step)
        return 4.0 if len(calls) == 1 else 3.0

    monkeypatch.setattr(probe.Probe, "best_s", best_s)
    assert memory.warm_s(4 * MIB, 1.0) == 1.0  # four times in 4 s
    assert calls[0]().shape == (4,)
    once = memory.chunks[0][:MIB].double().sum().item()
    assert calls[0]().tolist() == pytest.approx([once] * 4, abs=1.0)


def test_a_call_on_a_gpu_is_timed_in_blocks_that_fit_the_time() -> None:
    clock, calls = Clock(), [0]

    def step() -> None:
        calls[0] += 1
        clock.pass_(1e-3)

    assert a_probe(clock).best_s(step, 1.0) == pytest.approx(1e-3)
    assert clock() <= 101.0 + 1e-6
    assert calls[0] > 500
    slow = Clock()
    assert a_probe(slow).best_s(lambda: slow.pass_(3.0), 1.0) == 3.0
    assert slow() == 106.0  # the first call may load the kernel


def test_the_first_call_of_a_kernel_is_not_its_time() -> None:
    clock = Clock()
    times = iter([5.0, 0.1, *[0.1] * 1000])
    assert a_probe(clock).best_s(lambda: clock.pass_(next(times)), 0.01) == pytest.approx(0.1)


def test_costs_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch of 8 us, a wait of 10 us more, copies of 64 MiB in 1.25 and 2.5 ms."""
    clock, real = Clock(), torch.empty
    one = a_probe(clock)
    one.device = torch.device("cpu")

    def empty(*size: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        tensor = cast(Any, real(1, **options).as_subclass(Pinned if pin_memory else OnGpu))
        tensor.clock = clock
        return cast(torch.Tensor, tensor)

    class OnGpu(torch.Tensor):
        clock: Clock
        took_s = 1.25e-3

        def copy_(self, other: Any, non_blocking: bool = False) -> Any:
            assert non_blocking
            self.clock.pass_(self.took_s)
            return self

    class Pinned(OnGpu):
        took_s = 2.5e-3

    class Number:
        def add_(self, value: float) -> Number:
            clock.pass_(8e-6)
            return self

        def item(self) -> None:
            clock.pass_(10e-6)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: Number())
    monkeypatch.setattr(gpu_probe.hardware, "memory_bytes", lambda: {"MemAvailable": 64 * GIB})
    costs = gpu_probe.device_costs(one, clock() + 1.0)
    assert costs["launch_s"] == pytest.approx(8e-6)
    assert costs["wait_s"] == pytest.approx(18e-6)
    assert costs["host_to_device_bytes_per_s"] == pytest.approx(64 * MIB / 1.25e-3)
    assert costs["device_to_host_bytes_per_s"] == pytest.approx(64 * MIB / 2.5e-3)
    assert clock() <= 101.0 + 0.05


@given(costs=COSTS, limit_s=st.floats(0.05, 20))
@settings(max_examples=40)
def test_products_on_a_gpu_are_timed_within_their_time(
    costs: list[tuple[float, float]], limit_s: float
) -> None:
    """The clock passes while a call is enqueued, as it would where the queue is full."""
    clock = Clock()

    def way(fixed_s: float, row_s: float) -> probe.Way:
        def step(x_MK: torch.Tensor) -> torch.Tensor:
            clock.pass_(fixed_s + row_s * len(x_MK))
            return x_MK

        return step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "products", lambda w: [way(*cost) for cost in costs])
        patch.setattr(probe.Probe, "random", lambda self, *shape, dtype=None: torch.empty(shape[0]))
        found = probe.matmul_rates(a_probe(clock), torch.bfloat16, clock() + limit_s)
    one_row_s = sum(fixed + row for fixed, row in costs)
    assert clock() - 100 <= limit_s + 4 * one_row_s + 1e-9
    assert len(found.way) + found.left_out == 7 * 5
    assert "1x8192x8192" in found.way
    for shape, rate in found.flops_per_s.items():
        m, n, k = map(int, shape.split("x"))
        fixed_s, row_s = costs[found.way[shape]]
        assert math.isclose(rate, 2 * m * n * k / (fixed_s + row_s * m), rel_tol=1e-6)


def test_products_have_to_fit_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of 4 GiB holds 8192 rows of the square in bfloat16 (0.8 GiB), and no float32 product of
    28672 x 4096 with as many rows (3.1 GiB)."""
    monkeypatch.setattr(gpu, "free_bytes", lambda device: 4 * GIB)
    assert probe.fits(CUDA, 8192, 8192, 8192, torch.bfloat16)
    assert probe.fits(CUDA, 128, 28672, 4096, torch.float32)
    assert not probe.fits(CUDA, 8192, 28672, 4096, torch.float32)
    assert probe.fits(torch.device("cpu"), 1 << 20, 1 << 20, 1 << 20, torch.float32)


def test_shapes_of_experts_are_multiplied_after_the_largest_rate() -> None:
    shapes = dict(probe.matrices(CUDA))
    assert next(iter(shapes)) == (8192, 8192)
    assert {(28672, 4096), (4096, 14336), (1536, 2048), (2048, 768), (4096, 7168), (7168, 2048)} < (
        set(shapes)
    )
    assert set(shapes.values()) == {(1, 16, 128, 1024, 8192)}
    assert probe.matrices(torch.device("cpu")) == [
        ((4096, 1024), (1, 8, 64, 512)), ((1024, 4096), (1, 8, 64, 512)),
        ((1024, 1024), (1, 16, 128, 1024)),
    ]  # fmt: skip
    assert set(probe.dtypes(CUDA)) == {torch.bfloat16, torch.float32, torch.float16}


def test_messages_of_gpus_are_large_where_memory_allows() -> None:
    messages = links.gpu_messages(8, 40 * GIB)
    assert messages.ends == (KIB, 256 * MIB)
    assert messages.between == (16 * MIB, MIB, 64 * KIB)
    few = links.gpu_messages(8, 100 * MIB)  # 10 of them
    assert few.ends == (KIB, 10 * MIB)
    assert few.between == (MIB, 64 * KIB)
    assert links.gpu_messages(8, 0) == ((KIB, 2 * KIB), ())
    assert links.CPU_MESSAGES == ((KIB, MIB), (16 * KIB, 128 * KIB))
    fit = {"all_to_all": {"points": [[1, 1, 1]] * 4}, "barrier": {"points": [[0, 1, 1]]}}
    assert links.left_out(fit, ("barrier", "all_to_all"), sizes=5) == ["1 of 5 sizes of all_to_all"]


def test_ranks_agree_on_the_least_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two ranks one has 1 GiB free: half of it holds 4 messages of 128 MiB."""
    smallest: list[int] = []

    def combine_(x: torch.Tensor, operation: str) -> torch.Tensor:
        assert operation == "min"
        smallest.append(int(x.item()))
        return torch.tensor([GIB])

    real = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda data, **options: real(data))
    group: Any = SimpleNamespace(
        size=2, comm=SimpleNamespace(device=CUDA, world=SimpleNamespace(combine_=combine_))
    )
    assert links.message_sizes(group).ends == (KIB, 128 * MIB)
    assert smallest == [80 * GIB]


def test_work_is_not_enqueued_beyond_its_window() -> None:
    """A launch takes no time and its work 0.1 s: without a sync a window would never end."""

    def work(one: probe.Probe, world: Any) -> tuple[float, float]:
        clock = cast(Clock, one.clock)
        waiting = [0]

        def sync() -> None:
            clock.pass_(0.1 * waiting[0])
            waiting[0] = 0

        def step() -> None:
            waiting[0] += 1

        one.device = CUDA
        one.sync = sync  # type: ignore[method-assign]
        began = clock()
        rate = calibrate.concurrent_rate(step, 3.0, one, world.comm, began + 3.0)
        return rate, clock() - began

    for rate, took_s in on_ranks(2, 1e-3, 0.0, work):
        assert rate == pytest.approx(2 * 3.0 / 0.1, rel=0.02)
        assert took_s < 5.0


def test_gpus_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three GPUs that were slow together: the limit is three times what one reaches alone."""
    one: Any = SimpleNamespace(
        device=CUDA, clock=Clock(), left_s=lambda until_s: 1.0, random=lambda *shape, dtype: None
    )
    kinds = {"bfloat16": 700.0, "float16": 650.0, "float32": 50.0}
    alone = probe.SingleRankRates(
        {"read_bytes_per_s": 3.0, "copy_bytes_per_s": 2.5,
         "matmul_flops_per_s": {name: {"peak": rate} for name, rate in kinds.items()}},
        {name: probe.Products({"16x8192x8192": rate}, {"16x8192x8192": 0})
         for name, rate in kinds.items()},
    )  # fmt: skip
    rates = iter([7.0, 10.0, 1.0, 160.0, 1.0])  # read, copy, bfloat16, float32, float16
    monkeypatch.setattr(calibrate, "concurrent_rate", lambda *given: next(rates))
    monkeypatch.setattr(calibrate, "ways", lambda w: [lambda: lambda x: None])
    monkeypatch.setattr(calibrate, "from_rank0", lambda comm, value: value)
    memory: Any = SimpleNamespace(chunk_bytes=1, product=None, copy=None)
    comm: Any = SimpleNamespace(world_size=3)
    found = calibrate.shared_rates(one, memory, comm, alone, 1.0)
    assert found["copy_bytes_per_s"] == 10.0
    assert found["read_bytes_per_s"] == 10.0  # a copy moved as much
    assert found["matmul_flops_per_s"] == {"bfloat16": 2100.0, "float16": 1950.0, "float32": 160.0}


OF_A_GPU = {
    "launch_s": 8e-6, "wait_s": 18e-6, "l2_bytes": L2,
    "host_to_device_bytes_per_s": 5e10, "device_to_host_bytes_per_s": 4e10,
}  # fmt: skip


def test_the_cache_keeps_the_lower_cost_and_the_higher_rate(tmp_path: Path) -> None:
    limits.store(tmp_path, calibration(**OF_A_GPU))
    newer = {**OF_A_GPU, "launch_s": 9e-6, "wait_s": 17e-6, "host_to_device_bytes_per_s": 3e10}
    best = limits.store(tmp_path, calibration(**newer))
    assert (best["launch_s"], best["wait_s"]) == (8e-6, 17e-6)
    assert best["host_to_device_bytes_per_s"] == 5e10
    said = limits.describe({**best, "collectives": {}})
    assert "a launch 8.0 us, a wait 17.0 us; from the host 50.0 GB/s, to it 40.0" in said
    assert "a launch" not in limits.describe(calibration(collectives={}))


@pytest.mark.parametrize("damage", [0.0, -1.0, "fast", math.nan])
def test_a_damaged_cost_is_refused(tmp_path: Path, damage: object) -> None:
    with pytest.raises(ValueError, match="wait_s"):
        limits.store(tmp_path, calibration(**{**OF_A_GPU, "wait_s": damage}))


@pytest.mark.dist
@pytest.mark.parametrize("nodes", [1, 2])
def test_calibrating_two_ranks_on_simulated_gpus(tmp_path: Path, nodes: int) -> None:
    """With 256 MiB free: half of it, over two ranks' all-gather and a message more, is 32 MiB."""
    found = run_ranks("calibrate_gpu_ranks", 2, "12", str(nodes))
    limits.store(tmp_path, found)
    assert found["device"] == "cuda"
    assert found["read_bytes_per_s"] >= found["copy_bytes_per_s"] > 0
    assert found["l2_bytes"] == MIB
    sizes = [64 * KIB, 256 * KIB, 512 * KIB, MIB, 2 * MIB, 4 * MIB]
    assert list(found["read_warm_bytes_per_s"]) == [str(size) for size in sizes]
    assert found["wait_s"] > 0
    assert found["launch_s"] > 0
    assert found["shared"]["read_bytes_per_s"] >= 2 * found["read_bytes_per_s"]
    for dtype, rates in found["matmul_flops_per_s"].items():
        assert "1x8192x8192" in rates
        assert found["shared"]["matmul_flops_per_s"][dtype] >= 2 * rates["peak"]
    tiers = [fits for fits in found.get("tiers", {}).values() if fits]
    assert len(tiers) == nodes - 1  # of two nodes with one rank each: between them
    sent = {int(point[0]) for fits in [found["collectives"], *tiers]
            for point in fits.get("all_to_all", {"points": []})["points"]}  # fmt: skip
    assert sent <= {512, 32 * KIB, 512 * KIB, 8 * MIB, 16 * MIB}  # half stays on the rank
    missing = sum(int(text.split()[0]) for text in found["left_out"] if "sizes of" in text)
    timed = sum(len(fit["points"]) for fit in found["collectives"].values())
    assert timed + missing == 1 + 4 * 5
