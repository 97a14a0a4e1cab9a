"""This project's own Triton kernels for the experts: the kernels `triton*` of experts.py.

As with Liger's (`liger`, whose rows, tiles and backward pass these are), a forward pass writes no
gathered tokens to memory. Here blocks are ordered for the L2 cache, hidden rows before the
activation are written only where a gradient is asked for, and a token's rows are added by a kernel
of its own. Training needs liger-kernel too. Few slots are sorted by expert in one kernel, for
Liger's kernels too: a step of few tokens is as long as its launches.

Shape letters as in `liger`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe.layer import liger
from moe.layer.liger import Products, SlotRows, Tile, blocks, visible
from moe.parallel import permute
from moe.parallel.bags import Bags
from moe.parallel.permute import RowsElsewhere, Slots
from moe.parallel.row_counts import RowCounts

GROUP = 8  # tiles of rows that share a block of columns in the cache
SUM_COLUMNS, SUM_WARPS = 1024, 4
FEW_SLOTS, SORT_BLOCK, SORT_WARPS = 256, 32, 4  # a program counts SORT_BLOCK * FEW_SLOTS pairs


class Blocks(NamedTuple):
    """Of both products, with as many rows; the first has twice the columns, one half for each half
    of fc1. `backward`: of Liger's kernels."""

    first: Tile
    second: Tile
    backward: Tile


# The fastest of `python -m benchmarks.gpu blocks` on an H200, at Qwen3's layer with many tokens.
BLOCKS = {
    # Most rows and columns whose sums registers can hold: fewest reads from the cache.
    "triton": Blocks(Tile(128, 128, 64, 8, 4), Tile(128, 256, 64, 8, 3), liger.TILES["liger_128"]),
    # Half as many columns: two blocks share a multiprocessor, and one multiplies as one stores.
    "triton_narrow": Blocks(
        Tile(128, 64, 64, 8, 3), Tile(128, 128, 64, 8, 3), liger.TILES["liger_128"]
    ),
    "triton_64": Blocks(Tile(64, 128, 64, 4, 4), Tile(64, 256, 64, 4, 4), liger.TILES["liger"]),
    # Few rows for each expert: reads of weights are the limit.
    "triton_16": Blocks(
        Tile(16, 64, 128, 4, 3), Tile(16, 128, 128, 4, 3), liger.TILES["liger_16"]
    ),
}  # fmt: skip
# In float32 no tensor cores multiply: operands are in registers too.
FLOAT32 = {"columns": 32, "depth": 16, "stages": 2}


@functools.cache
def kernels() -> Any:
    """The module of kernels. Imports triton."""
    from moe.layer import triton_kernels

    return triton_kernels


def _of_dtype(tile: Tile, dtype: torch.dtype) -> Tile:
    return tile._replace(**FLOAT32) if dtype == torch.float32 else tile


@visible
def first_mm(
    x_TD: Tensor, fc1_PFD: Tensor, activated_SH: Tensor, rows: SlotRows, tile: Tile
) -> Tensor:
    """[S, 2H]: hidden rows, gates first; writes silu(gate) * other half to `activated_SH`. Where no
    gradients are asked for, hidden rows are not kept: the result has their shape alone."""
    (count, hidden), inputs = activated_SH.shape, x_TD.shape[1]
    if rows.gradients:
        h_SF = x_TD.new_empty((count, 2 * hidden))
    else:
        h_SF = activated_SH.as_strided((count, 2 * hidden), (0, 0))
    tile = _of_dtype(tile, x_TD.dtype)
    liger.launch(
        kernels().first_product, (len(rows.tiles) * blocks(hidden, tile.columns),),
        (x_TD, fc1_PFD, rows.token_S, *rows.tiles.arguments,
         h_SF if rows.gradients else activated_SH, activated_SH),
        (len(rows.tiles), inputs, hidden), (),
        {"KEEP": rows.gradients, "GROUP": GROUP, **tile.options()},
    )  # fmt: skip
    return h_SF


@visible
def second_mm(activated_SH: Tensor, fc2_POH: Tensor, rows: SlotRows, tile: Tile) -> Tensor:
    """[S, O]."""
    outputs, hidden = fc2_POH.shape[1:]
    y_SO = activated_SH.new_empty((len(activated_SH), outputs))
    tile = _of_dtype(tile, activated_SH.dtype)
    liger.launch(
        kernels().second_product, (len(rows.tiles) * blocks(outputs, tile.columns),),
        (activated_SH, fc2_POH, *rows.tiles.arguments, y_SO),
        (len(rows.tiles), outputs, hidden), (), {"GROUP": GROUP, **tile.options()},
    )  # fmt: skip
    return y_SO


def sums(rows_SO: Tensor, weights_N: Tensor | None, rows: SlotRows) -> Tensor:
    """[T, O]: the weighted sum of each token's rows."""
    assert rows.bags is not None
    row_TK, outputs = rows.bags.row_N, rows_SO.shape[1]
    tokens, topk = row_TK.shape
    sums_TO = rows_SO.new_empty((tokens, outputs))
    liger.launch(
        kernels().sum_of_rows, (tokens, blocks(outputs, SUM_COLUMNS)),
        (rows_SO, row_TK, row_TK if weights_N is None else weights_N.contiguous(),
         rows.tiles.starts_P1, sums_TO),
        (outputs, topk, len(rows.tiles.starts_P1) - 1), (),
        {"WEIGHTED": weights_N is not None, "BLOCK": SUM_COLUMNS, "num_warps": SUM_WARPS},
    )  # fmt: skip
    return sums_TO


def sort_slots(local_TK: Tensor, num_local: int, elsewhere: RowsElsewhere) -> Slots:
    """As `permute.sort_slots`, for kernels that take tokens, on a GPU."""
    (tokens, topk), count = local_TK.shape, local_TK.numel()
    if not 0 < count <= FEW_SLOTS or elsewhere == "cut":
        return permute.sort_slots(local_TK, num_local, elsewhere)
    padded = elsewhere == "padded"
    order_S, token_S = (local_TK.new_empty(count + padded) for _ in range(2))
    row_TK, expert_S = local_TK.new_empty((tokens, topk)), local_TK.new_empty(count)
    starts_P1 = local_TK.new_empty(num_local + 1, dtype=torch.int32)
    liger.launch(
        kernels().sort_few, (blocks(max(count, num_local) + 1, SORT_BLOCK),),
        (local_TK.contiguous(), order_S, token_S, row_TK, expert_S, starts_P1),
        (count, num_local, topk), (),
        {"PADDED": padded, "SLOTS": max(16, 1 << (count - 1).bit_length()), "BLOCK": SORT_BLOCK,
         "num_warps": SORT_WARPS},
    )  # fmt: skip
    bags = Bags(row_TK, token_S, order_S, padding=count if padded else None)
    return Slots(RowCounts(starts_P1=starts_P1), order_S, tokens, topk, bags, expert_S)


def _products(sizes: Blocks) -> Products:
    first = functools.partial(first_mm, tile=sizes.first)
    second = functools.partial(second_mm, tile=sizes.second)
    return Products(sizes.backward, first, second, sums, float_gates=True)


PRODUCTS = {name: _products(sizes) for name, sizes in BLOCKS.items()}
