"""Outputs and gradients of every row by plain arithmetic: expert by expert, each on one rank.

Weights come from their definition, not from the strategy. A small batch is computed in float64;
otherwise all rows are in float32 and a sample of them also in float64, in the same pass over the
weights. The loss of mode=train is the sum over all B tokens of <y, cotangent>, once for all ranks,
plus the balancing loss.

Shape letters: M rows of one expert, N sampled tokens, B global batch, D in, H hidden, O out, E
experts, K slots of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from moe import weights
from moe.parallel.comm import Comm
from moe.spec import Cell, LayerSpec
from moe.verify import definitions, oracle
from moe.verify.limits import UNIT, logit_limit
from moe.verify.oracle import Matrices
from moe.verify.routing import Routed

FIRST = 32  # first numbers of an expert's matrix, which must differ between experts

TakeGradients = Callable[[int, dict[str, Tensor] | None, float], None]


@dataclass
class Reference:
    """Reference results, the same on every rank. `y_BO` is float64 if all rows are, else float32;
    `exact_NO` are the rows `sampled` in float64."""

    y_BO: Tensor
    sampled: Tensor
    exact_NO: Tensor
    experts_differ: bool
    dx_BD: Tensor | None = None  # mode=train
    kink_B: Tensor | None = None  # slack of dx where a relu's input is near 0
    dw_ED: Tensor | None = None  # of the router
    terms: float = 0.0  # typical size of the terms summed in a row of dw_ED


@dataclass
class Batch:
    """Input of the reference: the whole batch's tokens in the layer's dtype, their routing, and in
    mode=train their cotangents."""

    x_BD: Tensor
    routed: Routed
    sampled: Tensor
    cotangent_BO: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which all rows are computed."""
        return torch.float64 if len(self.sampled) == len(self.x_BD) else torch.float32


def reference(
    cell: Cell, comm: Comm, batch: Batch, take_gradients: TakeGradients | None = None
) -> Reference:
    """Computes all rows. Collective.

    `take_gradients(expert, gradients, kink)` is called on every rank for each expert: gradients of
    its matrices on the rank that computed them, None elsewhere; `kink` is how far they may be off
    because a relu's input is near 0.
    """
    layer, whole = cell.layer, batch.dtype == torch.float64
    sums = _Sums(cell, batch)
    shared = range(layer.num_experts, layer.num_experts + layer.shared_experts)
    firsts = torch.zeros(
        len(shared) + layer.num_experts, 2 * FIRST, dtype=torch.float64, device=comm.device
    )
    every = range(layer.num_experts + layer.shared_experts)
    own = weights.by_expert(layer, every[comm.rank :: comm.world_size], comm.device)
    for expert in every:
        gradients, kink = None, 0.0
        if expert % comm.world_size == comm.rank:
            matrices = next(own)
            for place, name in enumerate(("w1", "w2")):
                start = matrices[name].reshape(-1)[:FIRST]
                firsts[expert, place * FIRST :][: len(start)] = start.double()
            gradients, kink = sums.add(expert, matrices)
        if take_gradients is not None:
            take_gradients(expert, gradients, kink)
    y_BO, exact_NO = sums.outputs(comm)
    comm.world.combine_(firsts, "sum")
    answer = Reference(
        y_BO, batch.sampled, y_BO if whole else exact_NO, definitions.experts_differ(layer, firsts)
    )
    if batch.cotangent_BO is not None:
        answer.dx_BD, answer.kink_B, answer.dw_ED, answer.terms = sums.gradients(comm)
    return answer


class _Converted(Mapping[str, Tensor]):
    """An expert's matrices in another dtype, converted on access, so that only one of a large
    expert exists at a time."""

    def __init__(self, matrices: Matrices, dtype: torch.dtype) -> None:
        self.matrices, self.dtype = matrices, dtype

    def __getitem__(self, name: str) -> Tensor:
        return self.matrices[name].to(self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.matrices)

    def __len__(self) -> int:
        return len(self.matrices)


