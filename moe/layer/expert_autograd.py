"""The kernel `loop` in training: experts in turn, each weight gradient written once.

Plain autograd makes, for each expert, a gradient of all experts' weights, mostly zeros, and sums
them. Here an expert's rows go through both products while they are in the cache, and gradients
reuse the last step's memory: writing to memory that is new to a process costs ten times as much.

Shape letters: S rows in expert order, M rows of one expert, P experts, D in, H hidden, F = H or
(gated) 2H, O out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe.layer import onednn
from moe.layer.activations import activate, activate_backward

# Rows from which oneDNN's float32 product is fastest: x @ W.T below and above _LARGE elements of W,
# and dy @ W.
_MANY, _SOME, _LARGE = 12, 4, 1 << 20
_MANY_BACK = 2


class GradientBuffers:
    """Memory for gradients; reused once no tensor refers to its last contents."""

    def __init__(self) -> None:
        self._kept: dict[str, torch.UntypedStorage] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> GradientBuffers:
        return GradientBuffers()

    def like(self, name: str, weight: Tensor) -> Tensor:
        """An uninitialised tensor of the weight's shape, dtype and device. On a GPU torch keeps
        freed memory by itself."""
        if weight.is_cuda:
            return torch.empty_like(weight)
        kept = self._kept.get(name)
        if kept is None or kept.nbytes() != weight.nbytes or _held_elsewhere(kept):
            buffer = torch.empty_like(weight)
            self._kept[name] = buffer.untyped_storage()
            return buffer
        buffer = torch.empty(0, dtype=weight.dtype, device=weight.device)
        return buffer.set_(kept, 0, weight.shape, weight.stride())


def _held_elsewhere(storage: torch.UntypedStorage) -> bool:
    """Whether others refer to it too; a private call, which torch's own CUDA graphs rely on."""
    return bool(torch._C._storage_Use_Count(storage._cdata) > 1)


class PerExpertFunction(torch.autograd.Function):
    """apply(x_SD, fc1_PFD, b1_PF, fc2_POH, b2_PO, counts, activation, room) -> y_SO.

    Biases may be None; `activation` is as in `moe.layer.activations`.
    """

    @staticmethod
    def forward(
        ctx: Any, x_SD: Tensor, fc1: Tensor, b1: Tensor | None, fc2: Tensor, b2: Tensor | None,
        counts: Sequence[int], activation: str, room: GradientBuffers,
    ) -> Tensor:  # fmt: skip
        sizes = list(counts)
        y_SO = x_SD.new_empty((x_SD.shape[0], fc2.shape[1]))
        hidden: list[Tensor] = []
        for count, x_MD, y_MO, w1, w2, c1, c2 in zip(
            sizes, x_SD.split(sizes), y_SO.split(sizes), fc1.unbind(), fc2.unbind(),
            _each(b1, sizes), _each(b2, sizes), strict=True,
        ):  # fmt: skip
            if count:
                h_MF = _product(x_MD, w1, c1)
                a_MH = activate(h_MF, activation)
                y_MO.copy_(_product(a_MH, w2, c2))
                hidden += (a_MH if activation == "relu" else h_MF, a_MH)
        ctx.counts, ctx.activation, ctx.room = sizes, activation, room
        ctx.biased = b1 is not None, b2 is not None
        ctx.save_for_backward(x_SD, fc1, fc2, *hidden)
        return y_SO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_SO: Tensor) -> tuple[Tensor | None, ...]:
        x_SD, fc1, fc2, *hidden = ctx.saved_tensors
        sizes = ctx.counts
        dfc1, dfc2 = ctx.room.like("fc1", fc1), ctx.room.like("fc2", fc2)
        db1, db2 = (
            w.new_zeros(w.shape[:2]) if biased else None
            for w, biased in zip((fc1, fc2), ctx.biased, strict=True)
        )
        dx_SD = torch.empty_like(x_SD)
        left = iter(hidden)
        for count, dy_MO, x_MD, dx_MD, w1, w2, dw1, dw2, dc1, dc2 in zip(
            sizes, dy_SO.contiguous().split(sizes), x_SD.split(sizes), dx_SD.split(sizes),
            fc1.unbind(), fc2.unbind(), dfc1.unbind(), dfc2.unbind(),
            _each(db1, sizes), _each(db2, sizes), strict=True,
        ):  # fmt: skip
            if not count:
                dw1.zero_()
                dw2.zero_()
                continue
            h_MF, a_MH = next(left), next(left)
            _of_weight(dy_MO, a_MH, dw2, dc2)
            dh_MF = activate_backward(_back(dy_MO, w2), h_MF, ctx.activation)
            _of_weight(dh_MF, x_MD, dw1, dc1)
            if ctx.needs_input_grad[0]:
                dx_MD.copy_(_back(dh_MF, w1))
        dx = dx_SD if ctx.needs_input_grad[0] else None
        return dx, dfc1, db1, dfc2, db2, None, None, None


def _each(bias_PN: Tensor | None, sizes: list[int]) -> Sequence[Tensor | None]:
    return [None] * len(sizes) if bias_PN is None else bias_PN.unbind()


def _product(x_MK: Tensor, w_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """x @ W.T + b."""
    if x_MK.is_cuda or x_MK.dtype != torch.float32:
        return F.linear(x_MK, w_NK, bias_N)
    if x_MK.shape[0] >= (_MANY if w_NK.numel() < _LARGE else _SOME) and onednn.runs(x_MK.dtype):
        return onednn.product(x_MK.contiguous(), w_NK, bias_N)
    y_MN = (w_NK @ x_MK.T).T
    return y_MN if bias_N is None else y_MN + bias_N


def _back(dy_MN: Tensor, w_NK: Tensor) -> Tensor:
    """dy @ W."""
    slow = dy_MN.dtype == torch.float32 and dy_MN.shape[0] >= _MANY_BACK and not dy_MN.is_cuda
    if slow and onednn.runs(dy_MN.dtype):
        return onednn.product(dy_MN, w_NK.T)
    return dy_MN @ w_NK


def _of_weight(dy_MN: Tensor, x_MK: Tensor, dw_NK: Tensor, db_N: Tensor | None) -> None:
    """Writes dW = dy.T @ x, and db = the sum of dy."""
    if dy_MN.shape[0] == 1:
        torch.mul(dy_MN.T, x_MK, out=dw_NK)
    else:
        torch.mm(dy_MN.T, x_MK, out=dw_NK)
    if db_N is not None:
        torch.sum(dy_MN, 0, out=db_N)
