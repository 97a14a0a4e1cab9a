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


@dataclass(frozen=True)
class Emulation:
    """An emulated cluster. Each rank has links of its own; rates are of the wall clock."""

    dilation: float  # seconds of wall time for each second of a rank's CPU time
    ranks_per_node: int
    intra_mbit_s: float  # of a rank's link to ranks of its node, frames included
    inter_mbit_s: float  # to other nodes
    mtu: int = 1500  # bytes of a packet
    latency_ms: float = 0.0  # added to each message

    def __post_init__(self) -> None:
        """Raises ValueError for a value that no cluster has."""
        for field in fields(self):
            value = getattr(self, field.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            least = 0 if field.name == "latency_ms" else 1e-9
            if not (number and least <= value < math.inf):
                raise ValueError(f"{KEY}.{field.name}={value}: not a size that a cluster has")

    @property
    def about(self) -> str:
        """Its sizes in words, equal for the same cluster alone."""
        return (
            f"dilated x{self.dilation:g}; nodes of {self.ranks_per_node} at "
            f"{self.intra_mbit_s:g}/{self.inter_mbit_s:g} Mbit/s; MTU {self.mtu}; "
            f"latency {self.latency_ms:g} ms"
        )

    @property
    def words(self) -> str:
        """ "emulated (dilated x20; nodes of 2 at 90/10 Mbit/s; MTU 1500; latency 0 ms)"."""
        return f"{KEY} ({self.about})"


def of_values(values: Mapping[str, Any]) -> Emulation | None:
    """None for an empty mapping; raises ValueError for one that is no `Emulation`."""
    if not values:
        return None
    if not isinstance(values, Mapping):
        raise ValueError(f"{KEY}={values!r}: not a mapping")
    known = {field.name for field in fields(Emulation)}
    try:
        return Emulation(**{name: values[name] for name in known & set(values)})
    except TypeError as error:
        raise ValueError(f"{KEY}: {error}") from None


def of_environment(environment: Mapping[str, Any]) -> Emulation | None:
    """What `environment.emulated` says; None for real ranks. Raises ValueError for a mapping that
    is no `Emulation`."""
    return of_values(environment.get(KEY) or {})
