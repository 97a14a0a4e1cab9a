"""Memory that cells need, by arithmetic, to refuse those that do not fit. Torch-free.

Cells on the CPU are judged by a node's memory and all its ranks; cells on GPUs by one GPU's memory
and the ranks that share it, normally one (moe.cost.gpu_memory has the estimate).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from moe import cost, peers
from moe.cost import gpu_memory
from moe.spec import PEER, Cell
from runners.errors import ConfigError
from runners.host.hardware import memory_bytes
from runners.host.machine import NodeResources, this_machine
from runners.plan import Job

MEMORY_FRACTION = 0.8  # of available memory, for one cell on all its ranks
RESIDENT_FRACTION = 0.4  # of available memory, for all cells of a wave
GPU_FRACTION = 0.95  # of a GPU's memory, for one cell
GPU_RESIDENT_FRACTION = 0.8  # of a GPU's memory, for all cells of a wave
REMEDY = (
    "raise model.scale, lower num_experts, batch_size or world_size, or choose a strategy that "
    "shards weights"
)


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


def gpu_needed_bytes(job: Job, gpus: int) -> float:
    """Peak on the fullest of a node's GPUs."""
    return _on_fullest_gpu(job, gpus, gpu_memory.needed_bytes)


def gpu_kept_bytes(job: Job, gpus: int) -> float:
    """What a cell keeps between steps on the fullest of a node's GPUs."""
    return _on_fullest_gpu(job, gpus, gpu_memory.kept_bytes)


def _on_fullest_gpu(job: Job, gpus: int, of_rank: Callable[[Cell, int], float]) -> float:
    """Ranks take GPUs in turn (runners.rank.process_group.device_index)."""
    cell, ranks = peers.equivalent(job.cell), job.cell.placement.ranks_per_node
    if job.cell.strategy.name.startswith(PEER):  # its kernels are its own: none are tuned
        cell = replace(cell, strategy=replace(cell.strategy, kernel="loop"))
    used = min(gpus, ranks)
    return max(sum(of_rank(cell, rank) for rank in range(n, ranks, used)) for n in range(used))


def fits_together(jobs: Sequence[Job], node: NodeResources | None = None) -> bool:
    """Whether what all cells keep and one cell's step fit in memory together. `node` is the
    machine of the ranks, this one unless it is given."""
    if any(job.cell.placement.device == "cuda" for job in jobs):
        return _fit_together_on_gpu(jobs, node or this_machine())
    most = max((memory_needed_bytes(job) for job in jobs), default=0.0)
    return sum(kept_bytes(job) for job in jobs) + most <= RESIDENT_FRACTION * available_bytes()


def _fit_together_on_gpu(jobs: Sequence[Job], node: NodeResources) -> bool:
    """Where the memory is unknown, cells of a wave fit together."""
    gpus, size = node.cuda_devices, node.gpu_memory_bytes
    if not gpus or not size:
        return True
    kept = [gpu_kept_bytes(job, gpus) for job in jobs]
    more = max(gpu_needed_bytes(job, gpus) - own for job, own in zip(jobs, kept, strict=True))
    return sum(kept) + more <= GPU_RESIDENT_FRACTION * size


def check_memory(job: Job, node: NodeResources) -> None:
    """Raises ConfigError when a cell does not fit a node's memory, or on GPUs a GPU's; nothing is
    refused where a GPU's memory is unknown. Without `node.memory_bytes` it is this host's available
    memory."""
    if job.cell.placement.device == "cuda":
        _check_gpu_memory(job, node.cuda_devices, node.gpu_memory_bytes)
        return
    needed, available = memory_needed_bytes(job), node.memory_bytes or available_bytes()
    if needed > MEMORY_FRACTION * available:
        raise ConfigError(
            f"model.scale={job.meta.get('scale')}: weights and activations of "
            f"{job.cell.strategy.name} on {job.cell.placement.ranks_per_node} ranks take "
            f"{needed / 2**30:.1f} GiB, allowed is "
            f"{MEMORY_FRACTION * available / 2**30:.1f} GiB; {REMEDY}"
        )


def _check_gpu_memory(job: Job, gpus: int, size: int) -> None:
    if not gpus or not size:
        return
    needed, sharing = gpu_needed_bytes(job, gpus), -(-job.cell.placement.ranks_per_node // gpus)
    if needed > GPU_FRACTION * size:
        whose = f"its {sharing} ranks on a GPU take" if sharing > 1 else "a rank takes"
        raise ConfigError(
            f"model.scale={job.meta.get('scale')}: with {job.cell.strategy.name} {whose} "
            f"{needed / 2**30:.1f} GiB of GPU memory, its check and the choice of its kernel "
            f"included, allowed is {GPU_FRACTION * size / 2**30:.1f} GiB of a GPU's "
            f"{size / 2**30:.1f} GiB; {REMEDY}"
        )
