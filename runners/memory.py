"""Whether cells fit this host's memory, by arithmetic, before anything is started. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from moe.spec import DTYPE_BYTES
from runners.cell import ConfigError
from runners.hardware import memory_bytes
from runners.plan import Job

MEMORY_FRACTION = 0.8  # of what is available, for the weights of one cell on all its ranks
RESIDENT_FRACTION = 0.4  # for all cells of a wave together


def available_bytes() -> int:
    found = memory_bytes()
    return found.get("MemAvailable") or found.get("MemTotal") or 2**62


def memory_needed_bytes(job: Job) -> int:
    """Weights on all ranks of this host."""
    layer, name = job.cell.layer, job.cell.strategy.name
    first = 2 if layer.activation == "silu_gated" else 1
    expert = first * layer.dim * layer.hidden + layer.hidden * layer.dim_out
    whole = (layer.num_experts + layer.shared_experts) * expert * DTYPE_BYTES[layer.dtype]
    ranks = job.cell.placement.world_size
    return whole * ranks if name in ("simple", "dp") else whole


def fits_together(jobs: Sequence[Job]) -> bool:
    available = available_bytes()
    return sum(memory_needed_bytes(job) for job in jobs) <= RESIDENT_FRACTION * available


def check_memory(job: Job) -> None:
    """Raises ConfigError when a cell's weights alone do not fit this host."""
    if job.cell.placement.device != "cpu":
        return
    needed, available = memory_needed_bytes(job), available_bytes()
    if needed > MEMORY_FRACTION * available:
        raise ConfigError(
            f"model.scale={job.request.meta.get('scale')}: the weights of {job.cell.strategy.name} "
            f"on {job.cell.placement.world_size} ranks take {needed / 2**30:.1f} GiB, allowed is "
            f"{MEMORY_FRACTION * available / 2**30:.1f} GiB; raise model.scale, lower "
            "num_experts or world_size, or choose a strategy that shards weights"
        )
