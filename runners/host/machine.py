"""Resources that cells may be placed on: this machine, or identical nodes."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

from runners.host.hardware import launch_affinity, may_have_gpus, usable_cores


@dataclass(frozen=True)
class NodeResources:
    """Cores and CUDA devices per node, and the number of nodes. `memory_bytes` per node; 0: what
    this host has available. `gpu_memory_bytes` of the smallest CUDA device; 0: unknown."""

    cores: int
    cuda_devices: int = 0
    nodes: int = 1
    memory_bytes: int = 0
    gpu_memory_bytes: int = 0


@functools.cache
def this_machine() -> NodeResources:
    """Counts devices with torch only where there can be any: importing it is slow."""
    cores = usable_cores()
    if not may_have_gpus():
        return NodeResources(cores, 0)
    before = launch_affinity()
    import torch  # its OpenMP binds this thread to a core where OMP_PROC_BIND is set

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, before)  # or every rank would inherit that one core
    devices = torch.cuda.device_count()
    try:
        sizes = [torch.cuda.get_device_properties(n).total_memory for n in range(devices)]
    except RuntimeError:  # a driver that counts its devices and cannot use them: ranks say so
        sizes = []
    return NodeResources(cores, devices, gpu_memory_bytes=min(sizes, default=0))
