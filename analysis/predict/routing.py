"""The experts that captured tokens chose: how many slots the busiest rank has, by placement.

A trace has the choices of one layer, token after token. Its first half chooses placements and
copies, its second half judges them: what fits the rows it was chosen from may not fit others.

Shape letters: N tokens, K slots of a token, E experts, W windows (tokens of one ep group in one
step), R ranks that share the experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from analysis.errors import InputError
from moe.cost.load import dispatched_tokens, dispatches, routed_tokens
from moe.parallel.expert_order import by_load, order_for
from moe.spec import Cell, LayerSpec
from moe.strategies import degrees
from runners.records.routing_trace import SHAPE, TraceError, read_trace

Array = np.ndarray[Any, Any]
MOST_WINDOWS = 1024  # that are judged, from the second half's start
LEAST_ROWS = 2


@dataclass(frozen=True)
class CapturedRouting:
    """`indices_NK` are the expert ids of a checked trace of `experts` experts."""

    path: str
    sha256: str
    experts: int
    indices_NK: Array
    known: dict[tuple[Any, ...], float] = field(default_factory=dict)  # skews by their inputs

    @property
    def chosen_NK(self) -> Array:
        """The first half of the rows, by which placements and copies are chosen."""
        return self.indices_NK[: len(self.indices_NK) // 2]

    @property
    def judged_NK(self) -> Array:
        """The second half of the rows, on which they are judged."""
        return self.indices_NK[len(self.indices_NK) // 2 :]

    @cached_property
    def loads(self) -> list[int]:
        """Slots per expert in the first half."""
        return [int(n) for n in np.bincount(self.chosen_NK.ravel(), minlength=self.experts)]

    def new_order(self, ranks: int) -> tuple[int, ...]:
        """Expert of every place of a new placement on `ranks` ranks, by the first half's loads."""
        return tuple(by_load(self.loads, ranks))

    def skew(self, cell: Cell, chosen: bool = False) -> float:
        """Slots of the busiest rank over the mean of all ranks, by the cell's own placement and
        copies: the mean over the steps that fit in the second half, or in the `chosen` one.

        Groups of ranks that each hold all experts (dp) route different tokens, and the busiest of
        their ranks counts. Rows that are fewer than a group's tokens are repeated. 1.0 where every
        rank has every expert, or a part of it.
        """
        ranks, _, replicas = degrees(cell)
        if ranks == 1:
            return 1.0
        tokens = dispatched_tokens(cell, 0) if dispatches(cell) else routed_tokens(cell, 0)
        form = cell.strategy
        knobs = (form.placement, form.expert_order, form.hot_replicas)
        key = (*knobs, ranks, replicas, tokens, chosen)
        if key not in self.known:
            order = order_for(cell, ranks, self.loads)
            rows_NK = self.chosen_NK if chosen else self.judged_NK
            self.known[key] = _skew(order, self.experts, ranks, rows_NK, tokens, replicas)
        return self.known[key]


def _skew(
    order: Sequence[int], experts: int, ranks: int, rows_NK: Array, tokens: int, replicas: int
) -> float:
    """Of steps of `replicas` groups of ranks, which route `tokens` tokens each."""
    tokens = min(tokens, len(rows_NK))
    windows = min(len(rows_NK) // tokens, MOST_WINDOWS)
    rows_NK = rows_NK[: windows * tokens]
    groups = min(replicas, windows)
    ids_N1 = np.arange(len(rows_NK))[:, None]
    rank_NK = _ranks(order, experts, ranks, rows_NK, ids_N1 % (groups * tokens))
    slots_WR = np.bincount(
        (ids_N1 // tokens * ranks + rank_NK).ravel(), minlength=windows * ranks
    ).reshape(windows, ranks)
    steps = windows // groups
    busiest = slots_WR[: steps * groups].reshape(steps, -1).max(axis=1)
    return float(busiest.mean() * ranks / (tokens * rows_NK.shape[1]))


def _ranks(
    order: Sequence[int], experts: int, ranks: int, rows_NK: Array, token_N1: Array
) -> Array:
    """[N, K] the rank of every slot; tokens take turns among an expert's copies by their ids, as
    `moe.parallel.expert_placement.Places.locate` deals them out."""
    size = len(order) // ranks
    where: list[list[int]] = [[] for _ in range(experts)]
    for place, expert in enumerate(order):
        where[expert].append(place // size)
    most = max(map(len, where))
    table_EC = np.array([held + held[:1] * (most - len(held)) for held in where])
    if most == 1:
        return table_EC[:, 0][rows_NK]
    copies_E = np.array([len(held) for held in where])
    return table_EC[rows_NK, token_N1 % copies_E[rows_NK]]


def read(path: str, layer: LayerSpec) -> CapturedRouting:
    """The trace in a file, checked as bench.py's workload.trace is; raises InputError."""
    try:
        trace = read_trace(path, layer.topk, layer.num_experts)
    except TraceError as error:
        raise InputError(
            f"--trace {path}: {error}; allowed is {SHAPE}; name another file, or change --model or "
            "--topk to its own (docs/workloads.md)"
        ) from None
    if trace.count < LEAST_ROWS:
        raise InputError(
            f"--trace {path}: {trace.count} row; allowed are {LEAST_ROWS} or more, of which half "
            "choose and half judge; capture more tokens"
        )
    rows = np.frombuffer(trace.rows, "<i4").reshape(trace.count, layer.topk)
    return CapturedRouting(path, trace.sha256, layer.num_experts, rows)
