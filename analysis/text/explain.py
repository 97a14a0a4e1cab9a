"""An explanation as a sentence, a table and notes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from analysis import numbers
from analysis.stats import parts
from analysis.stats.explain import Explanation, Part
from analysis.text import render

HEADER = ("part", "ms", "low", "high", "share", "first against second")
ABSENT = "not in the records"
# Names of the parts; one that is not here is its own name.
NAMES = {
    parts.ARITHMETIC: "experts: arithmetic",
    parts.READS: "experts: weights and rows read",
    parts.MEMORY: "experts: memory mapped anew",
    parts.SKEW: "experts: skew, slots of the busiest rank",
    parts.RATE: "experts: same work at another rate (kernel, slow rank)",
    parts.ROUTER: "router",
    parts.ROWS: "moving rows (permute, unpermute)",
    parts.LINK_RATE: "links: same bytes at another rate",
    parts.WAITING: "waiting for other ranks",
    parts.HOST: "host: waits, and time outside of the phases",
    parts.CORES: "oversubscription",
    parts.UNEXPLAINED: "not explained",
}
MOST_NAMED = 3  # parts in the sentence
LEAST_SHARE = 0.1  # of the difference, of a part in the sentence


def name(key: str) -> str:
    return NAMES.get(key, key)


def headline(explanation: Explanation) -> str:
    """One sentence: the difference, its largest parts, and what is not explained."""
    a, b = explanation.names
    first, second = (numbers.short(value) for value in explanation.medians_ms)
    total = explanation.total
    value = total.ms or 0.0
    size = _interval(total, abs(value), flipped=value < 0)
    if total.low <= 0 <= total.high:
        start = f"no difference of {a} and {b} is shown: {first} and {second} ms, {size} apart"
    else:
        word = "faster" if value < 0 else "slower"
        start = f"{a} is {size} {word} than {b} ({first} against {second} ms)"
    named = _named(explanation, value)
    words = [f"{_interval(part, part.ms or 0.0)} {name(part.key)}" for part in named]
    rest = next(part for part in explanation.parts if part.key == parts.UNEXPLAINED)
    words.append(f"{numbers.short(rest.ms or 0.0)} ms is not explained")
    return f"{start}: {'; '.join(words)}"


def _named(explanation: Explanation, value: float) -> list[Part]:
    ordered = sorted(explanation.parts, key=lambda part: -abs(part.ms or 0.0))
    return [
        part
        for part in ordered
        if part.key != parts.UNEXPLAINED and abs(part.ms or 0.0) > LEAST_SHARE * abs(value)
    ][:MOST_NAMED]


def _interval(part: Part, value: float, flipped: bool = False) -> str:
    """ "2.90 ms [2.60, 3.20]"; `flipped` for a size whose sign is left out."""
    low, high = (-part.high, -part.low) if flipped else (part.low, part.high)
    text = numbers.short(value)
    if not math.isfinite(low):
        return f"{text} ms"
    return f"{text} ms [{numbers.like(low, text)}, {numbers.like(high, text)}]"


def text(explanation: Explanation, banners: Sequence[str], style: str) -> str:
    """All of it, below `banners`."""
    blocks = [
        render.lines(banners, style),
        render.lines([headline(explanation)], style),
        render.simple(HEADER, rows(explanation, style), style),
        render.lines(notes(explanation), style),
    ]
    return "\n\n".join(block for block in blocks if block)


def rows(explanation: Explanation, style: str) -> list[list[str]]:
    """A row for every part, and the difference that they add up to; in CSV with all digits."""
    a, b = explanation.medians_ms
    total = replace(explanation.total, about=f"{numbers.short(a)} against {numbers.short(b)} ms")
    shown = [*explanation.parts, total]
    largest = max((abs(part.ms) for part in shown if part.ms is not None), default=0.0)
    model = "" if style == "csv" else numbers.short(largest)
    return [_row(part, total.ms or 0.0, model) for part in shown]


def _row(part: Part, whole: float, model: str) -> list[str]:
    """`model`: a number with as many decimals as shall be shown; none: all digits."""
    label = "the difference" if part.key == "total" else name(part.key)
    if part.ms is None:
        return [label, ABSENT, "-", "-", "-", part.about]
    figures = [
        numbers.like(value, model) if model else f"{value:.6g}"
        for value in (part.ms, part.low, part.high)
    ]
    ratio = part.ms / whole if whole else math.nan
    share = f"{ratio:.6g}" if not model else f"{ratio:.0%}" if math.isfinite(ratio) else "-"
    return [label, *figures, share.replace("-0%", "0%"), part.about]


def notes(explanation: Explanation) -> list[str]:
    """Lines: what the parts and their intervals are."""
    a, b = explanation.names
    return [
        f"Parts are ms of {a} minus {b}, and add up to the difference (docs/explain.md). Each "
        f"interval holds with 95% by itself, {explanation.basis}."
    ]
