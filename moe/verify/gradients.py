"""Checks the gradients that a step has left: of inputs, router and experts.

Shape letters: T tokens on this rank, B global batch, D in, E experts.
"""

from __future__ import annotations

import math
import statistics

import torch
from torch import Tensor

from moe import weights
from moe.layer.base import MoELayer
from moe.layer.experts import Experts
from moe.parallel.comm import Comm
from moe.spec import Cell
from moe.strategies import rules_of
from moe.verify import definitions
from moe.verify.errors import largest_error
from moe.verify.reference import Reference

AT_ONCE = 1 << 22  # elements of the reference that ranks sum at once
LEAST = 1e-3  # of the largest gradient; smaller ones are rounding, as of experts without slots

OwnGradients = dict[int, list[tuple[dict[str, Tensor], tuple[int, int]]]]


def own_gradients(layer: MoELayer, gradients: dict[str, Tensor]) -> OwnGradients:
    """{expert: [(gradients of its matrices, hidden units they belong to)]} for every expert here,
    with an entry for each copy; oriented and cut as `weights.sliced` gives them."""
    by_expert: OwnGradients = {}
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
            by_expert.setdefault(expert, []).append((matrices, experts.columns))
    return by_expert


class ExpertGradients:
    """Compares the experts' gradients on this rank with the reference, expert by expert, each
    matrix as one vector. Collective: sums the reference's parts of several experts at once."""

    def __init__(self, cell: Cell, layer: MoELayer, comm: Comm, dtype: torch.dtype) -> None:
        self.layer, self.comm, self.dtype = cell.layer, comm, dtype
        self.gradients = layer.named_gradients()
        self.own = own_gradients(layer, self.gradients)
        self.names = weights.names(cell.layer)
        self.sizes = [math.prod(weights.shape(cell.layer, name)) for name in self.names]
        self.norms: dict[str, list[float]] = {name: [] for name in self.names}
        self.compared: list[tuple[str, float, float]] = []  # matrix, |difference|, |wanted|
        self.waiting: list[tuple[int, dict[str, Tensor] | None, float]] = []

    def take(self, expert: int, gradients: dict[str, Tensor] | None, kink: float) -> None:
        """Adds one expert's reference gradients, None on ranks that did not compute them."""
        self.waiting.append((expert, gradients, kink))
        if len(self.waiting) * sum(self.sizes) >= AT_ONCE:
            self._settle()

    def _settle(self) -> None:
        if not self.waiting:
            return
        shape = (len(self.waiting), sum(self.sizes) + 1)
        table = torch.zeros(shape, dtype=self.dtype, device=self.comm.device)
        for row, (_, gradients, kink) in zip(table, self.waiting, strict=True):
            row[-1] = kink
            if gradients is not None:
                torch.cat([gradients[name].reshape(-1) for name in self.names], out=row[:-1])
        self.comm.world.combine_(table, "sum")
        for (expert, _, _), row in zip(self.waiting, table, strict=True):
            self._compare(expert, row[:-1], float(row[-1]))
        self.waiting = []

    def _compare(self, expert: int, flat: Tensor, kink: float) -> None:
        for name, part in zip(self.names, flat.split(self.sizes), strict=True):
            whole = part.view(weights.shape(self.layer, name))
            self.norms[name].append(float(whole.norm()))
            for matrices, columns in self.own.get(expert, ()):
                if name in matrices:
                    want = weights.cut(name, whole, columns)
                    difference = float((matrices[name].to(want.dtype) - want).norm())
                    if name in ("w1", "b1"):
                        difference = difference - min(kink, difference)
                    self.compared.append((name, difference, float(want.norm())))

    def largest_error(self) -> float:
        """Largest error relative to the matrix, or to the median of its kind where that is
        larger."""
        self._settle()
        typical = {
            name: max(statistics.median(values), LEAST * max(values))
            for name, values in self.norms.items()
        }
        errors = [0.0]
        for name, difference, norm in self.compared:
            scale = max(norm, typical[name])
            bad = not math.isfinite(difference) or (difference > 0 and scale == 0)
            errors.append(math.inf if bad else difference / scale if difference else 0.0)
        return max(errors)


def router_error(found_ED: Tensor, ref: Reference) -> float:
    """Largest relative error of a row of the router's gradient. A gate's gradient is an inner
    product less the mean of the others; it can be far smaller than its terms' rounding, so a row's
    scale is at least that of its terms."""
    assert ref.dw_ED is not None
    norms = ref.dw_ED.norm(dim=1)
    return largest_error(found_ED, ref.dw_ED, norms.clamp(min=ref.terms), norms, LEAST)


def inputs_error(cell: Cell, comm: Comm, x_TD: Tensor, ref: Reference) -> float:
    """Largest relative error of this rank's rows of dx, less what a relu with an input near 0 can
    change."""
    assert ref.dx_BD is not None and ref.kink_B is not None
    rows = slice(*definitions.input_rows(cell, comm.rank))
    if comm.rank and rules_of(cell.strategy.name).single_rank:
        return 0.0
    norms_B = ref.dx_BD.norm(dim=1)
    grad_TD = torch.zeros_like(x_TD) if x_TD.grad is None else x_TD.grad
    return largest_error(grad_TD, ref.dx_BD[rows], norms_B[rows], norms_B, LEAST, ref.kink_B[rows])
