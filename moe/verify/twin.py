"""A cell's twin in float32, which shows faults that half-precision rounding hides.

A fault of 1% is a hundred times float32 rounding but less than bfloat16 rounding. So a cell with a
coarser dtype, of the layer or of messages, is also checked as its twin in float32, built by the
same code with the same kernel. The twin is never timed; that of a large layer is smaller.
"""

from __future__ import annotations

import math
from dataclasses import replace

from moe import weights
from moe.build import supports
from moe.spec import Cell, Unsupported

MOST_NUMBERS = 1 << 24  # weights in all experts of a twin
MOST_TOKENS = 512
SMALLEST = 16  # smallest width after shrinking


def twin_of(cell: Cell) -> Cell | None:
    """The twin, or None for a cell in float32 throughout or without a possible twin (one-dtype
    system, layer that cannot be shrunk enough). It is in no CUDA graph: not every kernel can be
    captured in float32."""
    if cell.layer.dtype == "float32" and cell.strategy.comm_dtype in ("", "float32"):
        return None
    twin = replace(
        cell,
        layer=replace(cell.layer, dtype="float32"),
        strategy=replace(cell.strategy, comm_dtype="", slowdown=0.0, graph="off"),
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
