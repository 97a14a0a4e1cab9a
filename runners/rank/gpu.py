"""A GPU's memory, cache and id, and a clock of what it works on."""

from __future__ import annotations

import torch


class GpuClock:
    """A `moe.phases.Clock` of events in the GPU's queue: a mark makes nobody wait. The time between
    two includes what the GPU idles because the host has not launched yet."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def between_ns(self, start: torch.cuda.Event, end: torch.cuda.Event) -> int:
        return round(start.elapsed_time(end) * 1e6)


def l2_bytes(device: torch.device) -> int:
    """Its last-level cache."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be allocated on it: what the driver has, and what torch's allocator
    keeps without using it."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + max(0, int(kept))


def ids(ranks: int) -> tuple[str, ...]:
    """nvidia-smi's ids of the GPUs of a node's ranks; none where torch does not know them."""
    devices = range(min(ranks, torch.cuda.device_count()))
    try:
        return tuple(f"GPU-{torch.cuda.get_device_properties(d).uuid}" for d in devices)
    except AttributeError:  # torch before 2.4
        return ()
