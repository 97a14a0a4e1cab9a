"""The check of one cell on all ranks: before timing, after every block, after the last one.

It runs the timed step itself. Before timing: on tokens that tie all experts, then on the cell's
own, whose routing, output and gradients are compared with the oracle; every copy of a cold cell
must give the same. Between blocks: the last step's results are compared with the proven ones. After
timing: every copy on other tokens, written into the same input, so that a cached answer is caught.

Shape letters: T tokens on this rank, B global batch, D in, O out, K slots of a token.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from moe import build
from moe.layer.base import ForwardTrace
from moe.parallel.comm import Comm
from moe.spec import Cell
from moe.step import Step
from moe.verify import definitions, faults, golden
from moe.verify.errors import largest_error, rms_error
from moe.verify.faults import CheckResult, FaultCollector
from moe.verify.gradients import ExpertGradients, inputs_error, router_error
from moe.verify.limits import limits
from moe.verify.reference import Batch, Reference, reference
from moe.verify.routing import bias_evens_out, check_routing, check_ties
from moe.verify.sampling import sample
from moe.verify.snapshot import Difference, Snapshot, local_gradients
from moe.workload import batches

OTHER_TOKENS = 0x5EED  # added to the seed for the tokens after timing


def verify(
    cell: Cell, step: Step, comm: Comm, trace_NK: Tensor | None = None, seed: int = 0
) -> CheckResult:
    """The check before timing, by itself. Collective."""
    return Verifier(cell, comm, trace_NK).prove([step], seed)


def verify_twin(
    twin: Cell, kernel: str, comm: Comm, trace_NK: Tensor | None = None, wait_free: bool = False
) -> CheckResult:
    """The check of a cell's float32 twin with the cell's kernel, and with `wait_free` as in a CUDA
    graph. Collective."""
    layer = build.build(twin, comm, trace_NK)
    layer.wait_free = wait_free
    layer.use(kernel)
    x_TD = batches.inputs(twin, comm.rank, comm.device)
    result = verify(twin, Step(twin, layer, x_TD), comm, trace_NK)
    return replace(result, detail=f"in float32: {result.detail}")


@dataclass
class Done:
    """What a step did on this rank: time-consuming torch calls, multiplications in matrix products,
    messages, and gradients that a backward pass reached."""

    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    multiplications: int = 0
    sent: tuple[tuple[Any, ...], ...] = ()
    reached: Counter[str] = field(default_factory=Counter)


class Verifier:
    """One cell's check on this rank; all ranks make the same calls. `trace_NK` is the routing of
    workload.kind=trace. The proven snapshot outlives its layer, so a rebuilt layer can be compared
    with it."""

    def __init__(self, cell: Cell, comm: Comm, trace_NK: Tensor | None = None) -> None:
        self.cell, self.comm, self.trace_NK = cell, comm, trace_NK
        self.limit = limits(cell)
        self.train = cell.workload.mode == "train"
        self.seen: ForwardTrace | None = None  # of the step that was proven
        self.done = Done()  # by the last watched step
        self.proven: Snapshot | None = None
        allowed_BE = batches.allowed(cell, (0, cell.workload.batch_size), trace_NK)
        self.allowed_BE = None if allowed_BE is None else allowed_BE.to(comm.device)

    def prove(self, steps: Sequence[Step], seed: int) -> CheckResult:
        """The check before timing. Collective; the same result on every rank."""
        collector = FaultCollector()
        self._check_definitions(collector)
        first, x_BD = steps[0], self._tokens(self.cell)
        fine = definitions.tokens_differ(self.cell, x_BD) and definitions.tokens_spread(x_BD)
        collector.require(fine, faults.TOKENS)
        for step in steps:
            fine = torch.equal(step.x_TD, self._own(x_BD))
            collector.require(fine, faults.INPUT)
        collector.require(_apart(steps), faults.SHARED)
        check_ties(self.cell, self._run(first, torch.zeros_like(x_BD)), self.allowed_BE, collector)
        result = self._judge(first, x_BD, seed, collector)
        self.proven = Snapshot(first, self.limit)
        return self._with_copies(result, steps[1:])

    def prove_again(self, steps: Sequence[Step], seed: int) -> CheckResult:
        """The check after timing: all copies on new tokens, another sample of them in float64.
        Collective."""
        work = self.cell.workload
        other = replace(self.cell, workload=replace(work, seed=work.seed + OTHER_TOKENS))
        collector, first = FaultCollector(), steps[0]
        for step in dict.fromkeys((steps[0], steps[-1])):
            self._check_work(step, collector)
        x_BD = self._tokens(other)
        result = self._judge(first, x_BD, seed, collector)
        self.proven = Snapshot(first, self.limit)
        for step in steps[1:]:
            _write(step, self._own(x_BD))
        return self._with_copies(result, steps[1:])

    def compare(self, step: Step) -> Difference | None:
        """Difference of the last step from the proven one, on this rank; None if equal. Then fills
        the output with NaN, so that returning the same memory without computing fails the next
        comparison."""
        assert self.proven is not None
        difference = self.proven.difference(step)
        if step.output is not None and step.output.is_floating_point():
            with torch.inference_mode():
                step.output.fill_(torch.nan)
        return difference

    def _check_definitions(self, collector: FaultCollector) -> None:
        """Checks what the layer and the oracle share."""
        as_written = golden.as_written(self.comm.device)
        collector.require(as_written, faults.DEFINITIONS)
        if self.allowed_BE is not None:
            allowed_BE = self.allowed_BE.cpu()
            right = definitions.prescribed_right(self.cell, allowed_BE, self.trace_NK)
            collector.require(right, faults.PRESCRIBED)
        if self.cell.layer.router.selection_bias != "none":
            collector.require(bias_evens_out(self.cell.layer), faults.BIAS)

    def _tokens(self, cell: Cell) -> Tensor:
        """[B, D] tokens of the whole batch in the layer's dtype."""
        return batches.tokens(cell, (0, cell.workload.batch_size), self.comm.device)

    def _own(self, x_BD: Tensor) -> Tensor:
        """The rows this rank starts with."""
        return x_BD[slice(*definitions.input_rows(self.cell, self.comm.rank))]

    def _run(self, step: Step, x_BD: Tensor) -> ForwardTrace:
        """Runs the step on these tokens, and records what it did."""
        _write(step, self._own(x_BD))
        with step.layer.watching() as seen:
            self.done = _counted(step)
        if step.captured:
            step()  # what is judged is the replay
        return seen

    def _works(self, step: Step, seen: ForwardTrace) -> bool:
        """Whether products had at least the multiplications that the routed rows need. True for
        systems that hold their own experts."""
        if not step.layer.experts.ids or seen.routing is None:
            return True
        needed = seen.slots * self._per_slot(step)
        needed += seen.routing.logits_TE.numel() * self.cell.layer.dim
        return self.done.multiplications >= needed

    def _per_slot(self, step: Step) -> int:
        """Multiplications of one row in this rank's part of an expert."""
        layer, columns = self.cell.layer, step.layer.experts.columns
        units = columns[1] - columns[0]
        first = 2 * units if layer.activation == "silu_gated" else units
        return first * layer.dim + units * layer.dim_out

    def _check_work(self, step: Step, collector: FaultCollector) -> None:
        """Runs the timed tokens twice in a row: work, messages and results must be as proven.
        Catches answers cached by input content, or until something happens in between."""
        assert self.proven is not None
        _write(step, self.proven.x_TD)
        for _ in range(2):
            collector.require(_counted(step) == self.done, faults.WORK)
        if step.captured:
            step()
        collector.require(self.proven.difference(step) is None, faults.LATER)

    def _judge(self, step: Step, x_BD: Tensor, seed: int, collector: FaultCollector) -> CheckResult:
        """Runs the step on these tokens and compares everything with the oracle. Collective."""
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
            batch.cotangent_BO = batches.cotangent(cell, whole, comm.device)
            experts = ExpertGradients(cell, step.layer, comm, batch.dtype)
            left = local_gradients(step)
            same = all(torch.equal(grad, left[name])
                       for name, grad in experts.gradients.items() if name in left)  # fmt: skip
            collector.require(same, faults.TOLD)
        ref = reference(cell, comm, batch, experts.take if experts else None)
        collector.require(ref.experts_differ, faults.EXPERTS)
        self._compare_outputs(step, ref, collector)
        if experts is not None:
            collector.largest("gradient", experts.largest_error())
            collector.largest("gradient", router_error(experts.gradients["router.weight_ED"], ref))
            collector.largest("gradient", inputs_error(cell, comm, step.x_TD, ref))
        return collector.settle(comm, self.limit, self.train, len(sampled), len(x_BD), seed)

    def _compare_outputs(self, step: Step, ref: Reference, collector: FaultCollector) -> None:
        """Compares this rank's outputs: every row, and the sampled ones in float64."""
        low, high = definitions.output_rows(self.cell, self.comm.rank)
        y_TO = step.output
        shaped = y_TO is not None and tuple(y_TO.shape) == (high - low, self.cell.layer.dim_out)
        if not collector.require(shaped, faults.SHAPE):
            return
        assert y_TO is not None
        dtypes = {t.dtype for t in (y_TO, step.x_TD, *_own_weights(step))}
        collector.require(dtypes == {definitions.DTYPES[self.cell.layer.dtype]}, faults.DTYPE)
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
        """The result, or a fault if a copy of the layer computes something else. Collective."""
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


