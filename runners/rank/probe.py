"""What one rank reaches alone: memory bandwidth and matrix products, the best of several tries.

`until_s` is the time on the probe's clock at which a part has to end. A running call is not
interrupted, so none is started that is known to end too late.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from moe.layer import onednn
from runners.host import hardware
from runners.rank import gpu

CHUNK_BYTES = 32 << 20
MEMORY_LIMIT_BYTES = 1 << 30  # of one rank's buffer for cold reads
WARM_BYTES = (256 << 10, 2 << 20, 16 << 20)
ROWS = (1, 8, 64, 512)  # M: tokens of one expert
MATRICES = ((4096, 1024), (1024, 4096))  # N x K of an expert
SQUARE = 1024
# On GPUs: the largest rate first, then experts of Mixtral, DeepSeek-V3 and Qwen3-30B-A3B.
GPU_ROWS = (1, 16, 128, 1024, 8192)
GPU_MATRICES = (
    *((8192, 8192), (28672, 4096), (4096, 14336), (4096, 7168), (7168, 2048)),
    *((1536, 2048), (2048, 768)),
)
GPU_CALLS = 50  # enqueued between two syncs, at most
MEMORY_SHARE = 0.3  # of the time for one rank alone
LARGEST_WEIGHT = 4  # time for the most rows of a matrix over that for fewer

Step = Callable[[], object]
Matrix = tuple[tuple[int, int], tuple[int, ...]]  # N x K, and the rows M in ascending order


class Probe:
    """Times steps on one device. `clock` and `sleep` are replaced in tests."""

    def __init__(
        self,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.device, self.clock, self.sleep = device, clock, sleep
        self.noise = torch.empty(0, device=device)

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def least_calls(self) -> int:
        """Calls of a step that are timed at least: on a GPU the first may load the kernel."""
        return 2 if self.device.type == "cuda" else 1

    def left_s(self, until_s: float) -> float:
        """Seconds until `until_s`; negative when it has passed."""
        return until_s - self.clock()

    def elapsed_s(self, step: Step, calls: int = 1) -> float:
        """Time of all the calls together, in s, between two device syncs."""
        self.sync()
        start = self.clock()
        for _ in range(calls):
            step()
        self.sync()
        return self.clock() - start

    def best_s(self, step: Step, budget_s: float) -> float:
        """Shortest time of one call in s; calls only once where another would exceed the budget."""
        deadline = self.clock() + budget_s
        best = min(self.elapsed_s(step) for _ in range(self.least_calls))
        while best <= self.left_s(deadline):
            calls = self.calls_within(best, self.left_s(deadline) / 4)
            best = min(best, self.elapsed_s(step, calls) / calls)
        return best

    def calls_within(self, call_s: float, limit_s: float) -> int:
        """Calls between two syncs that last about `limit_s`; one on a CPU, which needs no sync."""
        if self.device.type != "cuda":
            return 1
        return max(1, min(GPU_CALLS, int(limit_s / max(call_s, 1e-9))))

    def random(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Normal random numbers, read-only: drawing new ones would take longer than using them."""
        count = math.prod(shape)
        if len(self.noise) < count:
            self.noise = torch.randn(count, device=self.device)
        return self.noise[:count].view(shape).to(dtype)


