"""The same cell in float32: what rounding would hide in half precision is seen there.

A fault of 1% is a hundred times the rounding of float32 and less than that of bfloat16. So a cell
whose dtype, or dtype on the wire, is coarser is also proven as its twin in float32, built by the
same code with the same kernel. The twin is checked, never timed; a large layer's is smaller.
"""

from __future__ import annotations

import math
from dataclasses import replace

from moe import weights
from moe.build import supports
from moe.spec import Cell, Unsupported

MOST_NUMBERS = 1 << 24  # in all experts of a twin
MOST_TOKENS = 512
SMALLEST = 16  # width that is left of a layer's, at least


def twin_of(cell: Cell) -> Cell | None:
    """None for a cell that is in float32 throughout, and for one that has no such twin (a system
    that computes in one dtype only, a layer that cannot be made small enough)."""
    if cell.layer.dtype == "float32" and cell.strategy.comm_dtype in ("", "float32"):
        return None
    twin = replace(
        cell,
        layer=replace(cell.layer, dtype="float32"),
        strategy=replace(cell.strategy, comm_dtype="", slowdown=0.0),
        workload=replace(
            cell.workload, batch_size=min(cell.workload.batch_size, MOST_TOKENS), cache="warm"
        ),
    )
    while _numbers(twin) > MOST_NUMBERS:
        layer = twin.layer
        sizes = (layer.dim, layer.hidden, layer.dim_out)
        if any(size % 2 or size // 2 < SMALLEST for size in sizes):
            return None
        dim, hidden, out = (size // 2 for size in sizes)
        twin = replace(twin, layer=replace(layer, dim=dim, hidden=hidden, dim_out=out))
    try:
        supports(twin)
    except Unsupported:
        return None
    return twin


def _numbers(cell: Cell) -> int:
    layer = cell.layer
    each = sum(math.prod(weights.shape(layer, name)) for name in weights.names(layer))
    return each * (layer.num_experts + layer.shared_experts)
