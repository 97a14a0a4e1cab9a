"""Flags as letters beside numbers, with the legend that explains them and what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Mark(NamedTuple):
    """A flag's letter, what it means, what to do next, and what it means for a verdict, after "9
    cells": a verb in the plural first; empty where no verdict is touched or a banner says it."""

    letter: str
    about: str
    remedy: str
    limit: str = ""


MARKS = {
    "oversubscribed": Mark(
        "o",
        "oversubscribed: more threads than cores, so waiting for a core is part of the time",
        "use fewer ranks, or backend=mpi, or a machine with more cores",
        "have more threads than cores: waiting for a core is part of the time, which says nothing "
        "about a machine with a core for every rank",
    ),
    "clamped": Mark(
        "c",
        "clamped: top-k is larger than the number of experts and ran as that number",
        "raise num_experts or lower topk",
    ),
    "under_floor": Mark(
        "f",
        "under the floor: a timed block is shorter than ten times what an empty block takes",
        "use longer blocks (measure.block_ms) or a larger layer",
        "have blocks too short for the clock, so that the time is uncertain",
    ),
    "start_grows": Mark(
        "s",
        "the start of a block has not levelled off: a part of it may be in the time",
        "use longer blocks (measure.block_ms), or fewer ranks than cores",
        "may have a part of the cost of starting a block in the time",
    ),
    "no_steady_state": Mark(
        "w",
        "no steady state was seen in warm-up",
        "raise measure.warmup_max, or look at the sample traces (plot traces)",
        "did not reach a steady time in warm-up",
    ),
    "drift": Mark(
        "d",
        "the machine drifted while the cell was measured",
        "measure again on a quiet machine",
    ),
    "throttled": Mark(
        "g",
        "GPUs were throttled in the wave, in over 1% of the readings",
        "cool the GPUs, raise their power limit, or lock their clocks (nvidia-smi -lgc)",
        "ran on throttled GPUs, so that the time depends on heat or power",
    ),
    "not_cold": Mark(
        "h",
        "not cold: reading its sets of weights in turn took less time than from memory",
        "use a larger layer or more tokens, or measure.cache=warm",
        "found weights in the cache that were to be cold",
    ),
    "stopped_by_maximum": Mark(
        "m",
        "stopped by the largest number of samples before the interval was narrow enough",
        "raise measure.samples_max",
        "were stopped by the largest number of samples before every interval was as narrow as "
        "asked for",
    ),
    "stopped_by_wall": Mark(
        "t",
        "stopped by the wall limit before the interval was narrow enough",
        "raise measure.wall_limit_s",
        "were stopped by the time limit before every interval was as narrow as asked for",
    ),
    "stopped_by_interrupted": Mark(
        "i",
        "sampling was interrupted",
        "measure again",
        "were interrupted, with fewer samples than asked for",
    ),
    "some_attempts_failed": Mark(
        "p",
        "some attempts at this cell failed; the others are shown",
        "see analysis status",
        "have attempts that failed; only the others count",
    ),
    "no_interval": Mark("n", "too few rounds for an interval", "raise measure.samples"),
}


def letters(flags: Iterable[str]) -> str:
    """ "(o,c)", or nothing; an unknown flag is written out."""
    marks = [MARKS[f].letter if f in MARKS else f for f in flags]
    return f" ({','.join(marks)})" if marks else ""


def legend(flags: Iterable[str]) -> list[str]:
    """One line for every mark in use, in the order of MARKS."""
    used = set(flags)
    return [f"{mark.letter}: {mark.about}" for flag, mark in MARKS.items() if flag in used]
