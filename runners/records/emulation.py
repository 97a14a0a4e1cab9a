"""The cluster that a record's times are of, where it was emulated on one machine. Torch-free.

`environment.emulated` of a record holds the fields of `Emulation`; a record of real ranks has no
such key. Times in an emulated record are wall times as taken: `dilation` times as long as on ranks
with a core each. Nothing divides them; they are never compared with times of real ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

KEY = "emulated"  # in a record's environment
HEADERS_BYTES = 52  # of IP and TCP with timestamps, in every packet's MTU
ETHERNET_BYTES = 14  # beside it
RATE = (1, math.inf)
ALLOWED = {  # smallest and largest value
    "dilation": RATE,
    "ranks_per_node": (1, 250),  # an address has a byte for the rank in its node
    "intra_mbit_s": RATE,
    "inter_mbit_s": RATE,
    "mtu": (1500, 9000),
}
WHOLE = ("ranks_per_node", "mtu")


class EmulationError(ValueError):
    """A value that no emulated cluster has; `allowed` is such as "finite numbers from 1"."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field}={value}: allowed are {allowed}")
        self.field, self.value, self.allowed = field, value, allowed


@dataclass(frozen=True)
class Emulation:
    """An emulated cluster. Every rank has one link to the other ranks of its node and one to those
    of other nodes; rates are of the wall clock. Raises EmulationError for a value out of ALLOWED.
    """

    dilation: float = 50.0  # seconds of wall time for each second of a rank's CPU time
    ranks_per_node: int = 2
    intra_mbit_s: float = 100.0  # of a rank's link to ranks of its node, frames included
    inter_mbit_s: float = 25.0  # to other nodes
    mtu: int = 9000  # bytes of a packet

    def __post_init__(self) -> None:
        for name, (least, most) in ALLOWED.items():
            value = getattr(self, name)
            kinds = int if name in WHOLE else int | float
            number = isinstance(value, kinds) and not isinstance(value, bool)
            if number and math.isfinite(value) and least <= value <= most:
                continue
            kind = "whole numbers" if name in WHOLE else "finite numbers"
            upper = f" to {most:g}" if math.isfinite(most) else ""
            raise EmulationError(name, value, f"{kind} from {least}{upper}")

    @property
    def overhead(self) -> float:
        """Bytes on a link over bytes of data: 1514 / 1448 at an MTU of 1500."""
        return (self.mtu + ETHERNET_BYTES) / (self.mtu - HEADERS_BYTES)

    @property
    def about(self) -> str:
        """Its sizes in words, equal for the same cluster alone."""
        return (
            f"dilated x{self.dilation:g}; nodes of {self.ranks_per_node} at "
            f"{self.intra_mbit_s:g}/{self.inter_mbit_s:g} Mbit/s; MTU {self.mtu}"
        )

    @property
    def words(self) -> str:
        """ "emulated (dilated x20; nodes of 2 at 90/10 Mbit/s; MTU 1500)"."""
        return f"{KEY} ({self.about})"


def of_values(values: Mapping[str, Any]) -> Emulation | None:
    """None for an empty mapping; raises ValueError for one that is no `Emulation`: every field
    must be there."""
    if not values:
        return None
    if not isinstance(values, Mapping):
        raise ValueError(f"{KEY}={values!r}: not a mapping")
    names = [field.name for field in fields(Emulation)]
    if missing := [name for name in names if name not in values]:
        raise ValueError(f"{KEY}.{missing[0]}: missing")
    try:
        return Emulation(**{name: values[name] for name in names})
    except EmulationError as error:
        raise ValueError(f"{KEY}.{error}") from None


def of_environment(environment: Mapping[str, Any]) -> Emulation | None:
    """What `environment.emulated` says; None for real ranks. Raises ValueError for a mapping that
    is no `Emulation`."""
    return of_values(environment.get(KEY) or {})
