"""The experts' matrices as kernels hold them; on a GPU, layers with the same weights share them.

Weights do not change: gradients belong to the layers' own parameters, and no step updates. What is
small enough to stay in a GPU's cache is not shared, because it would be warm for the next cell.

Shape letters: P experts, D in, H hidden, F = H or (gated) 2H, O out.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe import weights
from moe.spec import LayerSpec

SHARED_BYTES = 256 << 20  # more than the caches of today's GPUs


@dataclass(eq=False)
class FusedWeights:
    """fc1 [P, F, D], fc2 [P, O, H], b1 [P, F], b2 [P, O]."""

    fc1: Tensor
    fc2: Tensor
    b1: Tensor | None
    b2: Tensor | None

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedWeights:
        return self


_kept: weakref.WeakValueDictionary[Any, FusedWeights] = weakref.WeakValueDictionary()


def matrices(
    layer: LayerSpec, ids: Sequence[int], columns: tuple[int, int], device: torch.device
) -> FusedWeights:
    """The matrices of the experts `ids`, cut to the hidden units `columns`. On a GPU the same
    tensors for all who hold them at the time."""
    key = (
        layer.dim, layer.hidden, layer.dim_out, layer.activation, layer.bias, layer.dtype,
        layer.weight_seed, tuple(ids), columns, device,
    )  # fmt: skip
    if device.type == "cuda" and (kept := _kept.get(key)) is not None:
        return kept
    each = {n: weights.stacked(layer, ids, n, columns, device) for n in weights.names(layer)}
    fc1, b1 = each.pop("w1"), each.pop("b1", None)
    if "w3" in each:
        fc1 = torch.cat([fc1, each.pop("w3")], dim=1)
        b1 = None if b1 is None else torch.cat([b1, each.pop("b3")], dim=1)
    fused = FusedWeights(fc1, each["w2"], b1, each.get("b2"))
    if device.type == "cuda" and fc1.nbytes + fused.fc2.nbytes > SHARED_BYTES:
        _kept[key] = fused
    return fused
