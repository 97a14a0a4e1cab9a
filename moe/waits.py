"""Waits of the host for a GPU: those a step needs are made here, and those it makes are counted.

A wait empties the GPU's queue: until the host has launched the next kernel, the GPU idles.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

REPORTED = "called a synchronizing CUDA operation"  # in what the sync debug mode says
_made = 0  # by `to_host`, since the process began


def to_host(x: Tensor) -> list[int]:
    """The numbers of a small integer tensor. From a GPU: one copy to pinned memory, and one wait
    for it; kernels that are enqueued later are not waited for."""
    if not x.is_cuda:
        numbers: list[int] = x.tolist()
        return numbers
    global _made
    _made += 1
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    copied.synchronize()
    return list(host.tolist())


def count(step: Callable[[], object], device: torch.device) -> int | None:
    """Waits of the host in one call of `step`: those of `to_host`, and those that
    torch.cuda.set_sync_debug_mode reports. None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    made = _made
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return _made - made + sum(REPORTED in str(one.message) for one in seen)


def first(step: Callable[[], object]) -> str:
    """The first wait of the host in one call of `step`, in words; empty if there is none."""
    before, made = torch.cuda.get_sync_debug_mode(), _made
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        if REPORTED not in str(error):
            raise
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return "for counts of rows" if _made > made else ""
