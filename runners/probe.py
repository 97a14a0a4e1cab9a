"""What one rank reaches alone: memory bandwidth and matrix products, the best of several tries."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from moe import packed
from runners import hardware

CHUNK_BYTES = 32 << 20
MEMORY_LIMIT_BYTES = 1 << 30  # of one rank's buffer for cold reads
WARM_BYTES = (256 << 10, 2 << 20, 16 << 20)
ROWS = (1, 4, 16, 64, 512)  # M: tokens of one expert
MATRICES = ((4096, 1024), (1024, 4096))  # N x K of an expert
SQUARE = 1024
GPU_SQUARE = 8192

Step = Callable[[], object]


class Probe:
    """Times steps on one device, within a share of the budget."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def elapsed_s(self, step: Step, calls: int = 1) -> float:
        self.sync()
        start = time.perf_counter()
        for _ in range(calls):
            step()
        self.sync()
        return time.perf_counter() - start

    def best_s(self, step: Step, budget_s: float) -> float:
        """Shortest time of one call; of one only where the budget ends with it."""
        deadline = time.perf_counter() + budget_s
        calls = 10 if self.device.type == "cuda" else 1
        best = self.elapsed_s(step, calls)
        while time.perf_counter() < deadline:
            best = min(best, self.elapsed_s(step, calls))
        return best / calls

    def random(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, device=self.device).to(dtype)


class Memory:
    """A buffer larger than the caches, read and copied piece by piece so that each comes cold."""

    def __init__(self, probe: Probe, ranks: int) -> None:
        self.probe, self.next = probe, 0
        free = hardware.memory_bytes().get("MemAvailable", 8 << 30)
        cache = hardware.llc_bytes() or CHUNK_BYTES
        size = min(max(4 * CHUNK_BYTES, 2 * cache), MEMORY_LIMIT_BYTES, free // (4 * ranks))
        chunk = probe.random(CHUNK_BYTES // 4)
        self.chunks = [chunk.clone() for _ in range(max(2, size // CHUNK_BYTES))]
        self.ones = torch.ones(1024, device=probe.device)
        self.target = torch.empty_like(chunk)

    def chunk(self) -> torch.Tensor:
        self.next = (self.next + 1) % len(self.chunks)
        return self.chunks[self.next]

    def sum(self) -> object:
        return self.chunk().sum()

    def product(self) -> object:
        """A matrix by a vector: often nearer to the limit than a plain sum."""
        return torch.mv(self.chunk().view(-1, 1024), self.ones)

    def copy(self) -> object:
        return self.chunk().copy_(self.target)

    def rates(self, budget_s: float) -> dict[str, Any]:
        share = budget_s / (3 + 2 * len(WARM_BYTES))
        read = [self.probe.best_s(step, share) for step in (self.sum, self.product)]
        copy = self.probe.best_s(self.copy, share)
        return {
            "read_bytes_per_s": CHUNK_BYTES / min(read),
            "copy_bytes_per_s": 2 * CHUNK_BYTES / copy,
            "read_warm_bytes_per_s": {str(n): n / self.warm_s(n, share) for n in WARM_BYTES},
        }

    def warm_s(self, size: int, share_s: float) -> float:
        """Time to read `size` bytes again and again."""
        part = self.chunks[0][: size // 4]
        matrix = part.view(-1, 1024)
        steps: tuple[Step, ...] = (part.sum, lambda: torch.mv(matrix, self.ones))
        return min(self.probe.best_s(step, share_s) for step in steps)


def products(w_NK: torch.Tensor) -> tuple[Callable[[torch.Tensor], torch.Tensor], ...]:
    """The ways to write x @ w.T; which is fastest depends on shape and dtype, by up to 4x."""
    w_KN = w_NK.t().contiguous()
    ways: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
        lambda x: F.linear(x, w_NK),
        lambda x: x @ w_KN,
        lambda x: w_NK @ x.t(),
    )
    if not w_NK.is_cuda and packed.runs(w_NK.dtype):
        for_onednn = packed.packed(w_NK)
        ways = (*ways, lambda x: packed.product(x, for_onednn))
    if w_NK.dtype == torch.float32 or w_NK.is_cuda:
        return ways
    wide_NK = torch.empty(w_NK.shape)  # processors without arithmetic in half precision
    return (*ways, lambda x: F.linear(x.float(), wide_NK.copy_(w_NK)).to(x.dtype))


def dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    half = (torch.float16,) if device.type == "cuda" else ()
    return (torch.float32, torch.bfloat16, *half)


def matmul_rates(probe: Probe, dtype: torch.dtype, budget_s: float) -> dict[str, float]:
    square = GPU_SQUARE if probe.device.type == "cuda" else SQUARE
    shapes = [((square, square), (square,)), *((matrix, ROWS) for matrix in MATRICES)]
    share = budget_s / (1 + len(MATRICES) * len(ROWS)) / 3
    rates = {}
    for (n, k), rows in shapes:
        ways = products(probe.random(n, k, dtype=dtype))
        for m in rows:
            x_MK = probe.random(m, k, dtype=dtype)
            best = min(probe.best_s(functools.partial(way, x_MK), share) for way in ways)
            rates[f"{m}x{n}x{k}"] = 2 * m * n * k / best
    return {**rates, "peak": max(rates.values())}


def alone_rates(probe: Probe, memory: Memory, budget_s: float) -> dict[str, Any]:
    kinds = dtypes(probe.device)
    flops = {
        str(dtype).removeprefix("torch."): matmul_rates(probe, dtype, budget_s / 2 / len(kinds))
        for dtype in kinds
    }
    return {**memory.rates(budget_s / 2), "matmul_flops_per_s": flops}
