"""Experts one after the other with a backward pass that writes every weight's gradient once.

Autograd by itself makes a gradient of all experts' weights for each expert, mostly zeros, and adds
them up. Shape letters: S rows in expert order, M rows of one expert, P experts, D in, H hidden,
F = H or (gated) 2H, O out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe import packed

Activate = Callable[[Tensor], Tensor]

_LARGE = 1 << 20  # elements of a matrix from which oneDNN's products are the fastest in float32 ...
_MANY = 128  # ... or rows, whatever the matrix
_SOME = 4  # rows from which they are for a product with the matrix as it is stored


class ExpertRows(torch.autograd.Function):
    """apply(x_SD, fc1_PFD, b1_PF, fc2_POH, b2_PO, counts, activate) -> y_SO; biases may be None."""

    @staticmethod
    def forward(
        ctx: Any, x_SD: Tensor, fc1: Tensor, b1: Tensor | None, fc2: Tensor, b2: Tensor | None,
        counts: Sequence[int], activate: Activate,
    ) -> Tensor:  # fmt: skip
        h_SF = _linear(x_SD, fc1, b1, counts)
        ctx.hidden = None
        if activate is F.relu:  # whose backward pass needs its result only
            a_SH = h_SF.relu_()
        else:
            with torch.enable_grad():
                h_SF.requires_grad_()
                ctx.hidden = h_SF, activate(h_SF)
            a_SH = ctx.hidden[1].detach()
        ctx.counts, ctx.biased = counts, (b1 is not None, b2 is not None)
        ctx.save_for_backward(x_SD, fc1, fc2, a_SH)
        return _linear(a_SH, fc2, b2, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_SO: Tensor) -> tuple[Tensor | None, ...]:
        x_SD, fc1, fc2, a_SH = ctx.saved_tensors
        counts, (biased1, biased2) = ctx.counts, ctx.biased
        dy_SO = dy_SO.contiguous()
        da_SH = _each(dy_SO, counts, fc2.shape[2], lambda e, dy: _back(dy, fc2[e]))
        dfc2, db2 = _of_weights(dy_SO, a_SH, fc2, counts, biased2)
        if ctx.hidden is None:
            dh_SF = torch.ops.aten.threshold_backward(da_SH, a_SH, 0)
        else:
            (dh_SF,) = torch.autograd.grad(ctx.hidden[1], ctx.hidden[0], da_SH)
            ctx.hidden = None
        dx_SD = None
        if ctx.needs_input_grad[0]:
            dx_SD = _each(dh_SF, counts, fc1.shape[2], lambda e, dh: _back(dh, fc1[e]))
        dfc1, db1 = _of_weights(dh_SF, x_SD, fc1, counts, biased1)
        return dx_SD, dfc1, db1, dfc2, db2, None, None


def _each(
    rows: Tensor, counts: Sequence[int], width: int, product: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """product(e, the rows of expert e), one below the other."""
    parts = [product(e, part) for e, part in enumerate(rows.split(list(counts))) if part.shape[0]]
    return torch.cat(parts) if parts else rows.new_empty((0, width))


def _linear(x_SK: Tensor, w_PNK: Tensor, b_PN: Tensor | None, counts: Sequence[int]) -> Tensor:
    """x @ W.T + b, expert by expert."""
    return _each(
        x_SK,
        counts,
        w_PNK.shape[1],
        lambda e, x: _product(x, w_PNK[e], None if b_PN is None else b_PN[e]),
    )


def _product(x_MK: Tensor, w_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    if x_MK.is_cuda or x_MK.dtype != torch.float32:
        return F.linear(x_MK, w_NK, bias_N)
    if (w_NK.numel() >= _LARGE or x_MK.shape[0] >= _MANY) and packed.runs(x_MK.dtype):
        return packed.product(x_MK.contiguous(), w_NK, bias_N)
    y_MN = (w_NK @ x_MK.T).T
    return y_MN if bias_N is None else y_MN + bias_N


def _back(dy_MN: Tensor, w_NK: Tensor) -> Tensor:
    large = w_NK.numel() >= _LARGE and dy_MN.shape[0] >= _SOME
    if large and not dy_MN.is_cuda and dy_MN.dtype == torch.float32 and packed.runs(dy_MN.dtype):
        return packed.product(dy_MN, w_NK.T)
    return dy_MN @ w_NK


def _of_weights(
    dy_SN: Tensor, x_SK: Tensor, weight_PNK: Tensor, counts: Sequence[int], biased: bool
) -> tuple[Tensor, Tensor | None]:
    """dW = dy.T @ x and db = sum of dy, of every expert; zeros for those without rows."""
    dweight = torch.empty_like(weight_PNK)
    dbias = dy_SN.new_zeros(weight_PNK.shape[:2]) if biased else None
    split = list(counts)
    for e, (dy, x) in enumerate(zip(dy_SN.split(split), x_SK.split(split), strict=True)):
        if not dy.shape[0]:
            dweight[e].zero_()
            continue
        torch.mm(dy.T, x, out=dweight[e])
        if dbias is not None:
            torch.sum(dy, 0, out=dbias[e])
    return dweight, dbias
