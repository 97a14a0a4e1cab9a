"""Experts' weights in the layout that oneDNN chooses, for forward passes on a processor.

A matrix is then read once, in order, whatever the number of rows. The operators are those that
torch.compile puts into frozen models; they have no backward pass. They are not a documented
interface: so they are tried once on a small product (`runs`), and nothing depends on them.

Shape letters: P experts, M rows, D in, H hidden, F = H or (gated) 2H, O out.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# How oneDNN names an activation: attribute, scalars, algorithm.
_FUSED: dict[str, tuple[str, list[float], str]] = {
    "relu": ("relu", [], ""),
    "gelu": ("gelu", [], "none"),
    "identity": ("none", [], ""),
}
_PLAIN = _FUSED["identity"]
_ops: Any = torch.ops.mkldnn


@functools.cache
def runs(dtype: torch.dtype) -> bool:
    """Whether this machine and PyTorch build support these products for `dtype`."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    x_MD, w_FD = torch.ones(2, 32, dtype=dtype), torch.ones(32, 32, dtype=dtype)
    try:
        y_MF = product(x_MD, packed(w_FD))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return torch.equal(y_MF, F.linear(x_MD, w_FD))


def packed(w_NK: Tensor) -> Tensor:
    """Reorders a matrix [N, K]; only `product` and `to_dense` can read the result."""
    reordered: Tensor = _ops._reorder_linear_weight(w_NK.detach())
    return reordered


def product(x_MK: Tensor, packed_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x @ w.T + b, [M, N]."""
    y_MN: Tensor = _ops._linear_pointwise(x_MK, packed_NK, bias_N, *_PLAIN)
    return y_MN


class Packed:
    """The matrices of all experts on a rank, from the layout of kernel `loop`."""

    def __init__(self, fc1_PFD: Tensor, fc2_POH: Tensor, activation: str) -> None:
        self.activation = activation
        self.first = [packed(fc1) for fc1 in fc1_PFD]
        self.second = [packed(fc2) for fc2 in fc2_POH]

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        """copy.deepcopy does not support such tensors."""
        other = object.__new__(Packed)
        other.activation = self.activation
        other.first, other.second = ([w.clone() for w in ws] for ws in (self.first, self.second))
        return other

    def plain(self) -> tuple[Tensor, Tensor]:
        """The original weights, bit by bit."""
        first, second = ([w.to_dense() for w in ws] for ws in (self.first, self.second))
        return torch.stack(first), torch.stack(second)

    def expert(self, x_MD: Tensor, e: int, b1: Tensor | None, b2: Tensor | None) -> Tensor:
        """[M, D] -> [M, O], activation and biases included."""
        attribute = _FUSED.get(self.activation, _PLAIN)
        h_MF = _ops._linear_pointwise(x_MD.contiguous(), self.first[e], b1, *attribute)
        # A fused product for each half was slower below 64 rows, and equal above.
        if self.activation == "silu_gated":
            gate_MH, up_MH = h_MF.chunk(2, dim=-1)
            h_MF = F.silu(gate_MH).mul_(up_MH)
        return product(h_MF, self.second[e], b2)
