"""The cells of a launch on this rank: built, proven right, inspected, ready to be stepped."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe import build, phases
from moe.parallel.comm import Comm
from moe.spec import Cell
from moe.step import Rotation, Step
from moe.verify.faults import CheckResult
from moe.verify.twin import twin_of
from moe.verify.verifier import Verifier, verify_twin
from moe.workload import batches
from runners.host import environment
from runners.plan import LaunchPlan, kernel_key
from runners.rank.process_group import TorchRanks
from runners.records.rank_log import RankLog
from runners.records.routing_trace import thaw

LLC_BYTES_UNKNOWN = 64 * 2**20
COLD_SETS_MAX = 512
PHASE_BUDGET_S = 2.0


@dataclass
class Built:
    """One cell on this rank; more than one copy where the cache is to be cold."""

    steps: list[Step]
    call: Callable[[], None]  # what is timed: the one step, or all of them in turn

    @property
    def last(self) -> Step:
        """The step that ran last."""
        return self.call.last if isinstance(self.call, Rotation) else self.steps[0]


class CellRunner:
    """Builds and drops cells; all ranks call alike."""

    def __init__(self, plan: LaunchPlan, comm: Comm, ranks: TorchRanks, log: RankLog) -> None:
        self.plan, self.comm, self.ranks, self.log = plan, comm, ranks, log
        self.built: dict[int, Built] = {}
        self.verifiers: dict[int, Verifier] = {}
        self.changed: set[int] = set()  # cells of which this rank has said what differs
        self.kernels = dict(plan.kernels)
        self.chosen: set[int] = set()
        self.traces: dict[str, Tensor] = {}

    def prove(self, index: int) -> bool:
        """Builds a cell, chooses its kernel and holds it against the oracle; False if wrong."""
        cell = self.plan.cells[index]
        twin = self._check_twin(index)
        if twin is not None and not twin.ok:
            self.log.write("info", cell=index, name="gate", value=twin.to_dict())
            return False
        self._baseline = environment.peak_memory_bytes(self.comm.device.type)
        self._restarted = environment.reset_peak_memory(self.comm.device.type)
        self.build(index)
        built = self.built[index]
        verifier = self.verifiers[index] = Verifier(cell, self.comm, self.trace(cell))
        result = verifier.prove(built.steps, self._sample_seed(cell, 0))
        value = result.to_dict() | ({"float32": twin.to_dict()} if twin else {})
        self.log.write("info", cell=index, name="gate", value=value)
        if not result.ok:
            self.forget([index])
            return False
        assert verifier.seen is not None
        self.log.write(
            "info", cell=index, name="skew", value=built.steps[0].layer.skew(verifier.seen)
        )
        verifier.seen = None
        return True

    def _check_twin(self, index: int) -> CheckResult | None:
        """Of a cell whose rounding could hide a fault; before its memory is counted."""
        cell = self.plan.cells[index]
        twin = twin_of(cell)
        if twin is None:
            return None
        kernel = self._kernel(index, batches.inputs(cell, self.comm.rank, self.comm.device))
        return verify_twin(twin, kernel, self.comm, self.trace(cell))

    def prove_again(self, index: int) -> None:
        """After timing, on other tokens; a cell that was dropped between rounds is built again."""
        self.build(index)
        cell, verifier = self.plan.cells[index], self.verifiers[index]
        result = verifier.prove_again(self.built[index].steps, self._sample_seed(cell, 1))
        self.log.write("info", cell=index, name="gate_after", value=result.to_dict())

    def _sample_seed(self, cell: Cell, turn: int) -> int:
        """Of the tokens that are checked in float64: others in every launch, and after timing."""
        return cell.workload.seed * 1_000_003 + 2 * self.plan.launch + turn

    def compare(self, index: int, when: str) -> bool:
        """Whether what the cell's steps have left on this rank was always what was proven. The
        first time that it is not, this rank writes down what has changed."""
        found = self.verifiers[index].compare(self.built[index].last)
        if found is not None and index not in self.changed:
            self.changed.add(index)
            value = {**found.to_dict(), "text": str(found), "when": when}
            self.log.write("info", cell=index, name="changed", value=value)
        return index not in self.changed

    def build(self, index: int) -> None:
        """Weights, inputs and kernel; the kernel is chosen once and kept when built again."""
        if index in self.built:
            return
        cell = self.plan.cells[index]
        x_TD = batches.inputs(cell, self.comm.rank, self.comm.device)
        kernel = self._kernel(index, x_TD)
        layer = build.build(cell, self.comm, self.trace(cell))
        layer.use(kernel)
        steps = [Step(cell, layer, x_TD)]
        if cell.workload.cache == "cold":
            for _ in range(self._cold_sets(steps[0]) - 1):
                x_copy = x_TD.detach().clone().requires_grad_(x_TD.requires_grad)
                steps.append(Step(cell, layer.clone(), x_copy))
        self.built[index] = Built(steps, steps[0] if len(steps) == 1 else Rotation(steps))

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
            choice = build.build(cell, self.comm, self.trace(cell)).tune(x_TD)
            self.kernels[key] = choice["name"]
        if index not in self.chosen:  # a heavy cell is built again every round
            self.chosen.add(index)
            self.log.write("info", cell=index, name="kernel", value=choice)
        return self.kernels[key]

    def _cold_sets(self, step: Step) -> int:
        """Copies whose weights and inputs, on all ranks together, are twice the cache."""
        cache = environment.llc_bytes() or LLC_BYTES_UNKNOWN
        if self.comm.device.type == "cuda":
            cache = torch.cuda.get_device_properties(self.comm.device).L2_cache_size
        mine = step.layer.weights_bytes() + step.x_TD.nbytes
        everyone = sum(row[0] for row in self.ranks.gather([mine]))
        sets = -(-2 * cache // max(everyone, 1)) + 1
        return self.ranks.decide(min(sets, COLD_SETS_MAX))

    def inspect(self, index: int) -> None:
        """Phases, bytes sent and peak memory, in passes of their own."""
        step = self.built[index].call
        with self.comm.counting() as rows:
            step()
        self.compare(index, "when bytes were counted")
        self.log.write("info", cell=index, name="traffic", value=rows)
        self.log.write("info", cell=index, name="memory", value=self._memory(index))
        self.compare(index, "when memory was counted")
        if self.plan.measure.phases:
            self.log.write("info", cell=index, name="phases", value=self._phases(index))

    def _memory(self, index: int) -> dict[str, object]:
        found = environment.peak_memory_bytes(self.comm.device.type)
        built = self.built[index]
        built.last.output = None  # or it would be given back in the step that is counted
        return {
            **found,
            "restarted": self._restarted,
            "before_bytes": self._baseline["current_bytes"],
            "weights_bytes": built.steps[0].layer.weights_bytes(),
            "step_bytes": environment.step_memory_bytes(built.call, self.comm.device.type),
        }

    def _phases(self, index: int) -> dict[str, object]:
        """Median over passes of each phase and of the whole step, in ns, on this rank."""
        passes: list[dict[str, int]] = []
        totals: list[int] = []
        step = self.built[index].call
        deadline = time.monotonic() + PHASE_BUDGET_S
        for _ in range(self.plan.measure.phases):
            self.ranks.barrier()
            self.ranks.sync()
            with phases.recording(self.ranks.sync) as times:
                start = self.ranks.now_ns()
                step()
                self.ranks.sync()
                totals.append(self.ranks.now_ns() - start)
            self.compare(index, "when phases were timed")
            passes.append(dict(times))
            if self.ranks.decide(int(time.monotonic() > deadline)):
                break
        whole = statistics.median_low(totals)
        typical = passes[totals.index(whole)]  # one real pass, so that its parts add up
        return {"passes": len(passes), "per_phase_ns": typical, "total_ns": whole}

    def drop(self, indices: Iterable[int]) -> None:
        """Weights and inputs; what was proven of them stays."""
        for index in indices:
            self.built.pop(index, None)
        if self.comm.device.type == "cuda":
            torch.cuda.empty_cache()

    def forget(self, indices: Iterable[int]) -> None:
        """All there is of these cells."""
        indices = list(indices)
        self.drop(indices)
        for index in indices:
            self.verifiers.pop(index, None)
