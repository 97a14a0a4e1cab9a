"""Whether a GPU's cache was cold: what bandwidth says about times of reading a cell's sets.

A set is the weights and tokens of one of the copies that a cell with a cold cache rotates over. A
record holds, of every rank, the device time of reading a set in rotation (`cold_s`) and again and
again (`warm_s`). Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runners.records.record import Record

TOLERANCE = 0.8  # of the time that the bytes take from memory at the calibrated rate
VISIBLE = 0.1  # of the time in rotation: what the cache saves is judged if it is at least that
SAVED = 1 / 3  # of what the cache should save, at least


@dataclass(frozen=True)
class ColdProof:
    """Times of reading a set of `bytes` on one rank, and what the calibrated rates say of them."""

    bytes: int
    cold_s: float
    warm_s: float
    expected_ratio: float  # of the two times, by the rates
    proven: bool


def judge(
    measured: Mapping[str, float], read_bytes_per_s: float, warm_bytes_per_s: Mapping[str, float]
) -> ColdProof:
    """Judges the times of one rank by a calibration's rates. Cold is what takes at least as long
    as memory allows, and, where the cache would save a visible part of it, longer than what is read
    again and again. Sets that the cache cannot hold pass: nothing is saved there."""
    size, cold_s, warm_s = (measured[name] for name in ("bytes", "cold_s", "warm_s"))
    memory_s = size / read_bytes_per_s
    cache_s = min(memory_s, size / warm_rate(size, read_bytes_per_s, warm_bytes_per_s))
    saved_s = memory_s - cache_s
    proven = cold_s >= TOLERANCE * memory_s
    if saved_s >= VISIBLE * cold_s:
        proven = proven and cold_s - warm_s >= SAVED * saved_s
    return ColdProof(int(size), cold_s, warm_s, memory_s / cache_s if size else 1.0, proven)


def warm_rate(size: float, memory: float, warm: Mapping[str, float]) -> float:
    """Rate of reading `size` bytes again and again: that of the smallest calibrated size that is as
    large, or the memory's."""
    fitting = [int(known) for known in warm if int(known) >= size]
    return float(warm[str(min(fitting))]) if fitting else memory


def of_record(record: Record) -> list[ColdProof]:
    """A proof for every rank whose record has the times; none without a calibration."""
    measured = [rank["cache"] for rank in record.memory or [] if rank.get("cache")]
    if not (measured and record.calibration):
        return []
    calibration: Mapping[str, Any] = record.calibration
    rates = float(calibration["read_bytes_per_s"]), calibration["read_warm_bytes_per_s"]
    return [judge(one, *rates) for one in measured]