class _Sums:
    """Sums of this rank's experts' contributions to outputs and gradients."""

    def __init__(self, cell: Cell, batch: Batch) -> None:
        self.cell, self.batch, self.dtype = cell, batch, batch.dtype
        layer, routed, x_BD = cell.layer, batch.routed, batch.x_BD
        self.slots_BK, self.gates_BK = routed.slots_BK, routed.gates_BK
        self.x_BD = x_BD.to(self.dtype)
        self.sent_BD = definitions.as_sent(cell, self.x_BD)
        self.y_BO = x_BD.new_zeros((len(x_BD), layer.dim_out), dtype=self.dtype)
        self.place_B = torch.full((len(x_BD),), -1, device=x_BD.device)
        self.place_B[batch.sampled] = torch.arange(len(batch.sampled), device=x_BD.device)
        exact = 0 if self.dtype == torch.float64 else len(batch.sampled)
        self.exact_NO = x_BD.new_zeros((exact, layer.dim_out), dtype=torch.float64)
        if batch.cotangent_BO is not None:
            self.cotangent_BO = batch.cotangent_BO.to(self.dtype)
            self.dx_BD, self.kink_B = torch.zeros_like(self.x_BD), self.x_BD.new_zeros(len(x_BD))
            self.dgates_BK = torch.zeros_like(self.gates_BK)
            self.terms_BK = torch.zeros_like(self.gates_BK)

    def add(self, expert: int, matrices: Matrices) -> tuple[dict[str, Tensor] | None, float]:
        """Adds one expert's rows; returns gradients of its matrices and how far they may be off."""
        layer = self.cell.layer
        if expert < layer.num_experts:
            row, slot = (self.slots_BK == expert).nonzero(as_tuple=True)
            x_MD, gate_M = self.sent_BD[row], self.gates_BK[row, slot]
        else:
            row = torch.arange(len(self.x_BD), device=self.x_BD.device)
            slot, x_MD = None, self.x_BD
            gate_M = x_MD.new_ones(len(row), dtype=torch.float64)
        if not len(row):
            return None, 0.0
        if self.exact_NO.numel():
            self._add_exact(matrices, row, gate_M, x_MD)
        matrices = _Converted(matrices, self.dtype)
        if self.batch.cotangent_BO is None:
            y_MO = oracle.expert_output(layer, matrices, x_MD)
            self.y_BO.index_add_(0, row, y_MO * gate_M.to(self.dtype).unsqueeze(1))
            return None, 0.0
        return self._add_trained(matrices, row, slot, x_MD, gate_M.to(self.dtype))

    def _add_exact(self, matrices: Matrices, row: Tensor, gate_M: Tensor, x_MD: Tensor) -> None:
        """Adds the sampled tokens among these rows in float64."""
        place_M = self.place_B[row]
        here = place_M >= 0
        if bool(here.any()):
            exact = _Converted(matrices, torch.float64)
            y_MO = oracle.expert_output(self.cell.layer, exact, x_MD[here].double())
            self.exact_NO.index_add_(0, place_M[here], y_MO * gate_M[here].unsqueeze(1))

    def _add_trained(
        self, matrices: Matrices, row: Tensor, slot: Tensor | None, x_MD: Tensor, gate_M: Tensor
    ) -> tuple[dict[str, Tensor], float]:
        layer, cotangent_MO = self.cell.layer, self.cotangent_BO[row]
        matrices = {name: matrix.requires_grad_() for name, matrix in matrices.items()}
        x_MD = x_MD.detach().clone().requires_grad_()
        with torch.enable_grad():
            h_MH = oracle.expert_first(layer, matrices, x_MD)
            y_MO = oracle.expert_second(layer, matrices, h_MH, x_MD)
        into_MO = cotangent_MO * gate_M.unsqueeze(1)
        dx_MD, *gradients = torch.autograd.grad(y_MO, [x_MD, *matrices.values()], into_MO)
        y_MO = y_MO.detach()
        self.y_BO.index_add_(0, row, y_MO * gate_M.unsqueeze(1))
        self.dx_BD.index_add_(0, row, dx_MD)
        if slot is not None:
            self.dgates_BK[row, slot] = (y_MO * cotangent_MO).sum(1).double()
            sizes_M = y_MO.norm(dim=1) * cotangent_MO.norm(dim=1)
            self.terms_BK[row, slot] = (sizes_M / layer.dim_out**0.5).double()
        kink = 0.0
        if layer.activation == "relu":
            kink_M, kink = near_kinks(layer, matrices, x_MD.detach(), h_MH.detach(), into_MO)
            self.kink_B.index_add_(0, row, kink_M)
        return dict(zip(matrices, gradients, strict=True)), kink

    def outputs(self, comm: Comm) -> tuple[Tensor, Tensor]:
        """(y_BO, exact_NO) summed over the ranks. Collective."""
        comm.world.combine_(self.y_BO, "sum")
        if self.exact_NO.numel():
            comm.world.combine_(self.exact_NO, "sum")
        return self.y_BO, self.exact_NO

    def gradients(self, comm: Comm) -> tuple[Tensor, Tensor, Tensor, float]:
        """Returns (dx_BD, its slack at kinks, dw_ED of the router, typical size of its terms).
        Collective."""
        layer, slots = self.cell.layer, self.gates_BK.shape[1]
        both = comm.world.combine_(torch.cat([self.dgates_BK, self.terms_BK], dim=1), "sum")
        dgates_BK, terms_BK = both.split(slots, dim=1)
        rows = definitions.shards(self.cell)[comm.rank]
        here = slice(*rows)
        routed, x_TD = self.batch.routed, self.batch.x_BD[here].double()
        logits_TE = routed.logits_BE[here].detach().clone().requires_grad_()
        kept_TK = None if routed.kept_BK is None else routed.kept_BK[here]
        with torch.enable_grad():
            gates_TK = oracle.gates(layer, logits_TE, routed.table_BK[here], kept_TK)
            total = (gates_TK * dgates_BK[here]).sum()
            if layer.router.aux_loss:
                total = total + oracle.balancing_loss(self.cell, logits_TE, routed.table_BK, rows)
        dlogits_TE = torch.autograd.grad(total, logits_TE)[0]
        dw_ED = comm.world.combine_(dlogits_TE.T @ x_TD, "sum")
        weight_ED = oracle.router_weight(layer, comm.device)
        self.dx_BD[here] += (dlogits_TE @ weight_ED).to(self.dtype)
        summed = comm.world.combine_(torch.cat([self.dx_BD, self.kink_B.unsqueeze(1)], 1), "sum")
        terms_B = (self.gates_BK * terms_BK).norm(dim=1) * self.batch.x_BD.double().norm(dim=1)
        terms = float((terms_B**2).sum() / layer.num_experts) ** 0.5
        return summed[:, :-1], summed[:, -1], dw_ED, terms


