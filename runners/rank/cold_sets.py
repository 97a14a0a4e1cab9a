"""Copies of weights that a GPU's cache can't hold, and the time of reading them in turn.

A cell with a cold cache rotates over copies. How many it needs depends on the bytes that a step
reads of each (with few tokens, only those of some experts), and on the cache of each GPU.
runners/records/cold_proof.py judges from the times whether the copies were cold.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from moe.layer.gpu_time import HeldQueue
from moe.spec import Cell
from moe.step import Step
from runners.rank import gpu

SETS_MAX = 512
CACHES = 2  # the sets of a GPU are this many times its cache, and one set more
QUEUED = 128  # reads that are enqueued before the first of them begins
ROTATIONS, REPEATS = 3, 8

Read = Callable[[], object]


def reached_share(cell: Cell) -> float:
    """The most of its experts that a step can read, by the number of its slots."""
    slots = cell.workload.batch_size * cell.layer.topk
    return min(1.0, slots / cell.layer.num_experts)


def reached(expert_slots: Sequence[int], cell: Cell) -> float:
    """Share of the experts that have slots; `reached_share` where the slots are not known."""
    used = sum(1 for count in expert_slots if count)
    return used / len(expert_slots) if used else reached_share(cell)


def row(step: Step, cell: Cell, place: tuple[int, int]) -> list[int]:
    """What `count` must know of this rank: bytes that a step reads, the cache of its GPU, how many
    sets its memory holds (two as runners/config/memory.py counts, more in half of what is free),
    and `place`, its node and GPU."""
    device, weights = step.x_TD.device, step.layer.weights_bytes()
    used = int(reached_share(cell) * weights) + step.x_TD.nbytes
    room = 1 + max(1, gpu.free_bytes(device) // 2 // max(1, weights + step.x_TD.nbytes))
    return [used, gpu.l2_bytes(device), room, *place]


def count(rows: Sequence[Sequence[int]]) -> int:
    """Sets for every rank, from the rows of all of them: enough for each GPU's cache by the bytes
    of its own ranks, as far as its memory allows."""
    used: dict[tuple[int, ...], int] = {}
    caches: dict[tuple[int, ...], int] = {}
    for used_bytes, cache, _, *place in rows:
        used[tuple(place)] = used.get(tuple(place), 0) + used_bytes
        caches[tuple(place)] = cache
    sets = max(-(-CACHES * caches[place] // max(used[place], 1)) + 1 for place in used)
    return max(1, min(sets, SETS_MAX, *(room for _, _, room, *_ in rows)))


def read_times(steps: Sequence[Step], share: float) -> dict[str, float]:
    """Device time in s of reading a set (that share of its weights, and its tokens): `cold_s` with
    all sets in turn, as samples use them, and `warm_s` the first one again and again."""
    sets = [parts(step, share) for step in steps]
    reads = [[partial(torch.sum, part) for part in one] for one in sets]
    turn = [read for one in reads for read in one]
    again = reads[0] * REPEATS
    queue = HeldQueue()
    device_s(turn, queue)  # finds how long to hold the GPU: a read that is repeated is not cold
    cold = statistics.median(device_s(turn, queue) for _ in range(ROTATIONS)) / len(sets)
    device_s(reads[0], queue)
    warm = statistics.median(device_s(again, queue) for _ in range(ROTATIONS)) / REPEATS
    return {
        "bytes": sum(part.nbytes for part in sets[0]),
        "sets": len(sets),
        "l2_bytes": gpu.l2_bytes(steps[0].x_TD.device),
        "cold_s": cold,
        "warm_s": warm,
    }


def parts(step: Step, share: float) -> list[Tensor]:
    """The first `share` of every parameter and all tokens, flat, as float32 where they can be seen
    as such: a sum of float32 reads at full rate."""
    shares = [(parameter, share) for parameter in step.layer.parameters()]
    flat = [_start(tensor.detach(), part) for tensor, part in [*shares, (step.x_TD, 1.0)]]
    return [part for part in flat if part.numel()]


def _start(tensor: Tensor, share: float) -> Tensor:
    """Its first elements in the order of memory, whatever its strides are."""
    wide = 4 // tensor.element_size() or 1
    stored = tensor.untyped_storage().nbytes() // tensor.element_size() - tensor.storage_offset()
    count = min(stored, -(-int(share * tensor.numel()) // wide) * wide)
    flat = tensor.as_strided((count,), (1,))
    fits = tensor.element_size() < 4 and not (count % wide or tensor.storage_offset() % wide)
    return flat.view(torch.float32) if fits else flat


def device_s(reads: Sequence[Read], queue: HeldQueue) -> float:
    """Seconds that the GPU takes for all reads, without the host's time to launch them."""

    def enqueue(first: int) -> None:
        for read in reads[first : first + QUEUED]:
            read()

    return sum(queue.ms(partial(enqueue, first)) for first in range(0, len(reads), QUEUED)) / 1e3
