"""The check of one cell on all ranks: before timing, after every block, after the last one.

It runs the very step that is timed. Before: on tokens that tie all experts, then on the cell's own,
whose routing, output and gradients are held against the oracle; every copy of a cold cell must give
the same. In between, what each block's last step left is compared with what was proven. After:
every copy on other tokens, written into the same input, so that nothing can be a remembered answer.

Shape letters: T tokens on this rank, B global batch, D in, O out, K slots of a token.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from moe import workload
from moe.comm import Comm
from moe.layer import Seen
from moe.spec import Cell
from moe.step import Step
from moe.verify import definitions, faults
from moe.verify.errors import largest_error, rms_error
from moe.verify.faults import CheckResult, FaultCollector
from moe.verify.gradients import ExpertGradients, inputs_error, router_error
from moe.verify.limits import limits
from moe.verify.reference import Batch, Reference, reference
from moe.verify.routing import bias_evens_out, check_routing, check_ties
from moe.verify.sampling import sample
from moe.verify.snapshot import Difference, Snapshot

OTHER_TOKENS = 0x5EED  # added to the seed of the tokens that are used after timing


def verify(
    cell: Cell, step: Step, comm: Comm, trace_NK: Tensor | None = None, seed: int = 0
) -> CheckResult:
    """The check before timing, alone; collective."""
    return Verifier(cell, comm, trace_NK).prove([step], seed)


class Verifier:
    """One cell's check on this rank; all ranks call alike. `trace_NK` is the routing of
    workload.kind=trace. What is proven outlives the layer it was proven of, so that a layer that is
    built again can be compared with it."""

    def __init__(self, cell: Cell, comm: Comm, trace_NK: Tensor | None = None) -> None:
        self.cell, self.comm, self.trace_NK = cell, comm, trace_NK
        self.limit = limits(cell)
        self.train = cell.workload.mode == "train"
        self.seen: Seen | None = None  # of the step that was proven
        self.products: Counter[tuple[str, tuple[int, ...]]] = Counter()  # of the last watched step
        self.proven: Snapshot | None = None
        allowed_BE = workload.allowed(cell, (0, cell.workload.batch_size), trace_NK)
        self.allowed_BE = None if allowed_BE is None else allowed_BE.to(comm.device)

    def prove(self, steps: Sequence[Step], seed: int) -> CheckResult:
        """Before timing. Collective; the same verdict on every rank."""
        collector = FaultCollector()
        self._check_definitions(collector)
        first, x_BD = steps[0], self._tokens(self.cell)
        collector.require(definitions.tokens_differ(self.cell, x_BD), faults.TOKENS)
        for step in steps:
            fine = torch.equal(step.x_TD, self._own(x_BD))
            collector.require(fine, faults.INPUT)
        check_ties(self.cell, self._run(first, torch.zeros_like(x_BD)), self.allowed_BE, collector)
        result = self._judge(first, x_BD, seed, collector)
        self.proven = Snapshot(first, self.limit)
        return self._with_copies(result, steps[1:])

    def prove_again(self, steps: Sequence[Step], seed: int) -> CheckResult:
        """After timing, on other tokens, of which others are checked in float64; every copy."""
        work = self.cell.workload
        other = replace(self.cell, workload=replace(work, seed=work.seed + OTHER_TOKENS))
        collector, first = FaultCollector(), steps[0]
        self._check_work(first, collector)
        x_BD = self._tokens(other)
        result = self._judge(first, x_BD, seed, collector)
        self.proven = Snapshot(first, self.limit)
        for step in steps[1:]:
            _write(step, self._own(x_BD))
        return self._with_copies(result, steps[1:])

    def compare(self, step: Step) -> Difference | None:
        """What the step that has just run left behind, and what of it differs from the proven one;
        on this rank alone. The output is then made unusable: whoever hands out the same memory
        again, without computing, is found at the next comparison."""
        assert self.proven is not None
        found = self.proven.difference(step)
        if step.output is not None and step.output.is_floating_point():
            with torch.inference_mode():
                step.output.fill_(torch.nan)
        return found

    def _check_definitions(self, collector: FaultCollector) -> None:
        if self.allowed_BE is not None:
            allowed_BE = self.allowed_BE.cpu()
            right = definitions.prescribed_right(self.cell, allowed_BE, self.trace_NK)
            collector.require(right, faults.PRESCRIBED)
        if self.cell.layer.router.selection_bias != "none":
            collector.require(bias_evens_out(self.cell.layer), faults.BIAS)

    def _tokens(self, cell: Cell) -> Tensor:
        """[B, D] of the whole batch, in the layer's dtype."""
        return workload.tokens(cell, (0, cell.workload.batch_size)).to(self.comm.device)

    def _own(self, x_BD: Tensor) -> Tensor:
        """The rows this rank starts with."""
        return x_BD[slice(*definitions.input_rows(self.cell, self.comm.rank))]

    def _run(self, step: Step, x_BD: Tensor) -> Seen:
        """The step on these tokens, watched."""
        _write(step, self._own(x_BD))
        with step.layer.watching() as seen, Products() as products:
            step()
        self.products = products.made
        return seen

    def _works(self, step: Step, seen: Seen) -> bool:
        """Whether products beside the router's made a number for each output of the tokens that
        experts here were given, at least; systems that hold their own experts are not asked."""
        if not step.layer.experts.ids or seen.routing is None:
            return True
        made = sum(math.prod(shape) * times for (_, shape), times in self.products.items())
        router = seen.routing.logits_TE.numel()
        slots_a_token = seen.routing.indices_TK.shape[1]
        return made - router >= seen.slots / slots_a_token * self.cell.layer.dim_out

    def _check_work(self, step: Step, collector: FaultCollector) -> None:
        """On the tokens that were timed: the same products as before timing, and what was proven.
        An answer that is remembered by what is in the input needs none."""
        assert self.proven is not None
        _write(step, self._own(self._tokens(self.cell)))
        with Products() as products:
            step()
        collector.require(products.made == self.products, faults.WORK)
        collector.require(self.proven.difference(step) is None, faults.LATER)

    def _judge(self, step: Step, x_BD: Tensor, seed: int, collector: FaultCollector) -> CheckResult:
        """Runs the step on these tokens and holds all of it against the oracle."""
        cell, comm = self.cell, self.comm
        self.seen = self._run(step, x_BD)
        collector.require(self._works(step, self.seen), faults.WORK)
        collector.require(torch.equal(step.x_TD, self._own(x_BD)), faults.CHANGED)
        sampled = sample(cell, seed).to(comm.device)
        routed = check_routing(cell, comm, self.seen, x_BD.double(), self.allowed_BE, collector)
        batch = Batch(x_BD, routed, sampled)
        experts = None
        if self.train:
            whole = (0, cell.workload.batch_size)
            batch.cotangent_BO = workload.cotangent(cell, whole).to(comm.device)
            experts = ExpertGradients(cell, step.layer, comm, batch.dtype)
        ref = reference(cell, comm, batch, experts.take if experts else None)
        collector.require(ref.experts_differ, faults.EXPERTS)
        self._compare_outputs(step, ref, collector)
        if experts is not None:
            collector.largest("gradient", experts.largest_error())
            collector.largest("gradient", router_error(experts.gradients["router.weight_ED"], ref))
            collector.largest("gradient", inputs_error(cell, comm, step.x_TD, ref))
        return collector.settle(comm, self.limit, self.train, len(sampled), len(x_BD), seed)

    def _compare_outputs(self, step: Step, ref: Reference, collector: FaultCollector) -> None:
        """This rank's own outputs: every row, and the sampled ones in float64."""
        low, high = definitions.output_rows(self.cell, self.comm.rank)
        y_TO = step.output
        shaped = y_TO is not None and tuple(y_TO.shape) == (high - low, self.cell.layer.dim_out)
        if not collector.require(shaped, faults.SHAPE):
            return
        assert y_TO is not None
        collector.require(bool(y_TO.isfinite().all()), faults.FINITE)
        norms_B = ref.y_BO.norm(dim=1)
        rows = slice(low, high)
        collector.largest("error", largest_error(y_TO, ref.y_BO[rows], norms_B[rows], norms_B))
        collector.largest("rms", rms_error(y_TO, ref.y_BO[rows]))
        here = (ref.sampled >= low) & (ref.sampled < high)
        at_N, exact_NO = ref.sampled[here] - low, ref.exact_NO[here]
        norms_N = exact_NO.norm(dim=1)
        collector.largest("error", largest_error(y_TO[at_N], exact_NO, norms_N, norms_B.double()))

    def _with_copies(self, result: CheckResult, copies: Sequence[Step]) -> CheckResult:
        """The result, unless a copy of the layer computes something else; collective."""
        assert self.proven is not None
        fine = True
        for step in copies:
            step()
            fine = self.compare(step) is None and fine
        if copies:
            bad = torch.tensor([float(not fine)], device=self.comm.device)
            fine = not bool(self.comm.world.combine_(bad, "max"))
        if fine or not result.ok:
            return result
        return replace(result, ok=False, detail=faults.FAULTS[faults.COPY])


class Products(TorchFunctionMode):
    """Notes the matrix products that Python code asks torch for inside: names and result shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if isinstance(out, Tensor) and any(word in name for word in ("mm", "linear", "matmul")):
            self.made[name, tuple(out.shape)] += 1
        return out


def _write(step: Step, x_TD: Tensor) -> None:
    """Into the step's own input, unseen by torch's count of its versions: an answer that is
    remembered by it is then a wrong one."""
    step.x_TD.data.copy_(x_TD)
