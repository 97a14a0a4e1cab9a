"""The cells of a launch on this rank: built, verified, inspected, ready to be timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from moe import build, phases, waits
from moe.layer.base import MoELayer
from moe.layer.out_of_memory import free_cached
from moe.layer.weight_store import FusedWeights
from moe.parallel.comm import Comm
from moe.spec import Cell, LayerSpec
from moe.step import Rotation, Step, release_graphs
from moe.verify.faults import CheckResult
from moe.verify.twin import twin_of
from moe.verify.verifier import Verifier, verify_twin
from moe.workload import batches
from runners.host import environment, hardware
from runners.plan import LaunchPlan, kernel_key
from runners.rank import cold_sets
from runners.rank.process_group import TorchRanks
from runners.records.rank_log import RankLog
from runners.records.routing_trace import thaw

LLC_BYTES_UNKNOWN = 64 * 2**20
COLD_SETS_MAX = 512
PHASE_BUDGET_S = 2.0


@dataclass
class Built:
    """One cell on this rank; several copies where the cache is to be cold."""

    steps: list[Step]
    call: Callable[[], None]  # what is timed: the only step, or all of them in turn

    @property
    def last(self) -> Step:
        """The step that ran last."""
        return self.call.last if isinstance(self.call, Rotation) else self.steps[0]

    @contextmanager
    def eager(self) -> Iterator[None]:
        """No step is a graph's replay in the block."""
        with ExitStack() as stack:
            for step in self.steps:
                stack.enter_context(step.eager())
            yield


