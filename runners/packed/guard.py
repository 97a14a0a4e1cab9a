"""What no text of a packed file may contain, and the list of what a filter has withheld."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any

from runners.host.identity import FURTHER_KEYS, KEYS, whole_words

_KEY = re.compile(f"{KEYS}|{FURTHER_KEYS}")


class Guard:
    """Refuses texts with one of `names` as a whole word, or with what looks like a key. `withheld`
    are the paths and values that a filter has removed."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.withheld: list[tuple[str, Any]] = []
        self._names = whole_words(names)

    def withhold(self, path: str, value: Any) -> None:
        self.withheld.append((path, value))

    def nameless(self, text: str) -> bool:
        """Whether the text has none of the names."""
        return self._names is None or not self._names.search(text)

    def harmless(self, text: str) -> bool:
        """Whether it has none of the names, and nothing in it looks like a key."""
        return _harmless(text, self._names)


@functools.lru_cache(100_000)  # the records of a sweep have the same words
def _harmless(text: str, names: re.Pattern[str] | None) -> bool:
    return not (names and names.search(text)) and not _KEY.search(text)
