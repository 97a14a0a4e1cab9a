"""What no text of a packed file may contain, and the list of what a filter has withheld."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any

from moe.strategies import names as strategies
from runners.host.identity import FURTHER_KEYS, KEYS, names_here, whole_words
from runners.packed import record_fields

_KEY = re.compile(f"{KEYS}|{FURTHER_KEYS}")


Names = re.Pattern[str] | None


def nameless(text: str, names: Names) -> bool:
    """Whether the text has none of the names."""
    return names is None or not names.search(text)


@functools.lru_cache(100_000)  # the records of a sweep have the same words
def harmless(text: str, names: Names) -> bool:
    """Whether it has none of the names, and nothing in it looks like a key."""
    return nameless(text, names) and not _KEY.search(text)


class Guard:
    """Refuses texts with one of `names` as a whole word, or with what looks like a key. `withheld`
    are the paths and values that a filter has removed."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.withheld: list[tuple[str, Any]] = []
        self.names: Names = whole_words(names)

    def withhold(self, path: str, value: Any) -> None:
        self.withheld.append((path, value))

    def harmless(self, text: str) -> bool:
        return harmless(text, self.names)


def guard_of(names: Iterable[str] | None = None) -> Guard:
    """A guard of names, without those that a record's own words are; None: `names_here()`."""
    names = names_here() if names is None else names
    return Guard(name for name in names if name.lower() not in _own_words())


@functools.cache
def _own_words() -> frozenset[str]:
    """Words of the fields and their closed lists, in lower case: they name nobody."""
    words = {*strategies()}
    for values in record_fields.CLOSED.values():
        words |= {value for value in values if isinstance(value, str)}
    for line in record_fields.lines():
        words |= {*line.choices, *re.split(r"\W+", line.path)}
    return frozenset(word.lower() for word in words)
