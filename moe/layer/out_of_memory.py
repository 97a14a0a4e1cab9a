"""Running out of a GPU's memory: how it is recognised, and what is said of it."""

from __future__ import annotations

import re

import torch

ASKED = re.compile(r"Tried to allocate ([\d.]+ \w+)")
FREE = re.compile(r"of which ([\d.]+ \w+) is free")
# What libraries say that allocate by themselves; torch raises plain RuntimeErrors for them.
LIBRARIES = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
TRITON = "out of resource: shared memory"  # of a kernel whose blocks are too large for the GPU


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory was not enough. A host's memory is another matter."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and any(word in str(error) for word in LIBRARIES):
        return True
    return TRITON in str(error)


def out_of_memory_text(error: BaseException) -> str:
    """In a few words: what was asked for and what was free, where the error says so."""
    asked, free = ASKED.search(str(error)), FREE.search(str(error))
    if asked and free:
        return f"ran out of GPU memory: {asked[1]} were asked for, {free[1]} were free"
    first = next(iter(str(error).splitlines()), "")
    return f"ran out of GPU memory: {first}".rstrip(": ")


def free_cached(device: torch.device) -> None:
    """Gives memory that nothing uses any more back to the GPU. Call it outside of the `except`
    block: until then the error keeps what was alive where it was raised."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
