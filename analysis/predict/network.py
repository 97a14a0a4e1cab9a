"""Seconds of collectives on two tiers of links: inside a node, and between nodes.

A group of n ranks, `stride` apart, has m of them in each of N nodes. Per rank, of a collective that
sends `sent` bytes:

    all-to-all            (m-1)/(n-1) of the bytes stay in the node, the others leave it
    ring collectives      of the whole X = sent n/(n-1): (n-1)/n X goes round in the node, and each
                          of the node's m ports carries (N-1)/N X / m between nodes

Both tiers work at the same time: the slower one counts. Latency is the slowest tier's alpha, and
message_s for each message (Hockney's model; two tiers as in NCCL's own tuning). Where a switch sums
(NVLink SHARP), an all-reduce sends the whole into it once, instead of 2 (n-1)/n times.

NCCL sends in chunks, which a receiver passes on or copies while the next one arrives. Few chunks
leave the pipeline empty at first, many cost a start each: of w seconds on the wire the best number
of chunks costs 2 sqrt(alpha w) where every hop starts anew (the optimal
segments of a pipelined collective), and `ramp` sqrt(alpha w) with the link's own factor.

Where every rank has links of its own (`HardwareModel.own_links`), a ring is one round of all
ranks: where it leaves the node, all `sent` bytes of a rank wait for the slower tier, in each of its
2 (n-1) or n-1 turns. A reduce-scatter is an all-to-all. What a call, a message and a turn take
beside their bytes is fitted (`counts`): there is no alpha.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from analysis.predict.hardware import HardwareModel, Link
from moe.cost import Call
from moe.parallel.algorithms import CHOSEN, EXCHANGE, fit_name


@dataclass(frozen=True)
class Times:
    """Seconds of latency, starts of chunks included, and seconds that the bytes take."""

    alpha_s: float
    wire_s: float

    @property
    def total_s(self) -> float:
        return self.alpha_s + self.wire_s


def members_per_node(size: int, stride: int, ranks_per_node: int) -> int:
    """m: how many of a group's ranks share a node."""
    return max(1, min(size, ranks_per_node // stride))


def call_times(call: Call, machine: HardwareModel) -> Times:
    """Seconds per rank of all calls of one collective in a step."""
    name = fit_name(call.collective, call.algorithm)
    if name in machine.links:
        return _one_tier(call, machine.links[name])
    size = call.group.size
    to_all = not is_ring(call) if machine.own_links else name == "all_to_all"
    inside = members_per_node(size, call.group.stride, machine.ranks_per_node)
    moved = max(call.sent_bytes, call.received_bytes)
    if to_all:
        near = moved * (inside - 1) / (size - 1)
        far = moved - near
    elif machine.own_links:
        near, far = (moved, 0.0) if inside == size else (0.0, moved)
    else:
        nodes = size / inside
        near = moved if inside > 1 else 0.0
        if name == "all_reduce" and machine.switch_reduces:
            near = near * size / (size - 1) / 2
        far = moved * size / (size - 1) * (nodes - 1) / nodes / inside
    wire = max(
        near / (machine.intra.bytes_per_s * machine.intra_efficiency),
        far / (machine.inter.bytes_per_s * machine.inter_efficiency),
    )
    if machine.own_links:
        return Times(0.0, wire)
    link = machine.inter if inside < size else machine.intra
    start = call.calls * link.alpha_s
    chunks = link.ramp * math.sqrt(start * wire)
    return Times(start + call.messages * link.message_s + chunks, wire)


def is_ring(call: Call) -> bool:
    """Whether gloo passes parts round instead of sending to every member at once."""
    return call.collective in CHOSEN and call.algorithm != EXCHANGE


def counts(call: Call) -> dict[str, float]:
    """How often the software of a rank is at work in these calls, by term of `features`."""
    waits = "hops" if is_ring(call) else "messages"
    return {"calls": call.calls, waits: call.messages}


def _one_tier(call: Call, link: Link) -> Times:
    """Times by the link that was calibrated for this collective."""
    return Times(call.calls * link.alpha_s, call.sent_bytes / link.bytes_per_s)
