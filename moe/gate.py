"""Whether a layer is right, decided before it may be timed.

The router's choice is checked by itself (float32 logits close to float64 ones, and the chosen
experts exactly the best of the logits that were used, ties to the lowest id), then fed to the
float64 oracle, so that a near-tie that rounding decides is not mistaken for an error.
Error of a token: |y_t - ref_t| / max(|ref_t|, median |ref|), maximum over tokens and ranks.

Shape letters: N tokens checked on this rank, B global batch, D in, O out, E experts, K top-k.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from moe import oracle, workload
from moe.comm import Comm
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

    def to_dict(self) -> dict[str, Any]:
        """For a record: JSON has no infinity."""
        return asdict(self) | {"error": self.error if math.isfinite(self.error) else None}


def tolerance(cell: Cell) -> float:
    """Of the coarser of the layer's dtype and the dtype things are sent in."""
    return max(TOLERANCE[cell.layer.dtype], TOLERANCE[cell.strategy.comm_dtype or cell.layer.dtype])


class Verdict:
    """Collects what went wrong; `settle` makes it the same on all ranks."""

    NAMES = ("", "an output or logit is not a finite number", "outputs have the wrong shape",
             "ranks routed the same token differently", "router logits are off",
             "chosen experts are not the best, lowest id first", "outputs differ from the oracle",
             "a router that sees only ties does not choose the lowest ids")  # fmt: skip

    def __init__(self) -> None:
        self.fault, self.error, self.checked = 0, 0.0, 0

    def require(self, fine: bool, fault: int) -> bool:
        if not fine and self.fault == 0:
            self.fault = fault
        return fine

    def settle(self, comm: Comm, limit: float) -> GateResult:
        error = self.error if math.isfinite(self.error) else math.inf
        worst = torch.tensor([float(self.fault), error], device=comm.device, dtype=torch.float64)
        count = torch.tensor([self.checked], device=comm.device)
        fault, error = comm.world.combine_(worst, "max").tolist()
        checked = int(comm.world.combine_(count, "sum"))
        ok = not fault and error <= limit and checked > 0
        reason = self.NAMES[int(fault)] if fault else "" if ok else self.NAMES[6]
        return GateResult(ok, error, limit, checked, reason or "agrees with the float64 oracle")


def check(cell: Cell, layer: MoELayer, comm: Comm, x_TD: Tensor) -> GateResult:
    """Runs the layer on x and on tokens that tie all experts; collective, same verdict on all."""
    verdict = Verdict()
    _check_ties(cell, layer, x_TD, verdict)
    with torch.no_grad(), layer.watching() as seen:
        y_TO = layer(x_TD)
    rows = output_rows(cell, comm.rank)
    shaped = tuple(y_TO.shape) == (rows[1] - rows[0], cell.layer.dim_out)
    verdict.require(shaped, 2)
    verdict.require(bool(y_TO.isfinite().all()), 1)
    table_BK = choices(cell, comm, seen, verdict)
    picked = sample(cell, comm.rank, table_BK)
    ref_NO, indices = _reference(cell, layer, comm, x_TD, table_BK, picked, seen, verdict)
    _compare(cell, comm, y_TO if shaped else None, ref_NO, indices, rows, verdict)
    return verdict.settle(comm, tolerance(cell))


def output_rows(cell: Cell, rank: int) -> tuple[int, int]:
    """Global ids of the tokens whose outputs a rank ends with."""
    if cell.strategy.name == "serial" and rank:
        return 0, 0
    return workload.start_rows(cell, rank)


def _check_ties(cell: Cell, layer: MoELayer, x_TD: Tensor, verdict: Verdict) -> None:
    """Zero tokens make all logits equal: the first K allowed experts must be chosen."""
    with torch.no_grad(), layer.watching() as seen:
        layer(torch.zeros_like(x_TD))
    if seen.routing is None:
        return
    want = oracle.valid_choice(seen.routing.scores_TE.detach().double(), cell.layer.topk)
    logits_zero = bool((seen.routing.logits_TE == 0).all())
    same = torch.equal(seen.routing.indices_TK.sort(dim=1)[0], want)
    verdict.require(logits_zero and same, 7)


