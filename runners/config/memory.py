"""Memory that cells need, by arithmetic, to refuse those that do not fit. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from moe import cost, peers
from runners.errors import ConfigError
from runners.host.hardware import memory_bytes
from runners.plan import Job

MEMORY_FRACTION = 0.8  # of available memory, for one cell on all its ranks
RESIDENT_FRACTION = 0.4  # of available memory, for all cells of a wave


def available_bytes() -> int:
    """Memory that is available on this host; unlimited where it is unknown."""
    sizes = memory_bytes()
    return sizes.get("MemAvailable", sizes.get("MemTotal", 2**62))


def memory_needed_bytes(job: Job) -> float:
    """Peak of a step on all ranks of the first node: weights, activations, gradients."""
    cell = peers.equivalent(job.cell)
    return sum(
        cost.peak_bytes(cell, cost.expected(cell, rank), rank)
        for rank in range(cell.placement.ranks_per_node)
    )


def kept_bytes(job: Job) -> int:
    """Weights, and gradients in training, that a cell's ranks keep between steps."""
    cell = peers.equivalent(job.cell)
    times = 2 if cell.workload.mode == "train" else 1
    return times * sum(
        cost.weight_bytes(cell, rank) for rank in range(cell.placement.ranks_per_node)
    )


def fits_together(jobs: Sequence[Job]) -> bool:
    """Whether the weights of all cells and one cell's step fit in memory together."""
    most = max((memory_needed_bytes(job) for job in jobs), default=0.0)
    return sum(kept_bytes(job) for job in jobs) + most <= RESIDENT_FRACTION * available_bytes()


def check_memory(job: Job, node_bytes: int = 0) -> None:
    """Raises ConfigError when a cell's weights and activations do not fit a node's memory of
    `node_bytes` (0: this host's available memory)."""
    if job.cell.placement.device != "cpu":
        return
    needed, available = memory_needed_bytes(job), node_bytes or available_bytes()
    if needed > MEMORY_FRACTION * available:
        raise ConfigError(
            f"model.scale={job.meta.get('scale')}: weights and activations of "
            f"{job.cell.strategy.name} on {job.cell.placement.ranks_per_node} ranks take "
            f"{needed / 2**30:.1f} GiB, allowed is "
            f"{MEMORY_FRACTION * available / 2**30:.1f} GiB; raise model.scale, lower "
            "num_experts, batch_size or world_size, or choose a strategy that shards weights"
        )
