"""Whether a layer is right, decided before it may be timed.

The router's choice is checked by itself (float32 logits close to float64 ones, and the chosen
experts exactly the best of the logits that were used, ties to the lowest id), then fed to the
float64 oracle, so that a near-tie that rounding decides is not mistaken for an error.
Error of a token: |y_t - ref_t| / max(|ref_t|, median |ref|), maximum over tokens and ranks. Where
slots are dropped or experts choose, every rank's decisions are held against the rule on the whole
batch. In mode=train the gradients follow (moe.gate_gradients).

Shape letters: N tokens checked on this rank, B global batch, D in, O out, E experts, K slots of a
token (all E where experts choose).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from moe import oracle, workload
from moe.comm import Comm
from moe.gate_gradients import (
    Reference,
    compare_gradients,
    everyones_rows,
    largest_error,
)
from moe.layer import MoELayer, Seen
from moe.sampling import sample
from moe.spec import Cell

TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}
LOGIT_TOLERANCE = 1e-4  # float32 whatever the dtype


@dataclass
class GateResult:
    """The same on every rank; `tokens_checked` counts over all ranks."""

    ok: bool
    error: float
    tolerance: float
    tokens_checked: int
    detail: str
    gradient_error: float | None = None  # mode=train

    def to_dict(self) -> dict[str, Any]:
        """For a record: JSON has no infinity."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def tolerance(cell: Cell) -> float:
    """Of the coarser of the layer's dtype and the dtype things are sent in."""
    return max(TOLERANCE[cell.layer.dtype], TOLERANCE[cell.strategy.comm_dtype or cell.layer.dtype])


class Verdict:
    """Collects what went wrong; `settle` makes it the same on all ranks."""

    NAMES = ("", "an output or logit is not a finite number", "outputs have the wrong shape",
             "ranks routed the same token differently", "router logits are off",
             "chosen experts are not the best, lowest id first", "outputs differ from the oracle",
             "a router that sees only ties does not choose the lowest ids",
             "slots were dropped that the rule keeps, or kept that it drops",
             "gradients differ from the oracle's")  # fmt: skip

    def __init__(self) -> None:
        self.fault, self.error, self.checked = 0, 0.0, 0
        self.gradient_error: float | None = None

    def require(self, fine: bool, fault: int) -> bool:
        if not fine and self.fault == 0:
            self.fault = fault
        return fine

    def settle(self, comm: Comm, limit: float) -> GateResult:
        errors = [self.error, self.gradient_error or 0.0]
        found = [float(self.fault), *(e if math.isfinite(e) else math.inf for e in errors)]
        worst = torch.tensor(found, device=comm.device, dtype=torch.float64)
        count = torch.tensor([self.checked], device=comm.device)
        fault, error, gradient = comm.world.combine_(worst, "max").tolist()
        checked = int(comm.world.combine_(count, "sum"))
        if not fault:
            fault = 6 if error > limit or not checked else 9 if gradient > limit else 0
        reason = self.NAMES[int(fault)] if fault else "agrees with the float64 oracle"
        shown = None if self.gradient_error is None else gradient
        return GateResult(not fault, error, limit, checked, reason, shown)


def check(
    cell: Cell, layer: MoELayer, comm: Comm, x_TD: Tensor, trace_NK: Tensor | None = None
) -> GateResult:
    """Runs the layer on x and on tokens that tie all experts; collective, same verdict on all.
    `trace_NK` is the routing of workload.kind=trace."""
    verdict = Verdict()
    _check_ties(cell, layer, x_TD, verdict)
    with torch.no_grad(), layer.watching() as seen:
        y_TO = layer(x_TD)
    rows = output_rows(cell, comm.rank)
    shaped = tuple(y_TO.shape) == (rows[1] - rows[0], cell.layer.dim_out)
    verdict.require(shaped, 2)
    verdict.require(bool(y_TO.isfinite().all()), 1)
    table_BK, kept_BK = choices(cell, comm, seen, verdict)
    slots_BK = table_BK if kept_BK is None else table_BK.masked_fill(~kept_BK, -1)
    picked = sample(cell, comm.rank, slots_BK)
    allowed_TE = workload.allowed(cell, workload.own_rows(cell, comm.rank), trace_NK)
    ref = _reference(cell, comm, x_TD, table_BK, kept_BK, allowed_TE, picked, seen, verdict)
    known = _compare(cell, comm, y_TO if shaped else None, ref, rows, verdict)
    if cell.workload.mode == "train" and _agreed(comm, shaped):
        verdict.gradient_error = compare_gradients(cell, layer, comm, x_TD, ref, known)
    return verdict.settle(comm, tolerance(cell))


