"""Timing two or more ways in turns, in one process."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping

Step = Callable[[], object]


def call_ms(step: Step, calls: int = 1) -> float:
    start = time.monotonic_ns()
    for _ in range(calls):
        step()
    return (time.monotonic_ns() - start) / 1e6 / calls


def medians_ms(
    ways: Mapping[str, Step], rounds: int = 9, block_ms: float = 5.0, limit_s: float = 4.0
) -> dict[str, float]:
    """Median over rounds of each way's block of calls; the ways take turns, after one call each
    that is not counted. With one rank a block's time is its makespan."""
    calls = {}
    for name, step in ways.items():
        step()
        calls[name] = max(1, min(200, int(block_ms / max(call_ms(step), 1e-3))))
    taken: dict[str, list[float]] = {name: [] for name in ways}
    gc.collect()
    deadline = time.monotonic() + limit_s
    for number in range(rounds):
        order = list(ways) if number % 2 else list(ways)[::-1]
        for name in order:
            ways[name]()
            taken[name].append(call_ms(ways[name], calls[name]))
        if number >= 4 and time.monotonic() > deadline:
            break
    return {name: statistics.median(values) for name, values in taken.items()}
