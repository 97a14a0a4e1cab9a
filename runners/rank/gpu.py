"""Sizes of a GPU's memory and cache."""

from __future__ import annotations

import torch


def l2_bytes(device: torch.device) -> int:
    """Its last-level cache."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be allocated on it: what the driver has, and what torch's allocator
    keeps without using it."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + max(0, int(kept))
