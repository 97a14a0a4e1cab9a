"""Waits of the host for a GPU: those a step needs are made here, and those it makes are counted.

A wait empties the GPU's queue: until the host has launched the next kernel, the GPU idles.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

REPORTED = "called a synchronizing CUDA operation"  # in what the sync debug mode says
_made = 0  # by `to_host`, since the process began


def to_host(x: Tensor) -> Any:
    """The numbers of a small integer tensor, in lists as deep as it has dimensions. From a GPU: one
    copy to pinned memory, and one wait for it; kernels that are enqueued later are not waited
    for."""
    if not x.is_cuda:
        return x.tolist()
    global _made
    _made += 1
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    copied.synchronize()
    return host.tolist()


@contextmanager
def _debug_mode(mode: str) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def count(step: Callable[[], object], device: torch.device) -> int | None:
    """Waits of the host in one call of `step`: those of `to_host`, and those that
    torch.cuda.set_sync_debug_mode reports. None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = _made
    with _debug_mode("warn"), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        step()
    return _made - before + sum(REPORTED in str(one.message) for one in seen)


def reported(step: Callable[[], object]) -> RuntimeError | None:
    """What torch's sync debug mode raises at the first wait in one call of `step`, which ends
    there; None if it reports none."""
    with _debug_mode("error"):
        try:
            step()
        except RuntimeError as error:
            if REPORTED not in str(error):
                raise
            return error
    return None


def first(step: Callable[[], object]) -> str:
    """The first wait of the host in one call of `step`, in words; empty if there is none."""
    before = _made
    if error := reported(step):
        return str(error).splitlines()[0]
    return "for counts of rows" if _made > before else ""