class CellRunner:
    """Builds, verifies and drops cells; every rank makes the same calls."""

    def __init__(self, plan: LaunchPlan, comm: Comm, ranks: TorchRanks, log: RankLog) -> None:
        self.plan, self.comm, self.ranks, self.log = plan, comm, ranks, log
        self.built: dict[int, Built] = {}
        self.verifiers: dict[int, Verifier] = {}
        self.reached: dict[int, float] = {}  # share of the experts that a cell's step reads
        self.changed: set[int] = set()  # cells of which this rank has logged a difference
        self.failed: set[int] = set()  # cells that ran out of a GPU's memory
        self.kept_weights: tuple[LayerSpec, FusedWeights] | None = None
        self.kernels = dict(plan.kernels)
        self.chosen: set[int] = set()
        self.traces: dict[str, Tensor] = {}

    def verify(self, index: int) -> bool:
        """Builds a cell, chooses its kernel and compares it with the oracle; False if wrong."""
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
            self.discard([index])
            return False
        assert verifier.seen is not None
        skew = built.steps[0].layer.skew(verifier.seen)
        self.log.write("info", cell=index, name="skew", value=skew)
        self.reached[index] = cold_sets.reached(skew["expert_slots"], cell)
        verifier.seen = None
        return True

    def _check_twin(self, index: int) -> CheckResult | None:
        """Checks the twin of a cell whose rounding could hide a fault; before memory is counted."""
        cell = self.plan.cells[index]
        twin = twin_of(cell)
        if twin is None:
            return None
        kernel = self._kernel(index, batches.inputs(cell, self.comm.rank, self.comm.device))
        wait_free = cell.strategy.graph == "on"
        return verify_twin(twin, kernel, self.comm, self.trace(cell), wait_free)

    def verify_again(self, index: int) -> None:
        """Verifies on other tokens, after timing; builds the cell again if it was dropped."""
        self.build(index)
        cell, verifier = self.plan.cells[index], self.verifiers[index]
        result = verifier.prove_again(self.built[index].steps, self._sample_seed(cell, 1))
        self.log.write("info", cell=index, name="gate_after", value=result.to_dict())

    def _sample_seed(self, cell: Cell, turn: int) -> int:
        """Seed of the tokens checked in float64; `turn` is 0 before timing and 1 after it."""
        return cell.workload.seed * 1_000_003 + 2 * self.plan.launch + turn

    def compare(self, index: int, when: str) -> bool:
        """Whether what the cell's steps left on this rank was always what was verified. Logs the
        first difference."""
        difference = self.verifiers[index].compare(self.built[index].last)
        if difference is not None and index not in self.changed:
            self.changed.add(index)
            value = {**difference.to_dict(), "text": str(difference), "when": when}
            self.log.write("info", cell=index, name="changed", value=value)
        return index not in self.changed

    def build(self, index: int) -> None:
        """Builds weights, inputs and kernel; a cell that is built again keeps its kernel."""
        if index in self.built:
            return
        cell = self.plan.cells[index]
        x_TD = batches.inputs(cell, self.comm.rank, self.comm.device)
        if self.comm.device.type == "cuda":
            layer = self._built_on_gpu(index, x_TD)
        else:
            kernel = self._kernel(index, x_TD)
            layer = self._layer(cell)
            layer.use(kernel)
        steps = [Step(cell, layer, x_TD)]
        if cell.workload.cache == "cold":
            for _ in range(self._cold_sets(steps[0]) - 1):
                x_copy = x_TD.detach().clone().requires_grad_(x_TD.requires_grad)
                steps.append(Step(cell, layer.clone(), x_copy))
        self.built[index] = Built(steps, steps[0] if len(steps) == 1 else Rotation(steps))

    def _layer(self, cell: Cell) -> MoELayer:
        """A new layer. On a GPU its weights are kept until those of another are made: the cells of
        a wave that has no room for all are built again in every round."""
        if self.kept_weights and self.kept_weights[0] != cell.layer:
            self.kept_weights = None
        layer = build.build(cell, self.comm, self.trace(cell))
        if layer.shared_weights is not None:
            self.kept_weights = cell.layer, layer.shared_weights
        return layer

    def _built_on_gpu(self, index: int, x_TD: Tensor) -> MoELayer:
        """The layer, with its kernel."""
        layer = self._layer(self.plan.cells[index])
        layer.use(self._kernel(index, x_TD, layer))
        layer.experts.keep_only_used()
        if layer.shared_weights is None:  # its kernel has another layout: nobody uses this one
            self.kept_weights = None
        return layer

    def trace(self, cell: Cell) -> Tensor | None:
        """[N, K] expert ids for workload.kind=trace, read once per launch; else None."""
        sha256 = cell.workload.trace_sha256
        if not sha256:
            return None
        if sha256 not in self.traces:
            folder = Path(self.plan.launch_dir)
            self.traces[sha256] = thaw(self.plan.traces, sha256, folder, cell.layer.topk)
        return self.traces[sha256]

    def _kernel(self, index: int, x_TD: Tensor, layer: MoELayer | None = None) -> str:
        """The kernel, chosen on `layer`; None: on one of its own, because on a processor one that
        has tried every kernel has another memory layout, and is slower or faster by half a
        percent."""
        cell = self.plan.cells[index]
        key = kernel_key(cell)
        choice: dict[str, Any] = {"name": self.kernels.get(key, ""), "how": "chosen before"}
        if key not in self.kernels:
            layer = layer or self._layer(cell)
            choice = layer.tune(x_TD)
            self.kernels[key] = choice["name"]
        if index not in self.chosen:  # a heavy cell is built again every round
            self.chosen.add(index)
            self.log.write("info", cell=index, name="kernel", value=choice)
        return self.kernels[key]

    def _cold_sets(self, step: Step) -> int:
        """Copies whose weights and inputs, on all ranks together, are twice the cache; on GPUs as
        runners/rank/cold_sets.py says."""
        if self.comm.device.type == "cuda":
            place = self.ranks.place.node, self.comm.device.index or 0
            return cold_sets.count(self.ranks.gather(cold_sets.row(step, step.layer.cell, place)))
        cache = hardware.llc_bytes() or LLC_BYTES_UNKNOWN
        local_bytes = step.layer.weights_bytes() + step.x_TD.nbytes
        total_bytes = sum(row[0] for row in self.ranks.gather([local_bytes]))
        sets = -(-2 * cache // max(total_bytes, 1)) + 1
        return self.ranks.broadcast(min(sets, COLD_SETS_MAX))

    def inspect(self, index: int) -> None:
        """Logs bytes sent, waits for a GPU, peak memory and phases, each from passes of its own;
        those of a CUDA graph's cell run kernel by kernel."""
        step = self.built[index].call
        if (waited := waits.count(step, self.comm.device)) is not None:
            self.compare(index, "when waits were counted")
            self.log.write("info", cell=index, name="host_waits", value=waited)
        with self.built[index].eager():
            with self.comm.counting() as rows:
                step()
            self.compare(index, "when bytes were counted")
            self.log.write("info", cell=index, name="traffic", value=rows)
            self.log.write("info", cell=index, name="memory", value=self._memory(index))
            self.compare(index, "when memory was counted")
            if self.plan.measure.phases and not self.plan.placement.staged:
                self.log.write("info", cell=index, name="phases", value=self._phases(index))

    def _memory(self, index: int) -> dict[str, object]:
        peak = environment.peak_memory_bytes(self.comm.device.type)
        built = self.built[index]
        built.last.output = None  # otherwise it would be freed in the step that is counted
        cold = self.plan.cells[index].workload.cache == "cold"
        on_gpu = self.comm.device.type == "cuda" and not self.plan.placement.staged
        judged = cold and on_gpu
        cache = cold_sets.read_times(built.steps, self.reached[index]) if judged else None
        return {
            **peak,
            "restarted": self._restarted,
            "before_bytes": self._baseline["current_bytes"],
            "weights_bytes": built.steps[0].layer.weights_bytes(),
            "step_bytes": environment.step_memory_bytes(built.call, self.comm.device.type),
            **({"cache": cache} if cache else {}),
        }

    def _phases(self, index: int) -> dict[str, object]:
        """On this rank, in ns: phases and total of the pass with the median total, and the phases
        of every pass."""
        passes: list[dict[str, int]] = []
        totals: list[int] = []
        step = self.built[index].call
        clock = self.ranks.phase_clock()
        deadline = time.monotonic() + PHASE_BUDGET_S
        for _ in range(self.plan.measure.phases):
            self.ranks.barrier()
            self.ranks.sync()
            with phases.recording(clock) as times:
                step()
            self.compare(index, "when phases were timed")
            passes.append(times)
            totals.append(sum(times.values()))
            if self.ranks.broadcast(int(time.monotonic() > deadline)):
                break
        median_ns = statistics.median_low(totals)
        median_pass = passes[totals.index(median_ns)]  # one real pass, so that its parts add up
        return {
            "passes": len(passes),
            "per_phase_ns": median_pass,
            "total_ns": median_ns,
            "pass_ns": passes,
        }

    def fail(self, index: int, why: str) -> None:
        """Logs that a cell has failed on this rank, which goes on with others."""
        self.failed.add(index)
        self.kept_weights = None
        self.log.write("info", cell=index, name="failed", value=why)

    def drop(self, indices: Iterable[int]) -> None:
        """Frees weights and inputs; the state of the verification stays."""
        for index in indices:
            self.built.pop(index, None)
        if not self.built:
            release_graphs()
        free_cached(self.comm.device)

    def discard(self, indices: Iterable[int]) -> None:
        """Frees weights, inputs and the state of the verification."""
        indices = list(indices)
        self.drop(indices)
        for index in indices:
            self.verifiers.pop(index, None)
