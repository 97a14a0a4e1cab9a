"""What one core of this machine computes at best, as the calibration of emulated ranks."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moe.spec import RankLayout
from runners.host import environment, hardware
from runners.rank.probe import Memory, Probe, single_rank_rates
from runners.records.emulation import Emulation
from runners.records.sealed import write_atomic

LIMIT_S = 6.0


@dataclass(frozen=True)
class Rates:
    """Rates of one core that nobody shares, by the names of runners/records/calibrations.py."""

    fingerprint: str
    one_core: dict[str, Any]
    cluster: Emulation

    def calibration(self, placement: RankLayout) -> dict[str, Any]:
        """The calibration of `placement`'s ranks: every rate over the dilation. Collectives are not
        timed: the links' rates are known."""
        ranks, one = placement.world_size, _slower(self.one_core, self.cluster.dilation)
        flops = {dtype: ranks * rates["peak"] for dtype, rates in one["matmul_flops_per_s"].items()}
        return {
            "fingerprint": self.fingerprint,
            "ranks": ranks,
            "threads": placement.threads,
            "backend": placement.backend,
            "device": "cpu",
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "llc_bytes": hardware.llc_bytes(),
            **one,
            "shared": {
                "read_bytes_per_s": ranks * one["read_bytes_per_s"],
                "copy_bytes_per_s": ranks * one["copy_bytes_per_s"],
                "matmul_flops_per_s": flops,
            },
            "collectives": {},
            "limit_s": LIMIT_S,
            "took_s": LIMIT_S,
            "left_out": [],
        }


def _slower(rates: dict[str, Any], factor: float) -> dict[str, Any]:
    return {
        name: _slower(value, factor) if isinstance(value, dict) else value / factor
        for name, value in rates.items()
    }


def measure(cluster: Emulation, limit_s: float = LIMIT_S) -> Rates:
    """Measures one core with one thread for about `limit_s` seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        probe = Probe(torch.device("cpu"))
        rates = single_rank_rates(probe, Memory(probe, 1), probe.clock() + limit_s).rates
    finally:
        torch.set_num_threads(threads)
    return Rates(environment.fingerprint(environment.capture("cpu")), rates, cluster)


def save(rates: Rates, path: Path) -> None:
    """Writes what `load` reads."""
    write_atomic(path, json.dumps({
        "fingerprint": rates.fingerprint, "one_core": rates.one_core,
        "cluster": vars(rates.cluster),
    }))  # fmt: skip


def load(path: Path) -> Rates:
    data = json.loads(path.read_text("utf-8"))
    return Rates(data["fingerprint"], data["one_core"], Emulation(**data["cluster"]))
