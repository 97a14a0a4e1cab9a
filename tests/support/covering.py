"""Rows in which every accepted pair of values of any two factors occurs: a covering array."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Pair = tuple[str, Any, str, Any]
TRIES = 40


def pairs_of(row: Mapping[str, Any]) -> set[Pair]:
    return {(a, row[a], b, row[b]) for a, b in itertools.combinations(sorted(row), 2)}


def pairwise(
    factors: Mapping[str, Sequence[Any]],
    accepted: Callable[[Row], bool],
    seed: int = 0,
    known: Sequence[Row] = (),
    kept: Sequence[str] = (),
) -> tuple[list[Row], set[Pair]]:
    """Rows that are accepted, and the pairs that no accepted row was found for. A greedy search, as
    AETG's: of several rows with an open pair, the one that covers most. `known` are accepted rows
    to vary: few rows are accepted that are drawn at random. The result has every combination of the
    factors `kept` that is in `known`."""
    draw = random.Random(seed)
    names = sorted(factors)
    cached = functools.cache(lambda values: accepted(dict(zip(names, values, strict=True))))

    def allowed(row: Row) -> bool:
        return cached(tuple(row[name] for name in names))

    left = {
        (a, x, b, y)
        for a, b in itertools.combinations(names, 2)
        for x in factors[a]
        for y in factors[b]
    }
    rows: list[Row] = []
    for row in known if kept else ():
        same = {name: row[name] for name in kept}
        varied = (_varied([row], factors, draw) | same for _ in range(TRIES))
        rows.append(_best(varied, allowed, left) or row)
        left -= pairs_of(rows[-1])
    impossible: set[Pair] = set()
    for pair in sorted(left, key=repr):
        if pair not in left:
            continue
        a, x, b, y = pair
        varied = (_varied([*known, *rows], factors, draw) | {a: x, b: y} for _ in range(TRIES))
        plain = (row | {a: x, b: y} for row in known)
        found = _best(varied, allowed, left) or next(filter(allowed, plain), None)
        if found is None:
            impossible.add(pair)
            left.discard(pair)
            continue
        rows.append(found)
        left -= pairs_of(found)
    return rows, impossible


def _varied(rows: Sequence[Row], factors: Mapping[str, Sequence[Any]], draw: random.Random) -> Row:
    """One of the rows with about half of its values drawn anew; all of them where there is none."""
    base = draw.choice(rows) if rows else {}
    return {
        name: draw.choice(values) if name not in base or draw.random() < 0.5 else base[name]
        for name, values in factors.items()
    }


def _best(
    candidates: Iterable[Row], accepted: Callable[[Row], bool], left: set[Pair]
) -> Row | None:
    """Of those that are accepted, the one that covers most of what is left."""
    best, most = None, -1
    for row in candidates:
        covers = len(pairs_of(row) & left)
        if covers > most and accepted(row):
            best, most = row, covers
    return best
