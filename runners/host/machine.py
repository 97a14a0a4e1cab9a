"""Resources that cells may be placed on: this machine, or identical nodes."""

from __future__ import annotations

import os
from dataclasses import dataclass

from runners.host.hardware import launch_affinity, may_have_gpus, usable_cores


@dataclass(frozen=True)
class NodeResources:
    """Cores and CUDA devices per node, and the number of nodes. `memory_bytes` per node; 0: what
    this host has available."""

    cores: int
    cuda_devices: int = 0
    nodes: int = 1
    memory_bytes: int = 0


def this_machine() -> NodeResources:
    """Counts devices with torch only where there can be any: importing it is slow."""
    cores = usable_cores()
    if not may_have_gpus():
        return NodeResources(cores, 0)
    before = launch_affinity()
    import torch  # its OpenMP binds this thread to a core where OMP_PROC_BIND is set

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, before)  # or every rank would inherit that one core
    return NodeResources(cores, torch.cuda.device_count())
