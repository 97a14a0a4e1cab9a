"""Costs of collectives on the ranks of a launch, fitted to a few message sizes within a time limit.

Rank 0's clock decides what is still measured and tells the others, so that no rank waits for one
that has stopped.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from moe.parallel import algorithms
from moe.parallel.comm import Comm, RankGroup
from moe.parallel.traffic import GroupShape
from runners.rank import gpu
from runners.rank.probe import Probe, Step
from runners.records import calibrations

ENDS_BYTES = (1 << 10, 1 << 20)  # messages of these sizes first: a line needs two
BETWEEN_BYTES = (16 << 10, 128 << 10)
GPU_ENDS_BYTES = (1 << 10, 256 << 20)  # links of GPUs reach their rate with large messages only
GPU_BETWEEN_BYTES = (16 << 20, 1 << 20, 64 << 10)
COLLECTIVES = ("barrier", "all_to_all", "all_reduce", "all_gather", "reduce_scatter")
NOTHING, ALL = (dict.fromkeys(algorithms.CHOSEN, limit) for limit in (0, 1 << 30))
BLOCKS = 5  # of calls, per collective and size, if time allows


class Messages(NamedTuple):
    """Sizes of messages, in bytes, in the order of their importance."""

    ends: tuple[int, int]
    between: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        return (*self.ends, *self.between)


CPU_MESSAGES = Messages(ENDS_BYTES, BETWEEN_BYTES)


def message_sizes(group: RankGroup) -> Messages:
    """Those that are timed in the group; on GPUs as far as half of the least free memory of all
    ranks allows. Every rank calls it."""
    device = group.comm.device
    if device.type != "cuda":
        return CPU_MESSAGES
    free = torch.tensor([gpu.free_bytes(device)], dtype=torch.int64, device=device)
    return gpu_messages(group.size, int(group.comm.world.combine_(free, "min").item()) // 2)


def gpu_messages(ranks: int, room_bytes: int) -> Messages:
    """Up to a size of which an all-gather's message and output, and one message more, have room."""
    least, largest = GPU_ENDS_BYTES
    largest = max(2 * least, min(largest, room_bytes // (ranks + 2)))
    between = tuple(size for size in GPU_BETWEEN_BYTES if size < largest)
    return Messages((least, largest), between)


def from_rank0(comm: Comm, value: float) -> float:
    """Rank 0's value, on every rank."""
    tensor = torch.tensor([value], dtype=torch.float64, device=comm.device)
    return float(comm.world.broadcast_(tensor).item())


def collective_steps(group: RankGroup, size: int) -> dict[str, tuple[float, Step]]:
    """By name: bytes that a rank sends to others, and the call as strategies make it.

    Repeated sums overflow to infinity, which costs no more to add than other numbers.
    """
    ranks = group.size
    rows = max(1, size // (4 * ranks))
    x = torch.randn(rows * ranks, 1, device=group.comm.device)
    split, even = x.nbytes * (ranks - 1) / ranks, [rows] * ranks
    return {
        "barrier": (0.0, group.barrier),
        "all_reduce": (2 * split, lambda: group.all_reduce_(x)),
        "all_gather": ((ranks - 1) * x.nbytes, lambda: group.all_gather(x, [len(x)] * ranks)),
        "all_to_all": (split, lambda: group.all_to_all(x, even, even)),
        "reduce_scatter": (split, lambda: group.reduce_scatter(x, even)),
    }


def time_collective(probe: Probe, comm: Comm, step: Step, share_s: float) -> tuple[float, float]:
    """(median, minimum) over blocks of the slowest rank's time per call, in s: two blocks, and more
    while rank 0's share of the time lasts."""
    until_s = probe.clock() + share_s

    def slowest_s(calls: int) -> float:
        comm.barrier()
        elapsed = torch.tensor([probe.elapsed_s(step, calls)], dtype=torch.float64)
        return float(comm.world.combine_(elapsed.to(comm.device), "max").item())

    trial_s = max(slowest_s(1), slowest_s(2) / 2)
    wanted = from_rank0(comm, max(0.0, probe.left_s(until_s)) / BLOCKS) / max(trial_s, 1e-9)
    calls = max(1, min(1000, int(wanted)))
    blocks: list[float] = []
    while len(blocks) < 2 or (len(blocks) < BLOCKS and from_rank0(comm, probe.left_s(until_s)) > 0):
        blocks.append(slowest_s(calls) / calls)
    return statistics.median(blocks), min(blocks)


def collective_fits(
    probe: Probe, group: RankGroup, until_s: float, names: Sequence[str] = COLLECTIVES
) -> dict[str, Any]:
    """Fits by collective, of the library's own algorithms; every rank calls it with its own group.
    When the time runs out, sizes are left out first, then collectives with fewer than two sizes.
    """
    comm = group.comm
    if group.size == 1:
        return {}
    with comm.exchanging(NOTHING):
        return _collective_fits(probe, group, until_s, names)


def _collective_fits(
    probe: Probe, group: RankGroup, until_s: float, names: Sequence[str]
) -> dict[str, Any]:
    comm, messages = group.comm, message_sizes(group)
    on_gpu = comm.device.type == "cuda"  # its messages are large: one at a time is kept
    kept = {} if on_gpu else {size: collective_steps(group, size) for size in messages.all}
    pairs = [(name, size) for name in names for size in messages.ends]
    pairs += [(name, size) for size in messages.between for name in names]
    pairs = [w for w in pairs if w[0] != "barrier" or w[1] == messages.ends[0]]
    points: dict[str, list[list[float]]] = {}
    least_s = 0.0  # shortest time that a size has taken
    for done, (name, size) in enumerate(pairs):
        began_s = probe.clock()
        left_s = until_s - began_s
        share_s = from_rank0(comm, left_s / (len(pairs) - done) if left_s > least_s else 0.0)
        if share_s <= 0:
            break
        sent, step = (kept.get(size) or collective_steps(group, size))[name]
        seconds = time_collective(probe, comm, step, share_s)
        del step
        points.setdefault(name, []).append([sent, *seconds])
        least_s = min(least_s or math.inf, probe.clock() - began_s)
    return {
        name: _fit(sorted(rows))
        for name, rows in points.items()
        if len(rows) > 1 or name == "barrier"
    }


def exchange_limits(probe: Probe, comm: Comm, until_s: float) -> tuple[dict[str, int], list[str]]:
    """Largest messages, in bytes, that all ranks of a gloo launch exchange
    (moe.parallel.algorithms), and in words what was not timed. Each size is timed with both
    algorithms, one after the other."""
    pairs = [(name, size) for size in algorithms.SIZES_BYTES for name in algorithms.CHOSEN]
    times: dict[str, dict[int, tuple[float, float]]] = {name: {} for name in algorithms.CHOSEN}
    least_s = 0.0  # shortest time that a pair has taken
    for done, (name, size) in enumerate(pairs):
        began_s = probe.clock()
        left_s = until_s - began_s
        share_s = from_rank0(comm, left_s / (len(pairs) - done) / 2 if left_s > least_s else 0.0)
        if share_s <= 0:
            break
        _, step = collective_steps(comm.world, size)[name]
        both = []
        for exchanged in (NOTHING, ALL):
            with comm.exchanging(exchanged):
                both.append(time_collective(probe, comm, step, share_s)[0])
        times[name][size] = both[0], both[1]
        least_s = min(least_s or math.inf, probe.clock() - began_s)
    missing = [
        f"{len(algorithms.SIZES_BYTES) - len(timed)} of {len(algorithms.SIZES_BYTES)} exchanges of "
        f"{name}"
        for name, timed in times.items()
        if len(timed) < len(algorithms.SIZES_BYTES)
    ]
    return algorithms.choose(times, comm.world_size), missing


def left_out(
    fits: dict[str, Any], names: Sequence[str] = COLLECTIVES, sizes: int = len(CPU_MESSAGES.all)
) -> list[str]:
    """What was not timed, in words; `sizes` is how many messages were to be timed."""
    wanted = {name: sizes if name != "barrier" else 1 for name in names}
    timed = {name: len(fits[name]["points"]) if name in fits else 0 for name in names}
    return [
        f"{wanted[name] - timed[name]} of {wanted[name]} sizes of {name}"
        for name in names
        if timed[name] < wanted[name]
    ]


def tier_fits(probe: Probe, comm: Comm, nodes: int, until_s: float) -> dict[str, Any]:
    """Fits inside nodes (of their ranks) and between nodes (of ranks with the same place in their
    node, all such groups at once, as collectives over several nodes use the links)."""
    on_node = comm.world_size // nodes
    inside = comm.group(GroupShape("node", on_node, 1))
    across = comm.group(GroupShape("across nodes", nodes, on_node))
    half_s = probe.clock() + probe.left_s(until_s) / 2
    parts = {"intra": (inside, half_s), "inter": (across, until_s)}
    return {
        name: collective_fits(probe, group, until, ("barrier", "all_to_all"))
        for name, (group, until) in parts.items()
    }


def _fit(points: list[list[float]]) -> dict[str, Any]:
    alpha, beta, error = calibrations.fit_line([p[0] for p in points], [p[1] for p in points])
    return {"alpha_s": alpha, "beta_s_per_byte": beta, "error": error, "points": points}
