"""What no text of a packed file may contain, and the list of what a filter has withheld."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any

from moe import phases
from moe.spec import DTYPE_BYTES
from moe.strategies import names as strategies
from runners.host import environment
from runners.host.identity import FURTHER_KEYS, KEYS, names_here, whole_words
from runners.packed import record_fields
from runners.records import calibrations

_KEY = re.compile(f"{KEYS}|{FURTHER_KEYS}")
# Names below the fields of a calibration (runners/records/calibrations.py).
_OF_CALIBRATIONS = """
device created llc_bytes l2_bytes peak alpha_s beta_s_per_byte error points barrier exchanged nodes
tiers intra inter limit_s took_s left_out cpu cuda gloo mpi nccl
"""
# Collectives, and groups of ranks (moe/parallel/).
_OF_TRAFFIC = """
all_to_all all_reduce all_gather reduce_scatter broadcast barrier world tp ep dp peer self
"""


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
    are the paths and values that a filter has removed. `hands_on`: what it lets pass leaves this
    machine, so that names of configs stay only if they are the project's; else it came in a file.
    """

    def __init__(self, names: Iterable[str] = (), hands_on: bool = False) -> None:
        self.hands_on = hands_on
        self.withheld: list[tuple[str, Any]] = []
        self.names: Names = whole_words(names)

    def withhold(self, path: str, value: Any) -> None:
        self.withheld.append((path, value))

    def harmless(self, text: str) -> bool:
        return harmless(text, self.names)


def guard_of(names: Iterable[str] | None = None) -> Guard:
    """A guard of what is handed on, of names without those that a record's own words are; None:
    `names_here()`."""
    names = names_here() if names is None else names
    return Guard((name for name in names if name.lower() not in _own_words()), hands_on=True)


@functools.cache
def _own_words() -> frozenset[str]:
    """Words of the fields and their closed lists, in lower case: they name nobody."""
    words = {*strategies()}
    for values in record_fields.CLOSED.values():
        words |= {value for value in values if isinstance(value, str)}
    for line in record_fields.lines():
        words |= {*line.choices, *re.split(r"\W+", line.path)}
    keys = {*phases.NAMES, "python", *environment.PACKAGES, *environment.GPU_SOFTWARE}
    keys |= {*environment.threads(), *calibrations.FIELDS, *calibrations.OF_GPUS, *DTYPE_BYTES}
    keys |= {*_OF_CALIBRATIONS.split(), *_OF_TRAFFIC.split()}
    words |= keys.union(*(key.split("_") for key in keys))  # a name is refused as a part of a key
    return frozenset(word.lower() for word in words)
