"""Parts of sentences: places along an axis, factors, lists of names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.data.facets import title_of

BOUNDS = (0.02, 0.05, 0.10, 0.15, 0.20, 0.25)  # of a change, as they are told
COUNTED = {"world_size": "ranks", "num_experts": "experts"}  # axes whose values count things
NAMES = {"train": "training", "forward": "forward passes", "learned": "learned routing"}
PREPOSITIONS = {"world_size": "on", "mode": "in", "dtype": "in"}
AT = ("topk_requested", "topk", "batch_size", "dim", "hidden", "dim_out", "workload_parameter")
BARE = ("mode", "dtype", "load", "model", "metric")  # axes whose values say what they are


def times(factor: float) -> str:
    """A factor to two significant figures, three near one: 1.04, 1.4, 12."""
    if factor < 1.095:
        return f"{factor:.2f}"
    return f"{factor:.1f}" if factor < 9.95 else f"{factor:,.0f}"


def span(factors: Sequence[float]) -> str:
    """ "1.9 to 2.2", or one factor where both ends read the same."""
    low, high = times(min(factors)), times(max(factors))
    return low if low == high else f"{low} to {high}"


def percent(factor: float) -> str:
    """The least of BOUNDS that covers a change by this factor, up or down: "5%"."""
    return f"{next((b for b in BOUNDS if factor - 1 <= b), BOUNDS[-1]):.0%}"


def listing(words: Sequence[str], last: str = "and") -> str:
    """ "a, b and c"."""
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def of_axis(axis: str) -> str:
    """What a time may depend on: "top-k", "the number of ranks", "the workload"."""
    if axis in COUNTED:
        return f"the number of {COUNTED[axis]}"
    if axis == "tokens":
        return "how the tokens are spread"
    return title_of(axis) if axis in ("topk_requested", "topk") else f"the {title_of(axis)}"


def every(axis: str) -> str:
    """ "at every top-k"."""
    counted = f"at every number of {COUNTED[axis]}" if axis in COUNTED else ""
    return counted or f"{_preposition(axis)} every {title_of(axis)}"


def value(axis: str, values: Sequence[Any]) -> str:
    """ "batch size 8 and 16", "4 ranks", "training", "zipf 1.2", "sharded tokens"."""
    words = listing([NAMES.get(str(v), str(v)) for v in values])
    if axis in COUNTED:
        one = len(values) == 1 and str(values[0]) == "1"
        return f"{words} {COUNTED[axis][:-1] if one else COUNTED[axis]}"
    if axis in BARE:
        return words
    return f"{words} tokens" if axis == "tokens" else f"{title_of(axis)} {words}"


def at(axis: str, values: Sequence[Any]) -> str:
    """ "at batch size 8 and 16", "on 4 ranks", "in training", "with zipf 1.2"."""
    return f"{_preposition(axis)} {value(axis, values)}"


def short_at(axis: str, x: Any) -> str:
    """The same where the axis was just named: "at 8", "on 4", "in forward passes"."""
    return f"{_preposition(axis)} {NAMES.get(str(x), str(x))}"


def _preposition(axis: str) -> str:
    return PREPOSITIONS.get(axis, "at" if axis in AT else "with")
