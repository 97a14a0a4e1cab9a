"""Shapes: what a value of a record may be, as a check, as a filter and as a JSON schema; here those
of single values (runners/packed/compound.py has lists, objects and maps).

A filter keeps what its shape allows. What it does not allow is removed: a field goes, a text
becomes its shape's stand-in, and the guard notes the path.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from runners.packed.guard import Guard, Names, harmless

LEAST_INT, MOST_INT = -(2**63), 2**63 - 1
LONGEST = 200  # characters of a text of a pattern
Check = Callable[[str, Names], bool]
GONE: Any = object()  # stands for a value that nothing can stand in for


class Shape:
    """What a value may be."""

    empty: Any = GONE  # stands in for a value that does not fit

    def json_schema(self) -> dict[str, Any]:
        """In JSON Schema, of the value on disk."""
        raise NotImplementedError

    def fits(self, value: Any, guard: Guard) -> bool:
        """Whether a filter would keep the value as it is."""
        raise NotImplementedError

    def all_fit(self, values: Sequence[Any], guard: Guard) -> bool:
        return all(self.fits(value, guard) for value in values)

    def mended(self, value: Any, path: str, guard: Guard) -> Any:
        """What stays of a value that does not fit; GONE for nothing."""
        guard.withhold(path, value)
        return self.empty

    def portable(self, value: Any, path: str, guard: Guard) -> Any:
        """What the shape allows of the value; `guard` notes what it does not."""
        return value if self.fits(value, guard) else self.mended(value, path, guard)


class Bool(Shape):
    def json_schema(self) -> dict[str, Any]:
        return {"type": "boolean"}

    def fits(self, value: Any, guard: Guard) -> bool:
        return type(value) is bool


class Int(Shape):
    """A whole number of 64 bits."""

    def json_schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": LEAST_INT, "maximum": MOST_INT}

    def fits(self, value: Any, guard: Guard) -> bool:
        return type(value) is int and LEAST_INT <= value <= MOST_INT

    def all_fit(self, values: Sequence[Any], guard: Guard) -> bool:
        if not values:
            return True
        return {*map(type, values)} == {int} and (
            min(values) >= LEAST_INT and max(values) <= MOST_INT
        )


class Number(Shape):
    """A finite number."""

    def json_schema(self) -> dict[str, Any]:
        return {"type": "number"}

    def fits(self, value: Any, guard: Guard) -> bool:
        if type(value) is float:
            return math.isfinite(value)
        return type(value) is int and LEAST_INT <= value <= MOST_INT


@dataclass
class Choice(Shape):
    """One of a closed list."""

    values: tuple[Any, ...]

    def json_schema(self) -> dict[str, Any]:
        return {"enum": list(self.values)}

    def fits(self, value: Any, guard: Guard) -> bool:
        return type(value) in (str, int, type(None)) and value in self.values

    def all_fit(self, values: Sequence[Any], guard: Guard) -> bool:
        return {*map(type, values)} <= {str, int} and {*values} <= {*self.values}


@dataclass
class Text(Shape):
    """A text of a pattern; the empty text stands in where the pattern allows it. `checked` is what
    else it must pass: `harmless`, or for a hash, which may look like a key,
    `nameless`."""

    pattern: str
    checked: Check = harmless
    empty: Any = field(init=False, repr=False)
    _compiled: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._compiled = re.compile(self.pattern)
        self.empty = "" if self._compiled.fullmatch("") else GONE

    def json_schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^(?:{self.pattern})$"}

    def fits(self, value: Any, guard: Guard) -> bool:
        return (
            type(value) is str
            and len(value) <= LONGEST
            and _passes(value, self._compiled, self.checked, guard.names)
        )


@functools.lru_cache(100_000)
def _passes(text: str, pattern: re.Pattern[str], checked: Check, names: Names) -> bool:
    return bool(pattern.fullmatch(text)) and checked(text, names)


@dataclass
class Reduced(Shape):
    """A text of which a filter keeps a part: `reduce` gives that part, and what it gives is its
    own part. On disk any text."""

    reduce: Callable[[str], str]
    empty: Any = ""

    def json_schema(self) -> dict[str, Any]:
        return {"type": "string"}

    def fits(self, value: Any, guard: Guard) -> bool:
        return type(value) is str and self._kept(value, guard) == value

    def mended(self, value: Any, path: str, guard: Guard) -> Any:
        guard.withhold(path, value)
        return self._kept(value, guard) if type(value) is str else self.empty

    def _kept(self, value: str, guard: Guard) -> Any:
        kept = self.reduce(value)
        return kept if guard.harmless(kept) else self.empty


class Sentence(Reduced):
    """Free text on disk; a filter keeps nothing of it."""

    def __init__(self) -> None:
        super().__init__(lambda text: "")


@dataclass
class Nullable(Shape):
    """The same or null, which stands in for what does not fit."""

    inner: Shape

    def json_schema(self) -> dict[str, Any]:
        return {"anyOf": [self.inner.json_schema(), {"type": "null"}]}

    def fits(self, value: Any, guard: Guard) -> bool:
        return value is None or self.inner.fits(value, guard)

    def mended(self, value: Any, path: str, guard: Guard) -> Any:
        return self._or_null(self.inner.mended(value, path, guard), value)

    def portable(self, value: Any, path: str, guard: Guard) -> Any:
        if value is None:
            return None
        return self._or_null(self.inner.portable(value, path, guard), value)

    def _or_null(self, kept: Any, value: Any) -> Any:
        stand_in = kept is not value and kept == self.inner.empty
        return None if kept is GONE or stand_in else kept
