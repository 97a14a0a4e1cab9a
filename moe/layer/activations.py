"""The activation between an expert's two products, and its backward pass without autograd.

Shape letters: F = H or (gated) 2H, in the last dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def activate(h_F: Tensor, name: str) -> Tensor:
    """[..., F] -> [..., H]. The gated kind is silu(first half) * second half."""
    if name == "relu":
        return F.relu(h_F)
    if name == "gelu":
        return F.gelu(h_F)
    if name == "silu_gated":
        first, second = h_F.chunk(2, dim=-1)
        gate_H = F.silu(first)
        in_place = h_F.is_cuda and not torch.is_grad_enabled()
        return gate_H.mul_(second) if in_place else gate_H * second
    return h_F


def activate_backward(da_H: Tensor, h_F: Tensor, name: str) -> Tensor:
    """Gradient of the loss by `h_F`, given `da_H`, its gradient by `activate(h_F, name)`.

    May overwrite `da_H`. For relu, `h_F` may be the activated values.
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
