"""The machine of an emulated cluster: rates of its calibration, links as they were shaped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from analysis.predict import hardware
from analysis.predict.hardware import HardwareModel, Link
from runners.records.emulation import Emulation


def machine(
    cluster: Emulation, calibration: Mapping[str, Any], memory_bytes: float = math.inf
) -> HardwareModel:
    """One rank of the cluster. Every rank has a core of its own by its pace, so that its share of
    what the calibrated ranks reach together is the same with any number of them. `memory_bytes` is
    of one rank. KeyError where a rate is missing."""
    ranks = int(calibration["ranks"])
    rates = hardware.of_calibration({**calibration, "collectives": {}}, ranks)

    def link(mbit_s: float) -> Link:
        return Link(mbit_s * 1e6 / 8 / cluster.overhead, alpha_s=0.0)

    return replace(
        rates, name=cluster.words, ranks_per_node=cluster.ranks_per_node,
        memory_bytes=memory_bytes, intra=link(cluster.intra_mbit_s),
        inter=link(cluster.inter_mbit_s), own_links=True,
    )  # fmt: skip