def _agreed(comm: Comm, fine: bool) -> bool:
    bad = torch.tensor([float(not fine)], device=comm.device)
    return not bool(comm.world.combine_(bad, "max"))


def output_rows(cell: Cell, rank: int) -> tuple[int, int]:
    """Global ids of the tokens whose outputs a rank ends with."""
    if cell.strategy.name == "serial" and rank:
        return 0, 0
    return workload.start_rows(cell, rank)


def _check_ties(cell: Cell, layer: MoELayer, x_TD: Tensor, verdict: Verdict) -> None:
    """Zero tokens make all logits equal: the first K allowed experts must be chosen."""
    with torch.no_grad(), layer.watching() as seen:
        layer(torch.zeros_like(x_TD))
    routing = seen.routing
    if routing is None:
        return
    fine = bool((routing.logits_TE == 0).all())
    if cell.layer.router.kind == "token_choice":
        want = oracle.valid_choice(routing.scores_TE.detach().double(), cell.layer.topk)
        fine = fine and torch.equal(routing.indices_TK.sort(dim=1)[0], want)
    verdict.require(fine, 7)


def choices(cell: Cell, comm: Comm, seen: Seen, verdict: Verdict) -> tuple[Tensor, Tensor | None]:
    """[B, K] experts of every token's slots and which of these are kept (None: all), agreed on by
    all ranks that routed the token and held against the rule."""
    routing, rule = seen.routing, cell.layer.router
    drops = rule.kind == "expert_choice" or rule.capacity_factor > 0
    slots = cell.layer.num_experts if rule.kind == "expert_choice" else cell.layer.topk
    shape = (cell.workload.batch_size, slots)
    here = None if routing is None else routing.indices_TK
    table_BK = _everyones(comm, shape, seen, here, verdict).long()
    if not drops:
        return table_BK, None
    weight = None if routing is None else routing.weight_TK
    kept = None if routing is None or routing.kept_TK is None else routing.kept_TK
    verdict.require(routing is None or kept is not None, 8)
    weight_BK = _everyones(comm, shape, seen, weight, verdict)
    kept_BK = _everyones(comm, shape, seen, kept, verdict).bool()
    verdict.require(torch.equal(kept_BK, oracle.kept(cell, table_BK, weight_BK)), 8)
    return table_BK, kept_BK


def _everyones(
    comm: Comm, shape: tuple[int, int], seen: Seen, here: Tensor | None, verdict: Verdict
) -> Tensor:
    """[B, K] float64 of what every rank has for the tokens it routed; ranks must not differ."""
    highest = torch.full(shape, -torch.inf, dtype=torch.float64, device=comm.device)
    if here is not None:
        highest[seen.rows[0] : seen.rows[1]] = here.double()
    lowest = torch.where(highest == -torch.inf, torch.inf, highest)
    comm.world.combine_(highest, "max")
    comm.world.combine_(lowest, "min")
    verdict.require(torch.equal(highest, lowest), 3)
    return highest.nan_to_num(neginf=0.0)


