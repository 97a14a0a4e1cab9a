"""One rank of an emulated launch: the project's worker, with paced computing and shaped links."""

from __future__ import annotations

import os
from typing import Any

import torch

from benchmarks.emulate import collectives
from benchmarks.emulate.pace import Pace
from benchmarks.emulate.rates import Rates
from benchmarks.emulate.spec import EmulatedCluster
from benchmarks.emulate.start_gate import StartGate
from moe import phases
from moe.spec import RankLayout
from runners.rank import worker
from runners.rank.engine import Sample
from runners.rank.process_group import RankPlace, TorchRanks
from runners.rank.worker import Worker

VOID = "void"  # kind of a sample that is not counted
COLD_BYTES = 24 << 20  # touched between two pieces of computing where few ranks share the caches
FEW_RANKS = 8


class PacedClock(phases.HostClock):
    """Computing counts in the phase in which it is done."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def mark(self) -> int:
        self.pace.settle()
        return super().mark()


class EmulatedRanks(TorchRanks):
    """Ranks start together, and a block ends when its computing has taken its dilated time."""

    pace: Pace
    gate: StartGate

    def barrier(self) -> None:
        self.gate.wait()
        self.pace.begin()

    def sync(self) -> None:
        self.pace.settle()

    def phase_clock(self) -> phases.Clock:
        return PacedClock(self.pace)


class EmulatedWorker(Worker):
    """Adds what is emulated to the record, and leaves out blocks in which a rank was late."""

    cluster: EmulatedCluster
    rates: Rates
    ranks_type = EmulatedRanks

    def __init__(self, *arguments: Any) -> None:
        # Unpinned: the cores then share the work evenly.
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        super().__init__(*arguments)
        self.pinned = None
        self.engine.turn_ms = 0.0  # ranks sleep most of the time: none waits for a turn
        collectives.install(EmulatedRanks.pace)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "network": "emulated", "emulated": vars(self.cluster)}

    def _log_environment(self) -> None:
        super()._log_environment()
        self.log.write("calibration", value=self.rates.calibration(self.plan.placement))

    def emit(self, sample: Sample) -> None:
        block_s = (sample.end_ns - sample.start_ns) / 1e9
        late = EmulatedRanks.pace.was_late(block_s)
        if EmulatedRanks.gate.any(self.place.rank, late) and sample.cell >= 0:
            sample = Sample(**{**vars(sample), "kind": VOID})
        super().emit(sample)


def main(
    plan_path: str, place: RankPlace, gate: StartGate, cluster: EmulatedCluster, rates: Rates
) -> int:
    """Runs the rank; returns its exit code."""
    os.environ.update(
        RANK=str(place.rank),
        WORLD_SIZE=str(place.world_size),
        LOCAL_RANK=str(place.local_rank),
        LOCAL_WORLD_SIZE=str(place.local_ranks),
    )
    EmulatedRanks.pace, EmulatedRanks.gate = Pace(cluster.dilation), gate
    EmulatedWorker.cluster, EmulatedWorker.rates = cluster, rates
    return worker.main([plan_path], EmulatedWorker)