def choices(cell: Cell, comm: Comm, seen: Seen, verdict: Verdict) -> Tensor:
    """[B, K] of the experts chosen for every token, agreed on by all ranks that routed it."""
    shape = (cell.workload.batch_size, cell.layer.topk)
    highest = torch.full(shape, -1, dtype=torch.int64, device=comm.device)
    if seen.routing is not None:
        highest[seen.rows[0] : seen.rows[1]] = seen.routing.indices_TK
    lowest = torch.where(highest < 0, cell.layer.num_experts, highest)
    comm.world.combine_(highest, "max")
    comm.world.combine_(lowest, "min")
    verdict.require(torch.equal(highest, lowest), 3)
    return highest.clamp(min=0)


def _reference(
    cell: Cell,
    layer: MoELayer,
    comm: Comm,
    x_TD: Tensor,
    table_BK: Tensor,
    picked: Tensor,
    seen: Seen,
    verdict: Verdict,
) -> tuple[Tensor, Tensor]:
    """[N, O] oracle outputs of this rank's picked tokens and their global ids."""
    start = workload.start_rows(cell, comm.rank)[0]
    picked = picked.to(comm.device)
    x_ND = x_TD.detach()[picked - start].double()
    indices_NK = table_BK[picked]
    allowed_NE = layer.router.allowed_TE
    if allowed_NE is not None:
        allowed_NE = allowed_NE[picked - seen.rows[0]] if seen.routing is not None else None
    logits_NE = oracle.logits(cell.layer, x_ND)
    if seen.routing is not None:
        _check_router(cell, seen, picked, logits_NE, verdict)
    gates_NK = oracle.gates(cell.layer, logits_NE, indices_NK, allowed_NE)
    verdict.checked += len(picked)
    return oracle.outputs(cell.layer, x_ND, indices_NK, gates_NK), picked


def _check_router(
    cell: Cell, seen: Seen, picked: Tensor, logits_NE: Tensor, verdict: Verdict
) -> None:
    assert seen.routing is not None
    routing = seen.routing
    verdict.require(bool(routing.logits_TE.isfinite().all()), 1)
    used_NE = routing.logits_TE[picked - seen.rows[0]].double()
    allowed = LOGIT_TOLERANCE * logits_NE.abs().clamp(min=1.0)
    verdict.require(bool(((used_NE - logits_NE).abs() <= allowed).all()), 4)
    want_TK = oracle.valid_choice(routing.scores_TE.detach(), cell.layer.topk)
    verdict.require(torch.equal(routing.indices_TK.sort(dim=1)[0], want_TK), 5)


def _compare(
    cell: Cell,
    comm: Comm,
    y_TO: Tensor | None,
    ref_NO: Tensor,
    picked: Tensor,
    rows: tuple[int, int],
    verdict: Verdict,
) -> None:
    """Every rank's own outputs against the oracle's, whichever rank computed those."""
    total, replicated = cell.workload.batch_size, cell.workload.tokens == "replicated"
    norms_B = torch.full((total,), -1.0, dtype=torch.float64, device=comm.device)
    norms_B[picked] = ref_NO.norm(dim=1)
    comm.world.combine_(norms_B, "max")
    known = (norms_B >= 0).nonzero().flatten()
    median = norms_B[known].median()
    if replicated:
        table = torch.zeros((len(known), ref_NO.shape[1]), dtype=torch.float64, device=comm.device)
        table[torch.searchsorted(known, picked)] = ref_NO
        ref_NO, picked = comm.world.combine_(table, "sum"), known
        if rows[1] == rows[0]:
            return
    if y_TO is None or not len(picked):
        return
    difference_N = (y_TO[picked - rows[0]].double() - ref_NO).norm(dim=1)
    scale_N = torch.maximum(norms_B[picked], median)
    error_N = torch.where(difference_N == 0, 0.0, difference_N / scale_N)
    verdict.error = max(verdict.error, float(error_N.nan_to_num(math.inf).max()))
