"""Whether gradients are right: of inputs, router and experts, against the float64 oracle.

The loss is the sum over all B tokens of <y, cotangent>, once for all ranks, plus the balancing
loss. Here the cotangent is zero but for the tokens the gate picked, so that a large layer can be
checked on a sample; then only those tokens, and the experts they visit, may have gradients.

Shape letters: N tokens picked on this rank, B global batch, D in, O out, E experts, K slots.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from moe import oracle, weights, workload
from moe.comm import Comm
from moe.experts import Experts
from moe.layer import MoELayer
from moe.spec import Cell
from moe.step import train_once


@dataclass
class Reference:
    """The oracle's view of the tokens `picked` (global ids); `table_BK` are all tokens' experts."""

    picked: Tensor
    x_ND: Tensor
    sent_ND: Tensor  # as routed experts get them
    table_BK: Tensor
    indices_NK: Tensor
    kept_NK: Tensor | None
    allowed_NE: Tensor | None
    y_NO: Tensor

    @property
    def slots_NK(self) -> Tensor:
        """Experts of the slots that are kept, -1 elsewhere."""
        kept = self.kept_NK
        return self.indices_NK if kept is None else self.indices_NK.masked_fill(~kept, -1)


_AT_ONCE = 1 << 22  # elements of the reference that ranks add up in one go
LEAST = 1e-3  # of the largest gradient: below it rounding decides, as of experts nobody chose


def largest_error(
    found: Tensor, want: Tensor, norms: Tensor, all_norms: Tensor, least: float = 0.0
) -> float:
    """Over rows: |found - want| / max(|want|, median of all |want|, least * largest |want|)."""
    difference = (found.double() - want).norm(dim=1)
    scale = norms.clamp(min=max(float(all_norms.median()), least * float(all_norms.max())))
    error = torch.where(difference == 0, 0.0, difference / scale)
    return float(error.nan_to_num(nan=math.inf).max())


def everyones_rows(comm: Comm, rows_NX: Tensor, ids: Tensor, known: Tensor) -> Tensor:
    """Rows of all `known` ids, of which every rank has those of its `ids`."""
    table = rows_NX.new_zeros((len(known), rows_NX.shape[1]))
    table[torch.searchsorted(known, ids)] = rows_NX
    return comm.world.combine_(table, "sum")


def compare_gradients(
    cell: Cell, layer: MoELayer, comm: Comm, x_TD: Tensor, ref: Reference, known: Tensor
) -> float:
    """Largest error of any row of a gradient on this rank; collective."""
    bounds = workload.start_rows(cell, comm.rank)
    cotangent_TO = workload.cotangent(cell, bounds).to(comm.device)
    mine = known[(known >= bounds[0]) & (known < bounds[1])] - bounds[0]
    masked_TO = torch.zeros_like(cotangent_TO)
    masked_TO[mine] = cotangent_TO[mine]
    train_once(layer, x_TD, masked_TO)
    gradients = layer.named_gradients()
    dx_ND, dw_ED, errors = _reference_gradients(cell, layer, comm, ref, cotangent_TO, gradients)
    errors.append(_router_error(gradients["router.weight_ED"], dw_ED))
    errors.append(_inputs_error(cell, comm, x_TD, ref, known, dx_ND))
    layer.zero_grad(set_to_none=True)
    x_TD.grad = None
    return max(errors)


def _router_error(found_ED: Tensor, want: tuple[Tensor, float]) -> float:
    """A gate's gradient is an inner product, less the others' mean: what is left of it can be far
    smaller than what rounding adds. So the scale of a row is at least that of its terms."""
    want_ED, terms = want
    norms = want_ED.norm(dim=1)
    return largest_error(found_ED, want_ED, norms.clamp(min=terms), norms, LEAST)


def _inputs_error(
    cell: Cell, comm: Comm, x_TD: Tensor, ref: Reference, known: Tensor, dx_ND: Tensor
) -> float:
    start, end = workload.start_rows(cell, comm.rank)
    norms_B = torch.zeros(cell.workload.batch_size, dtype=torch.float64, device=comm.device)
    norms_B[ref.picked] = dx_ND.norm(dim=1)
    comm.world.combine_(norms_B, "max")
    picked = ref.picked
    if cell.workload.tokens == "replicated":
        dx_ND, picked = everyones_rows(comm, dx_ND, picked, known), known
    grad_TD = torch.zeros_like(x_TD) if x_TD.grad is None else x_TD.grad
    if start == end or not len(picked):
        return 0.0
    others = torch.ones(end - start, dtype=torch.bool, device=comm.device)
    others[picked - start] = False
    if not cell.layer.router.aux_loss and bool((grad_TD[others] != 0).any()):
        return math.inf
    found = grad_TD[picked - start]
    return largest_error(found, dx_ND, norms_B[picked], norms_B[known], LEAST)


def _reference_gradients(
    cell: Cell,
    layer: MoELayer,
    comm: Comm,
    ref: Reference,
    cotangent_TO: Tensor,
    gradients: dict[str, Tensor],
) -> tuple[Tensor, tuple[Tensor, float], list[float]]:
    """[N, D] of the picked tokens, [E, D] of the router with the size of the terms in a row, and
    the errors of every expert's."""
    start = workload.start_rows(cell, comm.rank)[0]
    cotangent_NO = cotangent_TO[ref.picked - start].double()
    logits_NE = oracle.logits(cell.layer, ref.x_ND).requires_grad_()
    gates_NK = oracle.gates(cell.layer, logits_NE, ref.indices_NK, ref.allowed_NE, ref.kept_NK)
    dx_ND, dgates_NK, terms_NK, errors = _experts(
        cell, layer, comm, ref, cotangent_NO, gates_NK, gradients
    )
    dlogits_NE = torch.autograd.grad(gates_NK, logits_NE, dgates_NK)[0]
    weight_ED = weights.router(cell.layer).to(comm.device).double()
    dw_ED = dlogits_NE.T @ ref.x_ND
    dx_ND += dlogits_NE @ weight_ED
    if cell.layer.router.aux_loss:
        extra_ED, extra_ND = _balancing(cell, comm, ref, weight_ED)
        dw_ED += extra_ED
        dx_ND += extra_ND
    terms_N = (gates_NK.detach() * terms_NK).norm(dim=1) * ref.x_ND.norm(dim=1)
    squares = comm.world.combine_((terms_N**2).sum().view(1), "sum")
    terms = float(squares / cell.layer.num_experts) ** 0.5
    return dx_ND, (comm.world.combine_(dw_ED, "sum"), terms), errors


