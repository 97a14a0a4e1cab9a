"""Inputs of the layer: tokens, cotangents and prescribed choices, all defined by global token id.

They do not depend on the strategy or the world size (except where a workload is defined by a
nominal number of ranks).

Shape letters: T tokens, B global batch, D in, O out, E experts, K top-k.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe import weights
from moe.spec import Cell, shard_bounds
from moe.workload import routings


def own_rows(cell: Cell, rank: int) -> tuple[int, int]:
    """Half-open range of global token ids: this rank's shard."""
    return shard_bounds(cell.workload.batch_size, cell.placement.world_size, rank)


def start_rows(cell: Cell, rank: int) -> tuple[int, int]:
    """Half-open range of global token ids that a rank starts with: all tokens, or its shard."""
    if cell.workload.tokens == "replicated":
        return 0, cell.workload.batch_size
    return own_rows(cell, rank)


def _rows(
    cell: Cell, bounds: tuple[int, int], width: int, stream: str, device: torch.device
) -> Tensor:
    flat = torch.empty((bounds[1] - bounds[0]) * width, device=device)
    weights.uniform_(flat, cell.workload.seed, 0, stream, start=bounds[0] * width)
    return flat.mul_(math.sqrt(3)).view(-1, width).to(weights.dtype_of(cell.layer.dtype))


def tokens(cell: Cell, bounds: tuple[int, int], device: torch.device = weights.CPU) -> Tensor:
    """[T, D] of unit variance in the layer's dtype."""
    return _rows(cell, bounds, cell.layer.dim, "tokens", device)


def cotangent(cell: Cell, bounds: tuple[int, int], device: torch.device = weights.CPU) -> Tensor:
    """[T, O]. The loss of mode=train is the sum over all B tokens of <y, cotangent>."""
    return _rows(cell, bounds, cell.layer.dim_out, "cotangent", device)


def inputs(cell: Cell, rank: int, device: torch.device) -> Tensor:
    """[T, D] tokens this rank starts with, on `device`; requires a gradient in mode=train."""
    x_TD = tokens(cell, start_rows(cell, rank), device)
    return x_TD.requires_grad_(cell.workload.mode == "train")


def allowed(cell: Cell, bounds: tuple[int, int], trace_NK: Tensor | None = None) -> Tensor | None:
    """[T, E] bool on the CPU: true for the K experts that the workload prescribes to each token.

    None when the router's logits decide (kind=learned). `trace_NK` holds expert ids for kind=trace;
    token t takes row t mod N. Raises Unsupported for an impossible workload.
    """
    if cell.workload.kind == "learned":
        return None
    return routings.allowed(cell, bounds, trace_NK)