class Memory:
    """A buffer larger than the caches, read and copied in chunks so that each is cold. `sharing`
    ranks read theirs at once, and together need no more than that."""

    chunk_bytes = CHUNK_BYTES

    def __init__(self, probe: Probe, ranks: int, sharing: int = 1) -> None:
        self.probe, self.next = probe, 0
        free = hardware.memory_bytes().get("MemAvailable", 8 << 30)
        cache = hardware.llc_bytes() or CHUNK_BYTES
        needed = max(4 * CHUNK_BYTES, 2 * cache) // sharing
        size = min(needed, MEMORY_LIMIT_BYTES, free // (4 * ranks))
        chunk = probe.random(CHUNK_BYTES // 32).repeat(8)
        self.chunks = [chunk.clone() for _ in range(max(2, size // CHUNK_BYTES))]
        self.ones = torch.ones(1024, device=probe.device)
        self.target = torch.empty_like(chunk)

    def chunk(self) -> torch.Tensor:
        self.next = (self.next + 1) % len(self.chunks)
        return self.chunks[self.next]

    def sum(self) -> object:
        return self.chunk().sum()

    def product(self) -> object:
        """A matrix-vector product: often nearer to the bandwidth limit than a plain sum."""
        return torch.mv(self.chunk().view(-1, 1024), self.ones)

    def copy(self) -> object:
        return self.chunk().copy_(self.target)

    def rates(self, budget_s: float) -> dict[str, Any]:
        """Bytes per s, as runners/records/calibrations.py names them."""
        share = budget_s / (3 + 2 * len(WARM_BYTES))
        read = [self.probe.best_s(step, share) for step in (self.sum, self.product)]
        copy = self.probe.best_s(self.copy, share)
        return {
            "read_bytes_per_s": CHUNK_BYTES / min(read),
            "copy_bytes_per_s": 2 * CHUNK_BYTES / copy,
            "read_warm_bytes_per_s": {str(n): n / self.warm_s(n, share) for n in WARM_BYTES},
        }

    def warm_s(self, size: int, share_s: float) -> float:
        """Time to read `size` bytes repeatedly, in s."""
        part = self.chunks[0][: size // 4]
        matrix = part.view(-1, 1024)
        steps: tuple[Step, ...] = (part.sum, lambda: torch.mv(matrix, self.ones))
        return min(self.probe.best_s(step, share_s) for step in steps)


Way = Callable[[torch.Tensor], torch.Tensor]


def ways(w_NK: torch.Tensor) -> tuple[Callable[[], Way], ...]:
    """Ways to write x @ w.T, each made when it is called, since some copy the matrix. Which is
    fastest depends on shape and dtype: by 4x, and by 100x in half precision on processors that have
    no arithmetic in it."""
    makers: tuple[Callable[[], Way], ...] = (
        lambda: lambda x: F.linear(x, w_NK),
        lambda: functools.partial(_transposed_first, w_NK.t().contiguous()),
        lambda: lambda x: w_NK @ x.t(),
    )
    if not w_NK.is_cuda and onednn.runs(w_NK.dtype):
        makers = (*makers, lambda: functools.partial(_packed, onednn.packed(w_NK)))
    if w_NK.dtype == torch.float32 or w_NK.is_cuda:
        return makers
    return (*makers, lambda: functools.partial(_widened, w_NK, torch.empty(w_NK.shape)))


def products(w_NK: torch.Tensor) -> tuple[Way, ...]:
    return tuple(make() for make in ways(w_NK))


def _transposed_first(w_KN: torch.Tensor, x_MK: torch.Tensor) -> torch.Tensor:
    return x_MK @ w_KN


def _packed(for_onednn: torch.Tensor, x_MK: torch.Tensor) -> torch.Tensor:
    return onednn.product(x_MK, for_onednn)


def _widened(w_NK: torch.Tensor, wide_NK: torch.Tensor, x_MK: torch.Tensor) -> torch.Tensor:
    """For processors without arithmetic in half precision."""
    return F.linear(x_MK.float(), wide_NK.copy_(w_NK)).to(x_MK.dtype)


def dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    if device.type == "cuda":
        return torch.bfloat16, torch.float32, torch.float16
    return torch.float32, torch.bfloat16


def matrices(device: torch.device) -> list[Matrix]:
    """Matrices to multiply, and with how many rows; all ranks at once multiply the first."""
    if device.type == "cuda":
        return [(one, GPU_ROWS) for one in GPU_MATRICES]
    square = (SQUARE, SQUARE), (1, SQUARE // 64, SQUARE // 8, SQUARE)
    return [*((one, ROWS) for one in MATRICES), square]


def fits(device: torch.device, m: int, n: int, k: int, dtype: torch.dtype) -> bool:
    """Whether a GPU has memory for a product: matrix, a copy, and random numbers; rows, results."""
    if device.type != "cuda":
        return True
    needed = dtype.itemsize * (2 * n * k + m * k + m * n) + 4 * max(n * k, m * k)
    return 2 * needed <= gpu.free_bytes(device)


@dataclass
class Products:
    """Results of one dtype, by "MxNxK": the best rate, and which of `ways` reached it."""

    flops_per_s: dict[str, float] = field(default_factory=dict)
    way: dict[str, int] = field(default_factory=dict)
    left_out: int = 0  # shapes that would have taken too long

    def add(self, shape: str, flops: float, took_s: dict[int, float]) -> None:
        self.way[shape] = min(took_s, key=took_s.__getitem__)
        self.flops_per_s[shape] = flops / took_s[self.way[shape]]


def matmul_rates(probe: Probe, dtype: torch.dtype, until_s: float) -> Products:
    """Times products with ascending numbers of rows: a time with fewer rows bounds the time with
    more, so that none is started that would not end in time. The most rows get the most time."""
    known = matrices(probe.device)
    weights = [LARGEST_WEIGHT if m == rows[-1] else 1 for _, rows in known for m in rows]
    rates = Products()
    for (n, k), rows in known:
        steps: tuple[Way, ...] = ()
        last_s: dict[int, tuple[int, float]] = {}
        for m in rows:
            share_s = probe.left_s(until_s) * weights[0] / sum(weights)
            del weights[0]
            calls = probe.least_calls
            most_s = {way: calls * s * m / fewer for way, (fewer, s) in last_s.items()}
            late = min(most_s.values(), default=0.0) >= probe.left_s(until_s)
            if rates.way and (late or not fits(probe.device, m, n, k, dtype)):
                rates.left_out += 1
                continue
            steps = steps or products(probe.random(n, k, dtype=dtype))
            x_MK = probe.random(m, k, dtype=dtype)
            products_of = [functools.partial(step, x_MK) for step in steps]
            for call in products_of if not last_s else ():
                call()  # warm-up
            least_s = {way: s for way, (_, s) in last_s.items()}
            took_s = fastest_s(probe, products_of, least_s, most_s, share_s, until_s)
            rates.add(f"{m}x{n}x{k}", 2 * m * n * k, took_s)
            last_s |= {way: (m, s) for way, s in took_s.items()}
    return rates


def fastest_s(
    probe: Probe,
    calls: Sequence[Step],
    least_s: Mapping[int, float],
    most_s: Mapping[int, float],
    share_s: float,
    until_s: float,
) -> dict[int, float]:
    """Best time by way, in s: of the way that should be fastest, and of every other that could be
    faster and would end in time. A way without an estimate is always tried."""
    end_s = probe.clock() + share_s
    times_s: dict[int, float] = {}
    order = sorted(range(len(calls)), key=lambda way: most_s.get(way, 0.0))
    for tried, way in enumerate(order):
        faster = least_s.get(way, 0.0) < min(times_s.values(), default=math.inf)
        if faster and (not times_s or most_s.get(way, 0.0) < max(probe.left_s(until_s), 1e-9)):
            times_s[way] = probe.best_s(calls[way], probe.left_s(end_s) / (len(order) - tried))
    return times_s


@dataclass
class SingleRankRates:
    """What one rank reaches while the others sleep."""

    rates: dict[str, Any]
    products: dict[str, Products]

    @property
    def left_out(self) -> list[str]:
        """What was not timed, in words."""
        return [
            f"{p.left_out} of {p.left_out + len(p.way)} products in {name}"
            for name, p in self.products.items()
            if p.left_out
        ]


def single_rank_rates(probe: Probe, memory: Memory, until_s: float) -> SingleRankRates:
    """Memory rates first, then products of each dtype with an equal share of the rest."""
    rates = memory.rates(MEMORY_SHARE * probe.left_s(until_s))
    kinds = dtypes(probe.device)
    products = {}
    for number, dtype in enumerate(kinds):
        until = probe.clock() + probe.left_s(until_s) / (len(kinds) - number)
        products[str(dtype).removeprefix("torch.")] = matmul_rates(probe, dtype, until)
    flops = {
        name: {**rates_of.flops_per_s, "peak": max(rates_of.flops_per_s.values())}
        for name, rates_of in products.items()
    }
    return SingleRankRates({**rates, "matmul_flops_per_s": flops}, products)