def _experts(
    cell: Cell,
    layer: MoELayer,
    comm: Comm,
    ref: Reference,
    cotangent_NO: Tensor,
    gates_NK: Tensor,
    gradients: dict[str, Tensor],
) -> tuple[Tensor, Tensor, Tensor, list[float]]:
    """One expert at a time: what it adds to the gradients of inputs and gates, the typical size of
    the latter (|y| |cotangent| / sqrt(O)), and its own gradients compared."""
    dx_ND, dgates_NK = torch.zeros_like(ref.x_ND), torch.zeros_like(gates_NK)
    terms_NK = torch.zeros_like(dgates_NK)
    routed, slots_NK = cell.layer.num_experts, ref.slots_NK
    compared = _Compared(cell, comm, held_gradients(layer, gradients))
    for expert in range(routed + cell.layer.shared_experts):
        if expert < routed:
            row, slot = (slots_NK == expert).nonzero(as_tuple=True)
            x_MD, weight_M = ref.sent_ND[row], gates_NK.detach()[row, slot]
        else:
            row = torch.arange(len(ref.x_ND), device=comm.device)
            slot, x_MD, weight_M = None, ref.x_ND, ref.x_ND.new_ones(len(row))
        y_MO, dx_MD, flat = _one_expert(cell, expert, x_MD, cotangent_NO[row], weight_M)
        dx_ND.index_add_(0, row, dx_MD)
        if slot is not None:
            dgates_NK[row, slot] = (y_MO * cotangent_NO[row]).sum(1)
            sizes_M = y_MO.norm(dim=1) * cotangent_NO[row].norm(dim=1)
            terms_NK[row, slot] = sizes_M / cell.layer.dim_out**0.5
        compared.add(expert, flat)
    return dx_ND, dgates_NK, terms_NK, compared.errors()


