"""Knobs: dataclass fields that a user sets, each written once with its help and its allowed values.

The config, its errors, `--help`, docs/configuration.md and the tables of a record's fields are all
made from these fields (runners/config/schema.py). Stdlib only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

T = TypeVar("T")
METADATA = "knob"
SAME = object()


@dataclass(frozen=True)
class Knob:
    """What is known of a field. `at` is the section of the config that it is set in: "" is the
    top level, None marks a field that is derived and cannot be set."""

    about: str
    at: str | None = None
    allowed: tuple[str, ...] = ()  # of a word; empty: any text
    least: float = 0  # of a number
    words: Mapping[Any, Any] | None = None  # stored value by a further word that may be written
    unit: str = ""
    default: Any = None  # in the config

    def path(self, name: str) -> str:
        """Of the field `name` in the config."""
        return f"{self.at}.{name}" if self.at else name


def knob(default: T, about: str, at: str | None = None, conf: Any = SAME, **more: Any) -> T:
    """A dataclass field with `default`; `conf` is the config's default where it differs, `more` are
    fields of Knob."""
    known = Knob(about, at, default=default if conf is SAME else conf, **more)
    described: T = field(default=default, metadata={METADATA: known})
    return described


def knobs(kind: type) -> Iterator[tuple[Field[Any], Knob]]:
    """Fields of a dataclass that are described, in their order."""
    for one in fields(kind):
        if METADATA in one.metadata:
            yield one, one.metadata[METADATA]
