"""What one rank reaches alone on its GPU beside matrix products: memory, cache, launches, waits and
copies from and to the host. Rates are the best of several tries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from runners.host import hardware
from runners.rank import gpu
from runners.rank.probe import Memory, Probe, Step

CHUNK_BYTES = 1 << 30  # twenty times an H100's cache, so that hardly any of it is there from before
ROW_BYTES = 4096  # of a chunk as a matrix
WARM_SIZES = (1 / 16, 1 / 4, 1 / 2, 1, 2, 4)  # times the cache
WARM_READ_BYTES = 1 << 30  # in one launch, by reading a small size again and again
PINNED_BYTES = 64 << 20  # a message from or to the host
LAUNCHES, WAITS = 1000, 100  # calls of one try


class GpuMemory(Memory):
    """Two chunks of the GPU's memory. Each rank has a GPU of its own, so nothing is shared."""

    def __init__(self, probe: Probe) -> None:
        self.probe, self.next = probe, 0
        self.l2_bytes = gpu.l2_bytes(probe.device)
        largest = min(CHUNK_BYTES, gpu.free_bytes(probe.device) // 4)
        rows = max(8, largest // ROW_BYTES // 8 * 8)
        self.chunk_bytes = rows * ROW_BYTES
        chunk = probe.random(self.chunk_bytes // 32).repeat(8)
        self.chunks = [chunk, chunk.clone()]
        self.ones = torch.ones(1024, device=probe.device)

    def copy(self) -> object:
        other = self.chunks[self.next]
        return self.chunk().copy_(other)

    def rates(self, budget_s: float) -> dict[str, Any]:
        """Bytes per s, as runners/records/calibrations.py names them. Memory that copies at a rate
        reads at least at that rate."""
        sizes = self.warm_sizes()
        share = budget_s / (3 + 3 * len(sizes))
        read = min(self.probe.best_s(step, share) for step in (self.product, self.sum))
        copy = 2 * self.chunk_bytes / self.probe.best_s(self.copy, share)
        return {
            "read_bytes_per_s": max(self.chunk_bytes / read, copy),
            "copy_bytes_per_s": copy,
            "read_warm_bytes_per_s": {str(n): n / self.warm_s(n, share) for n in sizes},
            "l2_bytes": self.l2_bytes,
        }

    def warm_sizes(self) -> list[int]:
        """Bytes below and around the cache, in whole rows."""
        sizes = {int(self.l2_bytes * part) // ROW_BYTES * ROW_BYTES for part in WARM_SIZES}
        return sorted(size for size in sizes if 0 < size <= self.chunk_bytes) or [self.chunk_bytes]

    def warm_s(self, size: int, share_s: float) -> float:
        """Time to read `size` bytes repeatedly, in s: in one launch, so that its cost is not in it;
        by themselves; or as the two halves of a copy."""
        part = self.chunks[0][: size // 4]
        times = max(1, WARM_READ_BYTES // size)
        repeated = part.expand(times, -1)
        source, target = part.chunk(2)
        best = self.probe.best_s
        return min(
            best(lambda: repeated.sum(1), share_s) / times,
            best(part.sum, share_s),
            best(lambda: target.copy_(source), share_s),
        )


def device_costs(probe: Probe, until_s: float) -> dict[str, float]:
    """launch_s, wait_s and the rates of copies from and to pinned memory of the host, as
    runners/records/calibrations.py has them."""
    number = torch.zeros(1, device=probe.device)

    def launch() -> object:
        return number.add_(1.0)

    def wait() -> object:
        return number.add_(1.0).item()

    free = hardware.memory_bytes().get("MemAvailable", 8 << 30)
    size = max(ROW_BYTES, min(PINNED_BYTES, free // 16)) // 4 * 4
    host = torch.empty(size // 4, pin_memory=True)
    device = torch.empty(size // 4, device=probe.device)
    steps: Sequence[tuple[Step, int]] = (
        (launch, LAUNCHES),
        (wait, WAITS),
        (lambda: device.copy_(host, non_blocking=True), 1),
        (lambda: host.copy_(device, non_blocking=True), 1),
    )
    took = []
    for done, (step, calls) in enumerate(steps):
        step()  # warm-up
        end_s = probe.clock() + probe.left_s(until_s) / (len(steps) - done)
        took.append(fastest_of_blocks_s(probe, step, calls, end_s))
    return {
        "launch_s": took[0],
        "wait_s": took[1],
        "host_to_device_bytes_per_s": size / took[2],
        "device_to_host_bytes_per_s": size / took[3],
    }


def fastest_of_blocks_s(probe: Probe, step: Step, calls: int, until_s: float) -> float:
    """Shortest time of a call in s, over blocks of that many: one, and more while time is left."""
    best = math.inf
    while best == math.inf or best * calls <= probe.left_s(until_s):
        best = min(best, probe.elapsed_s(step, calls) / calls)
    return best