def _one_expert(
    cell: Cell, expert: int, x_MD: Tensor, cotangent_MO: Tensor, weight_M: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, gradients of the inputs, and those of all matrices one after the other."""
    layer = cell.layer
    if not len(x_MD):
        sizes = [math.prod(weights.shape(layer, name)) for name in weights.names(layer)]
        return cotangent_MO, x_MD, x_MD.new_zeros(sum(sizes))
    held = {
        name: matrix.requires_grad_()
        for name, matrix in oracle.expert_matrices(layer, expert, x_MD.device).items()
    }
    x_MD = x_MD.clone().requires_grad_()
    with torch.enable_grad():
        y_MO = oracle.expert_output(layer, held, x_MD)
    into = cotangent_MO * weight_M.unsqueeze(1)
    dx_MD, *found = torch.autograd.grad(y_MO, [x_MD, *held.values()], into)
    return y_MO.detach(), dx_MD, torch.cat([grad.reshape(-1) for grad in found])


Held = dict[int, list[tuple[dict[str, Tensor], tuple[int, int]]]]


def held_gradients(layer: MoELayer, gradients: dict[str, Tensor]) -> Held:
    """Of every expert here (twice where a rank has it twice): gradients of its matrices, oriented
    and cut as `weights.sliced` gives them, and the hidden units they are of."""
    found: Held = {}
    modules: list[tuple[str, Experts | None]] = [
        ("experts", layer.experts), ("shared", layer.shared)
    ]  # fmt: skip
    for prefix, experts in modules:
        if experts is None:
            continue
        own = {
            name.removeprefix(f"{prefix}."): tensor
            for name, tensor in gradients.items()
            if name.startswith(f"{prefix}.")
        }
        for expert, matrices in experts.by_expert(own):
            found.setdefault(expert, []).append((matrices, experts.columns))
    return found


class _Compared:
    """Errors of the experts' gradients, each matrix as one vector."""

    def __init__(self, cell: Cell, comm: Comm, held: Held) -> None:
        self.layer, self.comm, self.held = cell.layer, comm, held
        self.norms: dict[str, list[float]] = {name: [] for name in weights.names(cell.layer)}
        self.found: list[tuple[str, float, float]] = []  # matrix, |difference|, |wanted|
        self.waiting: list[tuple[int, Tensor]] = []

    def add(self, expert: int, flat: Tensor) -> None:
        """This rank's part of the reference; parts of several experts are added up at once."""
        self.waiting.append((expert, flat))
        if len(self.waiting) * flat.numel() >= _AT_ONCE:
            self.settle()

    def settle(self) -> None:
        if not self.waiting:
            return
        everyones = self.comm.world.combine_(torch.stack([part for _, part in self.waiting]), "sum")
        for (expert, _), flat in zip(self.waiting, everyones, strict=True):
            self._compare(expert, flat)
        self.waiting = []

    def _compare(self, expert: int, flat: Tensor) -> None:
        sizes = [math.prod(weights.shape(self.layer, name)) for name in self.norms]
        for name, part in zip(self.norms, flat.split(sizes), strict=True):
            whole = part.view(weights.shape(self.layer, name))
            self.norms[name].append(float(whole.norm()))
            for matrices, columns in self.held.get(expert, ()):
                if name in matrices:
                    want = weights.cut(name, whole, columns)
                    difference = float((matrices[name].double() - want).norm())
                    self.found.append((name, difference, float(want.norm())))

    def errors(self) -> list[float]:
        self.settle()
        typical = {
            name: max(statistics.median(values), LEAST * max(values))
            for name, values in self.norms.items()
        }
        found = [0.0]
        for name, difference, norm in self.found:
            scale = max(norm, typical[name])
            bad = not math.isfinite(difference) or (difference > 0 and scale == 0)
            found.append(math.inf if bad else difference / scale if difference else 0.0)
        return found


def _balancing(cell: Cell, comm: Comm, ref: Reference, weight_ED: Tensor) -> tuple[Tensor, Tensor]:
    """The balancing loss's part of the router's gradient by this rank's shard, and of dx_ND."""
    own = workload.own_rows(cell, comm.rank)
    if cell.strategy.name == "serial":
        own = (0, cell.workload.batch_size)
    x_TD = workload.tokens(cell, own).to(comm.device).double()
    logits_TE = oracle.logits(cell.layer, x_TD).requires_grad_()
    with torch.enable_grad():
        loss = oracle.balancing_loss(cell, logits_TE, ref.table_BK, own)
    if not loss.requires_grad:  # no tokens here
        return torch.zeros_like(weight_ED), torch.zeros_like(ref.x_ND)
    dlogits_TE = torch.autograd.grad(loss, logits_TE)[0]
    return dlogits_TE.T @ x_TD, (dlogits_TE @ weight_ED)[ref.picked - own[0]]
