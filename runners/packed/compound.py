"""Shapes of lists, objects, maps and data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from runners.packed.guard import Guard
from runners.packed.shapes import GONE, Bool, Choice, Int, Number, Reduced, Sentence, Shape, Text
from runners.packed.texts import TIME, WITHHELD, WORD

MOST_ITEMS = 1_000_000  # of a list
MOST_NAMES = 4096  # of a map
DEPTH = 12  # of data within data


@dataclass
class List(Shape):
    """A list, or a tuple, of one shape. Items that do not fit and have no stand-in are left out."""

    item: Shape
    most: int = MOST_ITEMS

    def json_schema(self) -> dict[str, Any]:
        return {"type": "array", "items": self.item.json_schema(), "maxItems": self.most}

    def fits(self, value: Any, guard: Guard) -> bool:
        return self.all_fit((value,), guard)

    def all_fit(self, values: Sequence[Any], guard: Guard) -> bool:
        if not {*map(type, values)} <= {list, tuple}:
            return False
        if any(len(value) > self.most for value in values):
            return False
        return self.item.all_fit(list(chain.from_iterable(values)), guard)

    def mended(self, value: Any, path: str, guard: Guard) -> Any:
        if type(value) not in (list, tuple) or len(value) > self.most:
            return super().mended(value, path, guard)
        kept = (self.item.portable(item, f"{path}[{n}]", guard) for n, item in enumerate(value))
        return [item for item in kept if item is not GONE]


class Sentences(List):
    """A list of free texts on disk; a filter keeps an empty list."""

    empty = ()

    def __init__(self) -> None:
        super().__init__(Sentence(), most=0)

    def json_schema(self) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "string"}}

    def mended(self, value: Any, path: str, guard: Guard) -> Any:
        guard.withhold(path, value)
        return []


@dataclass
class Object(Shape):
    """Named fields, none of which has to be there but `required`; others are left out."""

    fields: Mapping[str, Shape]
    about: Mapping[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()

    def json_schema(self) -> dict[str, Any]:
        properties = {name: shape.json_schema() for name, shape in self.fields.items()}
        for name, text in self.about.items():
            properties[name] = {"description": text, **properties[name]}
        required = {"required": list(self.required)} if self.required else {}
        return {
            "type": "object", "properties": properties, **required, "additionalProperties": False
        }  # fmt: skip

    def fits(self, value: Any, guard: Guard) -> bool:
        if type(value) is not dict or any(name not in value for name in self.required):
            return False
        for name, item in value.items():
            shape = self.fields.get(name)
            if shape is None or not shape.fits(item, guard):
                return False
        return True

    def mended(self, value: Any, path: str, guard: Guard) -> Any:
        if type(value) is not dict:
            return super().mended(value, path, guard)
        kept: dict[str, Any] = {}
        for name, item in value.items():
            below = f"{path}.{name}" if path else str(name)
            if name not in self.fields:
                guard.withhold(below, item)
                continue
            mended = self.fields[name].portable(item, below, guard)
            if mended is not GONE:
                kept[name] = mended
        if any(name not in kept for name in self.required):
            return super().mended(value, path, guard)
        return kept

    def portable(self, value: Any, path: str, guard: Guard) -> Any:
        return self.mended(value, path, guard)  # some field of a record always goes


@dataclass
class Columns(Object):
    """Lists of one length, all of which have to be there; lists in them have one length, too."""

    def fits(self, value: Any, guard: Guard) -> bool:
        return super().fits(value, guard) and self._even(value)

    def mended(self, value: Any, path: str, guard: Guard) -> Any:
        kept = super().mended(value, path, guard)
        if kept is GONE or self._even(kept):
            return kept
        guard.withhold(path, value)
        return GONE

    def portable(self, value: Any, path: str, guard: Guard) -> Any:
        return value if self.fits(value, guard) else self.mended(value, path, guard)

    def _even(self, columns: Mapping[str, Any]) -> bool:
        rows = [row for column in columns.values() for row in column if type(row) in (list, tuple)]
        return len({*map(len, columns.values())}) < 2 and len({*map(len, rows)}) < 2


@dataclass
class Map(Shape):
    """Values of one shape by name; `name` is the names' pattern, `value_of` their values' shape."""

    item: Shape
    name: Text = field(default_factory=lambda: Text(WORD))

    def json_schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "propertyNames": {"pattern": self.name.json_schema()["pattern"]},
            "additionalProperties": self.item.json_schema(),
            "maxProperties": MOST_NAMES,
        }

    def fits(self, value: Any, guard: Guard) -> bool:
        return (
            type(value) is dict
            and len(value) <= MOST_NAMES
            and self.name.all_fit([*value], guard)
            and self.item.all_fit([*value.values()], guard)
        )

    def mended(self, value: Any, path: str, guard: Guard) -> Any:
        if type(value) is not dict or len(value) > MOST_NAMES:
            return super().mended(value, path, guard)
        kept: dict[str, Any] = {}
        for name, item in value.items():
            below = f"{path}.{name}"
            if not self.name.fits(name, guard):
                guard.withhold(below, item)
                continue
            mended = self.item.portable(item, below, guard)
            if mended is not GONE:
                kept[name] = mended
        return kept


@dataclass
class Variables(Shape):
    """Texts by name of an environment variable; `names` is the names' pattern. On disk any text, of
    which a filter keeps `reduce(name, value)`."""

    names: str
    reduce: Callable[[str, str], str]

    def json_schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "propertyNames": {"pattern": f"^(?:{self.names})$", "maxLength": 80},
            "additionalProperties": {"type": "string", "maxLength": 80},
        }

    def fits(self, value: Any, guard: Guard) -> bool:
        return type(value) is dict and all(
            self._allowed(name, guard)
            and type(text) is str
            and self._one(name, guard).fits(text, guard)
            for name, text in value.items()
        )

    def mended(self, value: Any, path: str, guard: Guard) -> Any:
        if type(value) is not dict:
            return super().mended(value, path, guard)
        kept = {}
        for name, text in value.items():
            if self._allowed(name, guard):
                kept[name] = self._one(name, guard).portable(text, f"{path}.{name}", guard)
            else:
                guard.withhold(f"{path}.{name}", text)
        return kept

    def _allowed(self, name: str, guard: Guard) -> bool:
        known = len(name) <= 80 and re.fullmatch(self.names, name, re.ASCII)
        return bool(known) and guard.harmless(name)

    def _one(self, name: str, guard: Guard) -> Reduced:
        return Reduced(lambda text: self.reduce(name, text), WITHHELD)


class Data(Shape):
    """What is deep: maps with words as names, lists, finite numbers, words, times, null; at most
    `depth` of them within each other. On disk its texts are free."""

    def __init__(self, depth: int = DEPTH) -> None:
        word = Text(f"{WORD}|{TIME}")
        word.empty = GONE  # a sentence leaves no empty word behind
        self._by_type: dict[type, Shape] = {
            bool: Bool(), int: Int(), float: Number(), type(None): Choice((None,)),
            str: word,
        }  # fmt: skip
        self.outermost = depth == DEPTH
        if depth:
            below = Data(depth - 1)
            self._by_type |= {dict: Map(below), list: List(below), tuple: List(below)}

    def json_schema(self) -> dict[str, Any]:
        return {"$ref": "#/$defs/data"}

    def definition(self) -> dict[str, Any]:
        """What `json_schema` refers to."""
        scalars = {"type": ["number", "boolean", "null", "string"]}
        return {"anyOf": [scalars, List(self).json_schema(), Map(self).json_schema()]}

    def fits(self, value: Any, guard: Guard) -> bool:
        shape = self._by_type.get(type(value))
        return shape is not None and shape.fits(value, guard)

    def mended(self, value: Any, path: str, guard: Guard) -> Any:
        shape = self._by_type.get(type(value))
        return shape.mended(value, path, guard) if shape else super().mended(value, path, guard)

    def portable(self, value: Any, path: str, guard: Guard) -> Any:
        if self.outermost and type(value) is dict:  # each value is looked at once where one goes
            return self.mended(value, path, guard)
        return super().portable(value, path, guard)


@dataclass
class Named(Shape):
    """A shape whose JSON schema is written once, below `$defs`."""

    name: str
    shape: Shape

    def json_schema(self) -> dict[str, Any]:
        return {"$ref": f"#/$defs/{self.name}"}

    def fits(self, value: Any, guard: Guard) -> bool:
        return self.shape.fits(value, guard)

    def mended(self, value: Any, path: str, guard: Guard) -> Any:
        return self.shape.mended(value, path, guard)
