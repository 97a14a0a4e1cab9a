"""What experts do between their two products, and its backward pass without autograd.

Shape letters: F = H or (gated) 2H, in the last dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def activate(h_F: Tensor, name: str) -> Tensor:
    """[..., F] -> [..., H]; the gated kind halves it: silu(first half) * second half."""
    if name == "relu":
        return F.relu(h_F)
    if name == "gelu":
        return F.gelu(h_F)
    if name == "silu_gated":
        first, second = h_F.chunk(2, dim=-1)
        return F.silu(first) * second
    return h_F


def activate_backward(da_H: Tensor, h_F: Tensor, name: str) -> Tensor:
    """The gradient by `h_F` of `activate(h_F, name)`, whose own is `da_H`, which may be written to.

    For relu the activated values will do as `h_F`.
    """
    aten = torch.ops.aten
    if name == "relu":
        return aten.threshold_backward(da_H, h_F, 0)
    if name == "gelu":
        return aten.gelu_backward(da_H, h_F)
    if name == "silu_gated":
        first, second = h_F.chunk(2, dim=-1)
        dh_F = torch.empty_like(h_F)
        dfirst, dsecond = dh_F.chunk(2, dim=-1)
        torch.mul(da_H, F.silu(first), out=dsecond)
        aten.silu_backward.grad_input(da_H.mul_(second), first, grad_input=dfirst)
        return dh_F
    return da_H
