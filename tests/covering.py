"""Rows in which every accepted pair of values of any two factors occurs: a covering array."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Pair = tuple[str, Any, str, Any]
TRIES = 12


def pairs_of(row: Mapping[str, Any]) -> set[Pair]:
    return {(a, row[a], b, row[b]) for a, b in itertools.combinations(sorted(row), 2)}


def pairwise(
    factors: Mapping[str, Sequence[Any]], accepted: Callable[[Row], bool], seed: int = 0
) -> tuple[list[Row], set[Pair]]:
    """Rows that are accepted, and the pairs that no accepted row was found for (AETG's greedy
    search: of several random completions of an open pair, the one that covers most)."""
    draw = random.Random(seed)
    names = sorted(factors)
    left = {
        (a, x, b, y)
        for a, b in itertools.combinations(names, 2)
        for x in factors[a]
        for y in factors[b]
    }
    rows: list[Row] = []
    impossible: set[Pair] = set()
    for pair in sorted(left, key=repr):
        if pair not in left:
            continue
        found = _best(pair, factors, accepted, left, draw)
        if found is None:
            impossible.add(pair)
            left.discard(pair)
            continue
        rows.append(found)
        left -= pairs_of(found)
    return rows, impossible


def _best(
    pair: Pair,
    factors: Mapping[str, Sequence[Any]],
    accepted: Callable[[Row], bool],
    left: set[Pair],
    draw: random.Random,
) -> Row | None:
    a, x, b, y = pair
    best, most, found = None, -1, 0
    for _ in range(40 * TRIES):
        row = {name: draw.choice(list(values)) for name, values in factors.items()}
        row |= {a: x, b: y}
        if not accepted(row):
            continue
        found += 1
        covers = len(pairs_of(row) & left)
        if covers > most:
            best, most = row, covers
        if found == TRIES:
            break
    return best
