"""Checks the router against float64 logits of the same tokens.

The oracle computes logits, scores and gates itself. The layer's scores must agree within float32
rounding, and its choice must be exactly the best of its own scores, ties to the lowest id. So a
near-tie that rounding decides is counted but is no fault; any other choice is one.

Shape letters: T tokens this rank routes, B global batch, D in, E experts, K slots of a token (all E
where experts choose).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe.layer import balance_loss
from moe.layer.base import ForwardTrace
from moe.layer.router import Routing
from moe.parallel.comm import Comm
from moe.spec import Cell, LayerSpec
from moe.verify import faults, oracle
from moe.verify.faults import FaultCollector
from moe.verify.limits import logit_limit

GATE_ROUNDING = 1e-6  # of a gate near 1 in float32: exponentials, a sum, a quotient
EVENED = 0.5  # largest share of the unevenness that a balancing bias may leave


@dataclass
class Routed:
    """The routing of the whole batch, as the ranks did it, and the oracle's logits for it."""

    table_BK: Tensor  # experts of every token's slots
    kept_BK: Tensor | None  # None: nothing is dropped
    gates_BK: Tensor  # the oracle's in float64, for that choice
    logits_BE: Tensor  # float64

    @property
    def slots_BK(self) -> Tensor:
        """[B, K] experts of kept slots, -1 for dropped ones."""
        kept = self.kept_BK
        return self.table_BK if kept is None else self.table_BK.masked_fill(~kept, -1)


def drops(layer: LayerSpec) -> bool:
    """Whether the router may drop slots."""
    return layer.router.kind == "expert_choice" or layer.router.capacity_factor > 0


def check_routing(
    cell: Cell, comm: Comm, seen: ForwardTrace, x_BD: Tensor, allowed_BE: Tensor | None,
    collector: FaultCollector,
) -> Routed:  # fmt: skip
    """Checks the routing of one step on all ranks. Collective.

    `x_BD` are the whole batch's tokens in float64, `seen` the step's trace, `allowed_BE` the choice
    that the workload prescribes.
    """
    logits_BE = oracle.logits(cell.layer, x_BD)
    if seen.routing is not None:
        rows = slice(*seen.rows)
        allowed_TE = None if allowed_BE is None else allowed_BE[rows]
        _check_rows(cell, seen.routing, x_BD[rows], logits_BE[rows], allowed_TE, collector)
    table_BK, kept_BK = _everyones_choice(cell, comm, seen, collector)
    gates_BK = oracle.gates(cell.layer, logits_BE, table_BK, kept_BK)
    if seen.routing is not None:
        rows = slice(*seen.rows)
        used_TE = seen.routing.logits_TE.detach().double()
        kept_TK = None if kept_BK is None else kept_BK[rows]
        want_TK = oracle.gates(cell.layer, used_TE, table_BK[rows], kept_TK)
        off_TK = (seen.routing.gates_TK.detach().double() - want_TK).abs()
        collector.require(bool((off_TK <= _gate_limit(cell.layer)).all()), faults.GATES)
        if kept_BK is not None:
            _check_weights(cell, seen.routing, used_TE, collector)
    return Routed(table_BK, kept_BK, gates_BK, logits_BE)


def _gate_limit(layer: LayerSpec) -> float:
    """Allowed error of a gate, given the layer's own logits, which are checked by themselves."""
    return layer.router.scale * GATE_ROUNDING


def _logit_slack(layer: LayerSpec, x_TD: Tensor) -> Tensor:
    """[T, E] allowed error of a float32 logit."""
    norms_E = oracle.router_weight(layer, x_TD.device).norm(dim=1)
    size_TE = x_TD.norm(dim=1, keepdim=True) * norms_E / layer.dim**0.5
    tensor_cores = x_TD.is_cuda and layer.dtype != "float32"
    return logit_limit(layer.dim, tensor_cores) * size_TE


def _check_rows(
    cell: Cell, routing: Routing, x_TD: Tensor, logits_TE: Tensor, allowed_TE: Tensor | None,
    collector: FaultCollector,
) -> None:  # fmt: skip
    """Checks what this rank's router reports of its own tokens."""
    layer, rule = cell.layer, cell.layer.router
    slack_TE = _logit_slack(layer, x_TD)
    used_TE = routing.logits_TE.detach().double()
    collector.require(bool(used_TE.isfinite().all()), faults.FINITE)
    collector.require(bool(((used_TE - logits_TE).abs() <= slack_TE).all()), faults.LOGITS)
    scores_TE, want_TE = routing.scores_TE.detach().double(), logits_TE
    if rule.kind == "expert_choice":
        want_TE = oracle.probabilities(layer, logits_TE)
    elif rule.selection_bias != "none" or rule.groups > 1:
        want_TE = oracle.ranking(layer, logits_TE)
        if rule.groups > 1:  # eligibility follows the layer's own ranks, which are checked first
            if not collector.require(routing.ranked_TE is not None, faults.SCORES):
                return
            assert routing.ranked_TE is not None
            ranked_TE = routing.ranked_TE.detach().double()
            near_TE = (ranked_TE - want_TE).abs() <= slack_TE + GATE_ROUNDING
            collector.require(bool(near_TE.all()), faults.SCORES)
            want_TE = want_TE.masked_fill(~oracle.eligible(layer, ranked_TE), -torch.inf)
    elif allowed_TE is not None:
        want_TE = logits_TE.masked_fill(~allowed_TE, -torch.inf)
    open_TE = want_TE > -torch.inf
    same = torch.equal(scores_TE > -torch.inf, open_TE)
    off_TE = (scores_TE - want_TE).abs().masked_fill(~open_TE, 0.0)
    fine = same and bool((off_TE <= slack_TE + GATE_ROUNDING).all())
    if not collector.require(fine, faults.SCORES) or rule.kind == "expert_choice":
        return
    _check_choice(layer, routing, scores_TE, want_TE, collector)


