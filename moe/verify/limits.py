"""Limits on the difference from the oracle that rounding explains: an error model and safety
factors.

Rounding a tensor to a dtype of p significant bits adds a relative error of about RMS * 2**-p to
each element, independent of the others (rounding changes a number by at most 2**-p of itself; over
mantissas evenly spread in their logarithm, the root mean square is 0.42 of that; Higham, Accuracy
and Stability of Numerical Algorithms, section 2.2). A sum of n products in float32 adds about
sqrt(n) roundings of float32 (the same book, section 2.8). Independent errors add up as squares.

Shape letters: T tokens, D in, H hidden, O out, E experts, K slots of a token, R ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from moe.cost.load import dispatches
from moe.peers.registry import equivalent
from moe.spec import Cell
from moe.strategies import degrees

UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
CEILING = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}  # upper bound of every limit
RMS = 0.42
# Roundings of hidden units by activation: of the first product and of what follows from it.
ACTIVATION = {"relu": 1, "identity": 1, "gelu": 2, "silu_gated": 4}
AFTER_EXPERTS = 4  # second product, gate, product of both, sum over slots
BACKWARD = 3  # roundings behind a gradient, over those of a forward pass
# SAFE_RMS: the errors of right layers were at most 1.3 times the model from 64 numbers on.
SAFE_RMS, SAFE_ROW, SAFE_GRADIENT, SAFE_LOGIT = 1.6, 7.0, 9.0, 8.0
# More roundings of both products on a GPU, where torch may sum parts in half precision
# (torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction and its like, on by default).
PARTS_ON_GPU = 4
PRODUCTS_AT_A_TIME = 16
LARGEST_LOGIT = 8.0  # of millions: six standard deviations, to the next power of two
FEW = 16.0  # with so few numbers their root mean square is uncertain


@dataclass(frozen=True)
class Limits:
    """Largest relative errors taken for rounding: of a token's output, of all outputs (root mean
    square), of a gradient's row or matrix."""

    row: float
    rms: float
    gradient: float


def limits(cell: Cell) -> Limits:
    """Limits for the coarser of the layer's dtype and the dtype of messages; formula in the module
    docstring."""
    typical = _typical(cell)
    ceiling = max(CEILING[cell.layer.dtype], CEILING[_wire(cell)])
    numbers = cell.workload.batch_size * cell.layer.dim_out
    uncertain = 1.0 + math.sqrt(FEW / numbers)
    return Limits(
        row=min(ceiling, SAFE_ROW * typical),
        rms=min(ceiling, SAFE_RMS * uncertain * typical),
        gradient=min(ceiling, SAFE_GRADIENT * math.sqrt(BACKWARD) * typical),
    )


def _wire(cell: Cell) -> str:
    return cell.strategy.comm_dtype or cell.layer.dtype


def _typical(cell: Cell) -> float:
    """Expected relative root mean square error of an output."""
    cell = equivalent(cell)
    layer, degree = cell.layer, degrees(cell)
    roundings = ACTIVATION[layer.activation] + AFTER_EXPERTS + (layer.shared_experts > 0)
    roundings += PARTS_ON_GPU if cell.placement.device == "cuda" else 0
    squares = roundings * UNIT[layer.dtype] ** 2
    squares += (layer.dim + layer.hidden + layer.topk) * UNIT["float32"] ** 2
    adding = degree.tp if dispatches(cell) else degree.tp * degree.ep  # ranks whose parts are added
    sent = (2 if dispatches(cell) else 0) + adding - 1 + (cell.placement.world_size > 1)
    squares += sent * UNIT[_wire(cell)] ** 2
    return RMS * math.sqrt(squares)


def logit_limit(dim: int, tensor_cores: bool = False) -> float:
    """Limit for a float32 logit, relative to the product of the norms of token and router row over
    sqrt(D), which is about 1. A logit is a sum of D products.

    Tensor cores add 16 products at a time and cut the sum off after 24 bits instead of rounding it
    (Fasi and others, Numerical behavior of NVIDIA tensor cores, PeerJ CS 7:e330), so these errors
    all point to zero and add up: each of D / 16 is at most 2**-23 of the next power of two, which
    for a logit is at most LARGEST_LOGIT.
    """
    rounded = SAFE_LOGIT * RMS * UNIT["float32"] * math.sqrt(dim + 16)
    cut_off = dim / PRODUCTS_AT_A_TIME * 2 * UNIT["float32"] * LARGEST_LOGIT
    return rounded + (cut_off if tensor_cores else 0.0)
