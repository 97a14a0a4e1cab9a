"""One rank of an emulated launch: the project's worker, with paced computing and shaped links."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch

from benchmarks.emulate import collectives
from benchmarks.emulate.pace import Pace
from benchmarks.emulate.rates import Rates
from benchmarks.emulate.start_gate import StartGate
from moe import phases
from runners.host import environment, hardware
from runners.plan import LaunchPlan
from runners.rank import worker
from runners.rank.cells import LLC_BYTES_UNKNOWN
from runners.rank.engine import Sample
from runners.rank.process_group import RankPlace, TorchRanks
from runners.rank.worker import Worker
from runners.records.rank_log import RankLog

SPARE_ROUNDS = 2  # so that void blocks leave enough
VOID = "void"  # kind of a sample that is not counted
COUNTED = ("short", "long", "latency", "fixed")
PACED_STAGES = ("floor", "warm-up", "phases", "round")  # checks need not take dilated time


_other_data = torch.zeros(0)


def evict_caches() -> None:
    """Before every block, so that few ranks find no more in the caches than many do."""
    global _other_data
    if not len(_other_data):
        llc_bytes = hardware.llc_bytes() or LLC_BYTES_UNKNOWN
        _other_data = torch.zeros(llc_bytes * 3 // 2 // 4)
    _other_data.add_(1)


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
    starting = False  # between the barrier before a block and its first step

    def barrier(self) -> None:
        evict_caches()
        self.starting = True
        self.pace.begin(self.gate.wait())

    def sync(self) -> None:
        if not self.starting:  # nothing has been computed yet, that could make up for a late start
            self.pace.settle()
        self.starting = False

    def phase_clock(self) -> phases.Clock:
        return PacedClock(self.pace)


class EmulatedWorker(Worker):
    """Adds what is emulated to the record, and leaves out blocks in which a rank was late."""

    rates: Rates
    ranks_type = EmulatedRanks

    def __init__(
        self, plan: LaunchPlan, place: RankPlace, log: RankLog, pinned: list[int] | None
    ) -> None:
        os.sched_setaffinity(0, environment.launch_affinity())  # all cores share the work evenly
        super().__init__(plan, place, log, None)
        self.engine.turn_ms = 0.0  # ranks sleep most of the time: none waits for a turn
        measure = self.engine.measure
        self.engine.measure = dataclasses.replace(
            measure,
            samples=measure.samples + SPARE_ROUNDS,
            samples_max=measure.samples_max + SPARE_ROUNDS,
        )
        collectives.install(EmulatedRanks.pace)

    def enter_stage(self, cell: int, stage: str) -> None:
        super().enter_stage(cell, stage)
        EmulatedRanks.pace.active = stage in PACED_STAGES

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "network": "emulated", "emulated": vars(self.rates.cluster)}

    def _log_environment(self) -> None:
        super()._log_environment()
        self.log.write("calibration", value=self.rates.calibration(self.plan.placement))

    def emit(self, sample: Sample) -> None:
        """A sample of a cell is void, on all ranks, where it was late on one; anchors are left
        out then."""
        late_here = EmulatedRanks.pace.was_late((sample.end_ns - sample.start_ns) / 1e9)
        late = EmulatedRanks.gate.any(self.place.rank, late_here)
        if late and sample.kind.startswith("anchor"):
            return
        if late and sample.kind in COUNTED:
            sample = dataclasses.replace(sample, kind=VOID)
        super().emit(sample)


def main(plan_path: str, place: RankPlace, gate: StartGate, rates: Rates) -> int:
    """Runs the rank; returns its exit code."""
    EmulatedRanks.pace, EmulatedRanks.gate = Pace(rates.cluster.dilation), gate
    EmulatedWorker.rates = rates
    worker.Worker = EmulatedWorker  # type: ignore[misc]
    return worker.main([plan_path])