def _reference(
    cell: Cell,
    comm: Comm,
    x_TD: Tensor,
    table_BK: Tensor,
    kept_BK: Tensor | None,
    allowed_TE: Tensor | None,
    picked: Tensor,
    seen: Seen,
    verdict: Verdict,
) -> Reference:
    """The oracle's view of this rank's picked tokens."""
    start = workload.start_rows(cell, comm.rank)[0]
    picked = picked.to(comm.device)
    x_ND = x_TD.detach()[picked - start].double()
    allowed_NE = None
    if allowed_TE is not None:
        own = workload.own_rows(cell, comm.rank)[0]
        allowed_NE = allowed_TE.to(comm.device)[picked - own]
    logits_NE = oracle.logits(cell.layer, x_ND)
    if seen.routing is not None:
        _check_router(cell, seen, picked, logits_NE, allowed_NE, verdict)
    kept_NK = None if kept_BK is None else kept_BK[picked]
    indices_NK = table_BK[picked]
    gates_NK = oracle.gates(cell.layer, logits_NE, indices_NK, allowed_NE, kept_NK)
    verdict.checked += len(picked)
    sent_ND = oracle.as_sent(cell, x_ND)
    y_NO = oracle.outputs(cell.layer, x_ND, sent_ND, indices_NK, gates_NK)
    return Reference(picked, x_ND, sent_ND, table_BK, indices_NK, kept_NK, allowed_NE, y_NO)


def _check_router(
    cell: Cell,
    seen: Seen,
    picked: Tensor,
    logits_NE: Tensor,
    allowed_NE: Tensor | None,
    verdict: Verdict,
) -> None:
    assert seen.routing is not None
    routing, rule = seen.routing, cell.layer.router
    verdict.require(bool(routing.logits_TE.isfinite().all()), 1)
    at_N = picked - seen.rows[0]
    used_NE = routing.logits_TE[at_N].double()
    allowed = LOGIT_TOLERANCE * logits_NE.abs().clamp(min=1.0)
    verdict.require(bool(((used_NE - logits_NE).abs() <= allowed).all()), 4)
    if rule.kind == "expert_choice":
        return
    if rule.selection_bias != "none" or rule.groups > 1:
        _check_ranking(cell, routing.ranked_TE, routing.scores_TE, at_N, used_NE, verdict)
    elif allowed_NE is not None:
        verdict.require(torch.equal(routing.scores_TE[at_N] > -torch.inf, allowed_NE), 5)
    want_TK = oracle.valid_choice(routing.scores_TE.detach(), cell.layer.topk)
    verdict.require(torch.equal(routing.indices_TK.sort(dim=1)[0], want_TK), 5)


def _check_ranking(
    cell: Cell,
    ranked_TE: Tensor | None,
    scores_TE: Tensor,
    at_N: Tensor,
    used_NE: Tensor,
    verdict: Verdict,
) -> None:
    """Scores with bias as they should be, and groups ruled out as the rule says."""
    if not verdict.require(ranked_TE is not None, 5):
        return
    assert ranked_TE is not None
    ranked_NE, want_NE = ranked_TE[at_N], oracle.ranking(cell.layer, used_NE)
    verdict.require(bool(((ranked_NE - want_NE).abs() <= LOGIT_TOLERANCE).all()), 5)
    if cell.layer.router.groups > 1:
        fine_NE = oracle.eligible(cell.layer, ranked_NE)
        verdict.require(torch.equal(scores_TE[at_N] > -torch.inf, fine_NE), 5)


def _compare(
    cell: Cell,
    comm: Comm,
    y_TO: Tensor | None,
    ref: Reference,
    rows: tuple[int, int],
    verdict: Verdict,
) -> Tensor:
    """Every rank's own outputs against the oracle's, whichever rank computed those; the global ids
    of all tokens that some rank picked."""
    total, replicated = cell.workload.batch_size, cell.workload.tokens == "replicated"
    norms_B = torch.full((total,), -1.0, dtype=torch.float64, device=comm.device)
    norms_B[ref.picked] = ref.y_NO.norm(dim=1)
    comm.world.combine_(norms_B, "max")
    known = (norms_B >= 0).nonzero().flatten()
    ref_NO, picked = ref.y_NO, ref.picked
    if replicated:
        ref_NO, picked = everyones_rows(comm, ref_NO, picked, known), known
        if rows[1] == rows[0]:
            return known
    if y_TO is not None and len(picked):
        error = largest_error(y_TO[picked - rows[0]], ref_NO, norms_B[picked], norms_B[known])
        verdict.error = max(verdict.error, error)
    return known
