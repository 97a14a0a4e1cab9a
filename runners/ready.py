"""The cells of a launch on this rank: built, proven right, inspected, ready to be stepped."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe import gate, phases, strategies, workload
from moe.comm import Comm
from moe.layer import MoELayer
from moe.spec import Cell
from moe.step import make_step
from runners import environment
from runners.plan import LaunchPlan, kernel_key
from runners.ranklog import RankLog
from runners.ranks import TorchRanks
from runners.traces import thaw

LLC_BYTES_UNKNOWN = 64 * 2**20
COLD_SETS_MAX = 512
PHASE_BUDGET_S = 2.0

Step = Callable[[], None]


@dataclass
class Built:
    """One cell on this rank; more than one copy where the cache is to be cold."""

    layer: MoELayer
    copies: list[MoELayer] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)


class Ready:
    """Builds and drops cells; all ranks call alike."""

    def __init__(self, plan: LaunchPlan, comm: Comm, ranks: TorchRanks, log: RankLog) -> None:
        self.plan, self.comm, self.ranks, self.log = plan, comm, ranks, log
        self.built: dict[int, Built] = {}
        self.kernels = dict(plan.kernels)
        self.chosen: set[int] = set()
        self.traces: dict[str, Tensor] = {}

    def prove(self, index: int) -> bool:
        """Builds a cell, chooses its kernel and holds it against the oracle; False if wrong."""
        self._baseline = environment.peak_memory_bytes(self.comm.device.type)
        self._restarted = environment.reset_peak_memory(self.comm.device.type)
        self.build(index)
        cell, built = self.plan.cells[index], self.built[index]
        x_TD, trace_NK = built.inputs[0], self.trace(cell)
        result = gate.check(cell, built.layer, self.comm, x_TD, trace_NK)
        self.log.write("info", cell=index, name="gate", value=result.to_dict())
        if not result.ok:
            self.drop([index])
            return False
        self.log.write("info", cell=index, name="skew", value=built.layer.skew(built.inputs[0]))
        return True

    def build(self, index: int) -> None:
        """Weights, inputs and kernel; the kernel is chosen once and kept when built again."""
        cell = self.plan.cells[index]
        x_TD = workload.inputs(cell, self.comm.rank, self.comm.device)
        kernel = self._kernel(index, x_TD)
        layer = strategies.build(cell, self.comm, self.trace(cell))
        layer.use(kernel)
        built = Built(layer, [layer], [x_TD])
        if cell.workload.cache == "cold":
            for _ in range(self._cold_sets(built) - 1):
                built.copies.append(layer.clone())
                built.inputs.append(x_TD.clone())
        self.built[index] = built

    def trace(self, cell: Cell) -> Tensor | None:
        """[N, K] expert ids for workload.kind=trace, read once per launch."""
        wanted = cell.workload.trace_sha256
        if not wanted:
            return None
        if wanted not in self.traces:
            folder = Path(self.plan.launch_dir)
            self.traces[wanted] = thaw(self.plan.traces, wanted, folder, cell.layer.topk)
        return self.traces[wanted]

    def _kernel(self, index: int, x_TD: Tensor) -> str:
        """Chosen on a layer of its own: one that has tried every kernel lies elsewhere in memory
        than one that has not, and is slower or faster by half a percent."""
        cell = self.plan.cells[index]
        key = kernel_key(cell)
        choice: dict[str, Any] = {"name": self.kernels.get(key, ""), "how": "chosen before"}
        if key not in self.kernels:
            choice = strategies.build(cell, self.comm, self.trace(cell)).tune(x_TD)
            self.kernels[key] = choice["name"]
        if index not in self.chosen:  # a heavy cell is built again every round
            self.chosen.add(index)
            self.log.write("info", cell=index, name="kernel", value=choice)
        return self.kernels[key]

    def _cold_sets(self, built: Built) -> int:
        """Copies whose weights and inputs, on all ranks together, are twice the cache."""
        cache = environment.llc_bytes() or LLC_BYTES_UNKNOWN
        if self.comm.device.type == "cuda":
            cache = torch.cuda.get_device_properties(self.comm.device).L2_cache_size
        mine = built.layer.weights_bytes() + built.inputs[0].nbytes
        everyone = sum(row[0] for row in self.ranks.gather([mine]))
        sets = -(-2 * cache // max(everyone, 1)) + 1
        return self.ranks.decide(min(sets, COLD_SETS_MAX))

    def step(self, index: int) -> Step:
        cell, built = self.plan.cells[index], self.built[index]
        steps = [
            make_step(cell, layer, x_TD)
            for layer, x_TD in zip(built.copies, built.inputs, strict=True)
        ]
        return steps[0] if len(steps) == 1 else rotate(steps)

    def inspect(self, index: int, step: Step) -> None:
        """Phases, bytes sent and peak memory, in passes of their own."""
        with self.comm.counting() as rows:
            step()
        self.log.write("info", cell=index, name="traffic", value=rows)
        self.log.write("info", cell=index, name="memory", value=self._memory(index, step))
        if self.plan.measure.phases:
            self.log.write("info", cell=index, name="phases", value=self._phases(step))

    def _memory(self, index: int, step: Step) -> dict[str, object]:
        found = environment.peak_memory_bytes(self.comm.device.type)
        built = self.built[index]
        return {
            **found,
            "restarted": self._restarted,
            "before_bytes": self._baseline["current_bytes"],
            "weights_bytes": built.layer.weights_bytes(),
            "step_bytes": environment.step_memory_bytes(step, self.comm.device.type),
        }

    def _phases(self, step: Step) -> dict[str, object]:
        """Median over passes of each phase and of the whole step, in ns, on this rank."""
        passes: list[dict[str, int]] = []
        totals: list[int] = []
        deadline = time.monotonic() + PHASE_BUDGET_S
        for _ in range(self.plan.measure.phases):
            self.ranks.barrier()
            self.ranks.sync()
            with phases.recording(self.ranks.sync) as times:
                start = self.ranks.now_ns()
                step()
                self.ranks.sync()
                totals.append(self.ranks.now_ns() - start)
            passes.append(dict(times))
            if self.ranks.decide(int(time.monotonic() > deadline)):
                break
        whole = statistics.median_low(totals)
        typical = passes[totals.index(whole)]  # one real pass, so that its parts add up
        return {"passes": len(passes), "per_phase_ns": typical, "total_ns": whole}

    def drop(self, indices: Iterable[int]) -> None:
        for index in indices:
            self.built.pop(index, None)
        if self.comm.device.type == "cuda":
            torch.cuda.empty_cache()


def rotate(steps: list[Step]) -> Step:
    """Each call runs the next of the steps."""
    following = itertools.cycle(steps).__next__

    def step() -> None:
        following()()

    return step