PRODUCTS = ("mm", "linear", "matmul")  # parts of names
TAKE_TIME = (*PRODUCTS, "sort", "topk", "softmax", "index_select", "embedding_bag")


@functools.cache
def _kinds(name: str) -> tuple[bool, bool]:
    """(whether a torch function takes time, whether it is a matrix product), by its name."""
    takes_time, is_product = (any(p in name for p in parts) for parts in (TAKE_TIME, PRODUCTS))
    return takes_time, is_product


class Work(TorchFunctionMode):
    """Counts torch calls that take time, by name and result shape, and multiplications in matrix
    products."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, str]] = Counter()
        self.multiplications = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        takes_time, is_product = _kinds(name)
        if takes_time:
            self.calls[name, str(out.shape) if isinstance(out, Tensor) else ""] += 1
        if is_product and isinstance(out, Tensor):
            operands = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor)]
            left = operands[1 if name.startswith(("addmm", "baddbmm")) else 0]
            self.multiplications += out.numel() * left.shape[-1]
        return out


def _own_weights(step: Step) -> list[Tensor]:
    """This project's expert weights; none for another system's layer."""
    experts = [module for module in (step.layer.experts, step.layer.shared) if module]
    return [weight for module in experts for weight in module.parameters()]


@contextmanager
def _backward(step: Step) -> Iterator[Counter[str]]:
    """Counts how often backward passes inside the block reach the input and each weight."""
    reached: Counter[str] = Counter()
    tensors = {"x": step.x_TD, **dict(step.layer.named_parameters())}
    hooks = [
        tensor.register_post_accumulate_grad_hook(lambda _, name=name: reached.update([name]))
        for name, tensor in tensors.items()
        if tensor.requires_grad
    ]
    try:
        yield reached
    finally:
        for hook in hooks:
            hook.remove()


def _apart(steps: Sequence[Step]) -> bool:
    """Whether no two steps share memory of inputs or weights."""
    places = []
    for step in steps:
        tensors = [step.x_TD, *step.layer.parameters()]
        storages = {t.untyped_storage().data_ptr() for t in tensors if t.numel() and not t.is_meta}
        places += sorted(storages)
    return len(places) == len(set(places))


def _counted(step: Step) -> Done:
    """Runs the step, kernel by kernel, and returns what it did on this rank."""
    comm = step.layer.comm
    with step.eager(), Work() as work, comm.counting() as rows, _backward(step) as reached:
        step()
    sent = tuple(tuple(row.values()) for row in rows)
    return Done(work.calls, work.multiplications, sent, reached)


def _write(step: Step, x_TD: Tensor) -> None:
    """Writes the step's input through `.data`, which torch's version counter does not see, so that
    an answer cached by version is wrong."""
    step.x_TD.data.copy_(x_TD)
