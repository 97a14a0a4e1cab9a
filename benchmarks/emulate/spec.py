"""What is emulated, as a record has it in `environment.emulated`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

HEADERS_BYTES = 52  # of TCP and IP with timestamps, in every packet's MTU
ETHERNET_BYTES = 14


@dataclass(frozen=True)
class EmulatedCluster:
    """Ranks that compute `dilation` times slower than one core here, and their links.

    Every rank has one link to the other ranks of its node and one to those of other nodes.
    """

    dilation: float = 50.0
    ranks_per_node: int = 2
    intra_mbit_s: float = 100.0
    inter_mbit_s: float = 25.0
    mtu: int = 9000

    def __post_init__(self) -> None:
        for name, least in (("dilation", 1), ("ranks_per_node", 1), ("intra_mbit_s", 1),
                            ("inter_mbit_s", 1), ("mtu", 1500)):  # fmt: skip
            value = getattr(self, name)
            if not value >= least:
                raise ValueError(f"{name}={value}: allowed are numbers from {least}")
        if self.mtu > 9000:
            raise ValueError(f"mtu={self.mtu}: allowed are 1500 to 9000")

    @property
    def overhead(self) -> float:
        """Bytes on the link over bytes of data."""
        return (self.mtu + ETHERNET_BYTES) / (self.mtu - HEADERS_BYTES)

    def to_text(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_text(text: str) -> EmulatedCluster:
        return EmulatedCluster(**json.loads(text))