def _check_choice(
    layer: LayerSpec,
    routing: Routing,
    scores_TE: Tensor,
    want_TE: Tensor,
    collector: FaultCollector,
) -> None:
    """Checks that the chosen experts are the best by the layer's own scores; counts near-ties."""
    chosen_TK = routing.indices_TK
    if not collector.require(chosen_TK.shape[1] == layer.topk, faults.CHOICE):
        return
    sorted_TK = chosen_TK.sort(dim=1)[0]
    best_TK = oracle.valid_choice(scores_TE, layer.topk)
    collector.require(torch.equal(sorted_TK, best_TK), faults.CHOICE)
    if layer.router.drop == "first_choices" and layer.router.capacity_factor:
        falling = scores_TE.gather(1, chosen_TK).diff(dim=1) <= 0
        collector.require(bool(falling.all()), faults.CHOICE)
    exact_TK = oracle.valid_choice(want_TE, layer.topk)
    collector.largest("near_ties", float((sorted_TK != exact_TK).any(dim=1).sum()))


def _everyones_choice(
    cell: Cell, comm: Comm, seen: ForwardTrace, collector: FaultCollector
) -> tuple[Tensor, Tensor | None]:
    """Returns ([B, K] experts of every slot, [B, K] bool of kept slots or None for all). Ranks that
    routed the same token must agree, and dropped slots must follow the rule. Collective."""
    layer, routing = cell.layer, seen.routing
    dropping = drops(layer)
    slots = layer.num_experts if layer.router.kind == "expert_choice" else layer.topk
    parts = []
    if routing is not None:
        parts = [routing.indices_TK]
        if dropping:
            complete = routing.kept_TK is not None and routing.weight_TK is not None
            collector.require(complete, faults.KEPT)
            blank = torch.zeros_like(routing.indices_TK)
            parts += [blank if part is None else part.detach()
                      for part in (routing.kept_TK, routing.weight_TK)]  # fmt: skip
    shape = (cell.workload.batch_size, slots * (3 if dropping else 1))
    highest = torch.full(shape, -torch.inf, dtype=torch.float64, device=comm.device)
    if parts:
        highest[slice(*seen.rows)] = torch.cat([part.double() for part in parts], dim=1)
    lowest = -torch.where(highest == -torch.inf, torch.inf, highest)
    both = comm.world.combine_(torch.cat([highest, lowest]), "max")
    highest, lowest = both.chunk(2)
    collector.require(bool((highest > -torch.inf).all()), faults.UNROUTED)
    collector.require(torch.equal(highest, -lowest), faults.RANKS)
    columns = highest.nan_to_num(neginf=0.0).split(slots, dim=1)
    table_BK = columns[0].long().clamp(0, layer.num_experts - 1)
    if not dropping:
        return table_BK, None
    kept_BK, weight_BK = columns[1].bool(), columns[2]
    collector.require(torch.equal(kept_BK, oracle.kept(cell, table_BK, weight_BK)), faults.KEPT)
    return table_BK, kept_BK


def _check_weights(
    cell: Cell, routing: Routing, logits_TE: Tensor, collector: FaultCollector
) -> None:
    """Checks what slots were ordered by: scores where experts choose, else the gates before slots
    were dropped."""
    if routing.weight_TK is None:
        return
    weight_TK = routing.weight_TK.detach().double()
    if cell.layer.router.kind == "expert_choice":
        collector.require(torch.equal(weight_TK, routing.scores_TE.detach().double()), faults.KEPT)
        return
    want_TK = oracle.gates(cell.layer, logits_TE, routing.indices_TK)
    limit = _gate_limit(cell.layer)
    collector.require(bool(((weight_TK - want_TK).abs() <= limit).all()), faults.KEPT)


def check_ties(
    cell: Cell, seen: ForwardTrace, allowed_BE: Tensor | None, collector: FaultCollector
) -> None:
    """Checks a step on zero tokens, whose logits are all 0: the lowest ids must be chosen."""
    routing = seen.routing
    if routing is None:
        return
    rows = slice(*seen.rows)
    x_TD = torch.zeros(
        len(routing.logits_TE), cell.layer.dim, dtype=torch.float64, device=routing.logits_TE.device
    )
    logits_TE = torch.zeros_like(routing.logits_TE, dtype=torch.float64)
    allowed_TE = None if allowed_BE is None else allowed_BE[rows]
    tie_faults = FaultCollector()
    _check_rows(cell, routing, x_TD, logits_TE, allowed_TE, tie_faults)
    collector.require(not tie_faults.fault, faults.TIES)


def bias_evens_out(layer: LayerSpec) -> bool:
    """Whether the selection bias evens out the load on its seeded tokens.

    Its effect is checked instead of its values: the steps that lead to it depend on signs of
    counts, which different rounding can flip.
    """
    plain_NE = balance_loss.calibration_scores(layer).double()
    with_bias_NE = plain_NE + balance_loss.selection_bias(layer).double()
    before, after = _unevenness(layer, plain_NE), _unevenness(layer, with_bias_NE)
    return after <= EVENED * before + 0.02


def _unevenness(layer: LayerSpec, ranked_NE: Tensor) -> float:
    """Standard deviation of the experts' loads over their mean."""
    if layer.router.groups > 1:
        ranked_NE = ranked_NE.masked_fill(~oracle.eligible(layer, ranked_NE), -torch.inf)
    chosen = ranked_NE.topk(layer.topk, dim=1)[1]
    counts_E = torch.bincount(chosen.reshape(-1), minlength=layer.num_experts).double()
    return float(counts_E.std(correction=0) / counts_E.mean())