def near_kinks(
    layer: LayerSpec, matrices: Matrices, x_MD: Tensor, h_MH: Tensor, into_MO: Tensor
) -> tuple[Tensor, float]:
    """How far gradients may be off where a relu's input is so near to 0 that rounding decides its
    sign. Returns (slack of each row of dx, slack of the gradients of w1 and b1).

    A unit that is on in one computation and off in the other changes dx by da * w1 and dw1 by da *
    x, with da the gradient of its output. Such changes add up as squares; twice that is allowed. A
    product rounded before its bias is added is off by the rounding of the part that the bias
    cancels.
    """
    w1_HD = matrices["w1"].detach()
    size_MH = x_MD.norm(dim=1, keepdim=True) * w1_HD.norm(dim=1) / x_MD.shape[1] ** 0.5
    width_MH = logit_limit(x_MD.shape[1]) * size_MH
    if "b1" in matrices:
        width_MH = width_MH + 2 * UNIT[layer.dtype] * matrices["b1"].detach().abs()
    near_MH = h_MH.abs() <= width_MH
    if not bool(near_MH.any()):
        return x_MD.new_zeros(len(x_MD)), 0.0
    squares_MH = (into_MO @ matrices["w2"].detach()) ** 2 * near_MH
    of_rows_M = (squares_MH @ (w1_HD**2).sum(1)).sqrt()
    longest_M = (x_MD**2).sum(1).clamp(min=1.0)
    return 2 * of_rows_M, 2 * float((squares_MH.sum(1) * longest_M).sum()) ** 0.5
