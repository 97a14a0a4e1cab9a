"""Liger's fused Triton kernels behind this project's routing: the kernels `liger*` of experts.py.

Forward: one kernel gathers tokens, multiplies them by fc1 and applies the gated SiLU; one
multiplies by fc2; one sum per token (`moe.parallel.bags`) adds the gated rows. No kernel writes
gathered tokens to memory. Backward: as in Liger's LigerFusedMoEFunction, but for the gates'
gradients, which are summed in float32.

Liger's function reads the number of tiles from the GPU, so that the host waits. Here the grid has
the most tiles that so many rows can need; those that are not needed lie behind the last row, where
every row is masked. Liger's kernels are private: `liger_support` names the versions.

Shape letters: T tokens here, S rows, P experts here, D in, H hidden units here, O out, N entries of
all bags (slots), M tiles of rows.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe.parallel.bags import Bags
from moe.parallel.permute import Slots
from moe.parallel.row_counts import RowCounts, numbers


class Tile(NamedTuple):
    """Sizes of the blocks of a product, and how Triton compiles it."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def of_type(self, dtype: torch.dtype) -> Tile:
        """The tile for a dtype: float32 needs twice the shared memory."""
        if dtype.itemsize == 2:
            return self
        return self._replace(depth=self.depth // 2, stages=2)

    @property
    def for_gates(self) -> Tile:
        """For the kernel that gives the gates' gradients, whose sums take most registers."""
        return self._replace(columns=min(self.columns, GATE_BLOCK // self.rows))

    def options(self, **changed: int) -> dict[str, int]:
        tile = self._replace(**changed)
        return {
            "BLOCK_M": tile.rows, "BLOCK_N": tile.columns, "BLOCK_K": tile.depth,
            "num_warps": tile.warps, "num_stages": tile.stages,
        }  # fmt: skip


# Sized for a Hopper GPU: on sm_90 each fits its shared memory, and keeps its sums in registers.
TILES = {
    "liger": Tile(64, 128, 64, 8, 3),
    "liger_16": Tile(16, 64, 128, 4, 3),  # few rows for each expert: reads of weights are the limit
    "liger_128": Tile(128, 128, 64, 8, 3),  # many rows for each expert
}
WEIGHT_GRADIENT = Tile(128, 128, 64, 8, 2)
GATE_BLOCK = 64 * 128  # numbers of a block at most
INPUT_GRADIENT_STAGES = 2  # of the kernel that loads two blocks of both operands


@functools.cache
def kernels() -> Any:
    """Liger's kernels, without their autotuners, so that a kernel's name says what was measured, on
    every rank and in every run. Imports triton, whose float32 products are exact from then on in
    this process: by default they round their operands to TF32."""
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    from liger_kernel.ops import fused_moe_kernels
    from triton.runtime.autotuner import Autotuner

    tuned = vars(fused_moe_kernels).items()
    return SimpleNamespace(**{name: k.fn for name, k in tuned if isinstance(k, Autotuner)})


def launch(
    kernel: Any, grid: tuple[int, ...], tensors: Sequence[Tensor], widths: tuple[int, ...],
    strided: Sequence[Tensor], options: Mapping[str, int],
) -> None:  # fmt: skip
    """Runs a Triton kernel: on `tensors`, for matrices of `widths`, with all strides of
    `strided`."""
    strides = [stride for one in strided for stride in one.stride()]
    kernel[grid](*tensors, *widths, *strides, **options)


def blocks(width: int, block: int) -> int:
    return -(-width // block)


@dataclass(frozen=True)
class RowTiles:
    """Which rows of which expert each tile computes: rows from `row_M` on, up to the end of
    `expert_M`'s rows. `starts_P1`: the first row of each expert, and the row after the last."""

    row_M: Tensor
    expert_M: Tensor
    starts_P1: Tensor

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        """In the kernels' order."""
        return self.starts_P1, self.row_M, self.expert_M

    def __len__(self) -> int:
        return len(self.row_M)


def most_tiles(rows: int, experts: int, tile_rows: int) -> int:
    """The most tiles that `rows` rows of `experts` experts can need."""
    busy = min(rows, experts)
    return busy + (rows - busy) // tile_rows


def row_tiles(
    starts_P1: Tensor, rows: int, tile_rows: int, overlap: bool, expert_S: Tensor | None = None
) -> RowTiles:
    """Tiles of `tile_rows` rows over the rows of all experts, which start at `starts_P1` (int32)
    and are the first of `rows` rows.

    With `overlap`, a row may be computed by several tiles, always alike: then few rows need little
    arithmetic on the device, as a tile begins at each. They need none where `expert_S`, the expert
    of each row, is given.
    """
    device, ends_P = starts_P1.device, starts_P1[1:]
    experts = len(ends_P)
    if overlap and rows <= experts:
        if expert_S is not None:
            return RowTiles(numbers(len(expert_S), device), expert_S, starts_P1)
        row_M = numbers(rows, device)
        return RowTiles(row_M, _bucket(ends_P, row_M), starts_P1)
    starts_P = starts_P1[:-1]
    tiles_P = torch.div(ends_P - starts_P + (tile_rows - 1), tile_rows, rounding_mode="floor")
    tile_ends_P = tiles_P.cumsum(0, dtype=torch.int32)
    number_M = numbers(most_tiles(rows, experts, tile_rows), device)
    expert_M = _bucket(tile_ends_P, number_M)
    base_P = torch.sub(starts_P, tile_ends_P - tiles_P, alpha=tile_rows)
    row_M = base_P[expert_M] + numbers(len(number_M), device, tile_rows)
    return RowTiles(row_M, expert_M, starts_P1)


def _bucket(ends_P: Tensor, number_M: Tensor) -> Tensor:
    """The expert to whose part each number belongs; the last one behind its end."""
    return torch.searchsorted(ends_P[:-1], number_M, right=True)


@dataclass(frozen=True)
class SlotRows:
    """The rows of a step. Row i is of token `token_S[i]`, and its gate is entry `entry_S[i]` of the
    gates; `bags` sums the rows of each token. Without bags every row is a token of its own.
    `gradients`: whether a backward pass may follow."""

    tiles: RowTiles
    tile: Tile
    gradients: bool
    token_S: Tensor
    entry_S: Tensor
    bags: Bags | None = None


@dataclass(frozen=True)
class Products:
    """The two products of a forward pass, as `first_mm` and `second_mm` below, and the sum of each
    token's rows, for weights or none. The backward pass is Liger's, on blocks of `tile`, whose
    rows are those of the forward pass's blocks. `float_gates`: whether `sums` takes weights in
    float32 too."""

    tile: Tile
    first: Callable[[Tensor, Tensor, Tensor, SlotRows], Tensor]
    second: Callable[[Tensor, Tensor, SlotRows], Tensor]
    sums: Callable[[Tensor, Tensor | None, SlotRows], Tensor]
    float_gates: bool = False


def of_tokens(
    x_TD: Tensor, fc1_PFD: Tensor, fc2_POH: Tensor, gates_TK: Tensor, slots: Slots, by: Products
) -> Tensor:
    """[T, O]: sum of gate * expert's output over the slots of each token."""
    assert slots.bags is not None
    tile, bags = by.tile.of_type(x_TD.dtype), slots.bags
    rows = slot_rows(slots.counts, bags.source_S, slots.order_S, tile, bags, slots.expert_S)
    if not by.float_gates or rows.gradients:
        gates_TK = gates_TK.to(x_TD.dtype)
    return _Experts.apply(x_TD, fc1_PFD, fc2_POH, gates_TK, rows, by)  # type: ignore[no-any-return]


def of_rows(
    x_SD: Tensor, fc1_PFD: Tensor, fc2_POH: Tensor, counts: RowCounts, by: Products
) -> Tensor:
    """[S, O]: the experts' outputs for rows that lie in expert order. Rows behind the last expert's
    are undefined."""
    row_S = numbers(len(x_SD), x_SD.device)
    rows = slot_rows(counts, row_S, row_S, by.tile.of_type(x_SD.dtype))
    return _Experts.apply(x_SD, fc1_PFD, fc2_POH, None, rows, by)  # type: ignore[no-any-return]


def slot_rows(
    counts: RowCounts, token_S: Tensor, entry_S: Tensor, tile: Tile, bags: Bags | None = None,
    expert_S: Tensor | None = None,
) -> SlotRows:  # fmt: skip
    gradients = torch.is_grad_enabled()  # the backward pass adds up what a row gives its gate
    starts_P1 = counts.starts(token_S.device)
    tiles = row_tiles(starts_P1, len(token_S), tile.rows, not gradients, expert_S)
    return SlotRows(tiles, tile, gradients, token_S, entry_S, bags)


def visible(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Shows calls of `product` to torch function modes, by which the correctness check counts
    multiplications as it does those of torch's own products."""

    @functools.wraps(product)
    def call(x: Tensor, *rest: Any, **named: Any) -> Tensor:
        if torch.overrides.has_torch_function((x,)):
            shown: Tensor = torch.overrides.handle_torch_function(call, (x,), x, *rest, **named)
            return shown
        return product(x, *rest, **named)

    return call


@visible
def first_mm(x_TD: Tensor, fc1_PFD: Tensor, activated_SH: Tensor, rows: SlotRows) -> Tensor:
    """[S, 2H]: hidden rows, gates first; writes silu(gate) * other half to `activated_SH`."""
    hidden, tile = activated_SH.shape[1], rows.tile
    h_SF = x_TD.new_empty((len(activated_SH), 2 * hidden))
    launch(
        kernels()._fused_up_proj_swiglu_kernel, (len(rows.tiles), blocks(hidden, tile.columns)),
        (x_TD, fc1_PFD, rows.token_S, *rows.tiles.arguments, h_SF, activated_SH),
        (x_TD.shape[1], hidden), (x_TD, fc1_PFD, h_SF, activated_SH), tile.options(),
    )  # fmt: skip
    return h_SF


@visible
def second_mm(activated_SH: Tensor, fc2_POH: Tensor, rows: SlotRows) -> Tensor:
    """[S, O]."""
    outputs, hidden = fc2_POH.shape[1:]
    y_SO = activated_SH.new_empty((len(activated_SH), outputs))
    launch(
        kernels()._fused_down_proj_kernel, (len(rows.tiles), blocks(outputs, rows.tile.columns)),
        (activated_SH, fc2_POH, *rows.tiles.arguments, y_SO),
        (outputs, hidden), (activated_SH, fc2_POH, y_SO), rows.tile.options(),
    )  # fmt: skip
    return y_SO


def _bag_sums(rows_SO: Tensor, weights_N: Tensor | None, rows: SlotRows) -> Tensor:
    assert rows.bags is not None
    return rows.bags.sums(rows_SO, weights_N)


PRODUCTS = {name: Products(tile, first_mm, second_mm, _bag_sums) for name, tile in TILES.items()}


def gate_gradients(
    dy_TO: Tensor, fc2_POH: Tensor, h_SF: Tensor, gates_N: Tensor, rows: SlotRows
) -> tuple[Tensor, Tensor, Tensor]:
    """Back through the second product and the activation: gradients of the hidden rows [S, 2H], the
    activated rows times their gates [S, H], and the gates' gradients [N] in float32."""
    outputs, hidden = fc2_POH.shape[1:]
    tile = rows.tile.for_gates
    dh_SF, gated_SH = torch.empty_like(h_SF), h_SF.new_empty((len(h_SF), hidden))
    dgates_N = gates_N.new_zeros(gates_N.shape, dtype=torch.float32)  # every block adds to it
    launch(
        kernels()._moe_bwd_down_proj_kernel, (len(rows.tiles), blocks(hidden, tile.columns)),
        (dy_TO, rows.token_S, rows.entry_S, gates_N, fc2_POH, h_SF, *rows.tiles.arguments,
         dh_SF, gated_SH, dgates_N),
        (outputs, hidden), (dy_TO, fc2_POH, h_SF, dh_SF, gated_SH), tile.options(),
    )  # fmt: skip
    return dh_SF, gated_SH, dgates_N


def row_gradients(dh_SF: Tensor, fc1_PFD: Tensor, rows: SlotRows) -> Tensor:
    """[S, D]: gradients of the gathered tokens."""
    hidden, inputs = dh_SF.shape[1] // 2, fc1_PFD.shape[2]
    dx_SD = dh_SF.new_empty((len(dh_SF), inputs))
    launch(
        kernels()._moe_bwd_dX_expanded_kernel,
        (len(rows.tiles), blocks(inputs, rows.tile.columns)),
        (dh_SF, fc1_PFD, *rows.tiles.arguments, dx_SD),
        (inputs, hidden), (dh_SF, fc1_PFD, dx_SD), rows.tile.options(stages=INPUT_GRADIENT_STAGES),
    )  # fmt: skip
    return dx_SD


def first_gradient(x_TD: Tensor, dh_SF: Tensor, fc1_PFD: Tensor, rows: SlotRows) -> Tensor:
    """[P, 2H, D]: the gradient of fc1; zeros for experts without rows."""
    inputs, hidden, tile = x_TD.shape[1], dh_SF.shape[1] // 2, WEIGHT_GRADIENT.of_type(x_TD.dtype)
    dfc1_PFD = torch.zeros_like(fc1_PFD)
    launch(
        kernels()._moe_bwd_dW1_kernel,
        (len(fc1_PFD) * blocks(inputs, tile.rows), blocks(2 * hidden, tile.columns)),
        (x_TD, dh_SF, rows.token_S, rows.tiles.starts_P1, dfc1_PFD),
        (inputs, hidden), (x_TD, dh_SF, dfc1_PFD), tile.options(),
    )  # fmt: skip
    return dfc1_PFD


def second_gradient(gated_SH: Tensor, dy_TO: Tensor, fc2_POH: Tensor, rows: SlotRows) -> Tensor:
    """[P, O, H]: the gradient of fc2; zeros for experts without rows."""
    (outputs, hidden), tile = fc2_POH.shape[1:], WEIGHT_GRADIENT.of_type(dy_TO.dtype)
    dfc2_POH = torch.zeros_like(fc2_POH)
    launch(
        kernels()._moe_bwd_dW2_kernel,
        (len(fc2_POH) * blocks(hidden, tile.rows), blocks(outputs, tile.columns)),
        (gated_SH, dy_TO, rows.token_S, rows.tiles.starts_P1, dfc2_POH),
        (outputs, hidden), (gated_SH, dy_TO, dfc2_POH), tile.options(),
    )  # fmt: skip
    return dfc2_POH


class _Experts(torch.autograd.Function):
    """[T, O] from tokens [T, D], fc1 [P, 2H, D], fc2 [P, O, H] and gates [T, K], which are None
    where every row is a token of its own."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, fc1: Tensor, fc2: Tensor, gates_TK: Tensor | None, rows: SlotRows,
        by: Products,
    ) -> Tensor:  # fmt: skip
        x_TD, count = x_TD.contiguous(), len(rows.token_S)
        activated_SH = x_TD.new_empty((count, fc2.shape[2]))
        h_SF = by.first(x_TD, fc1, activated_SH, rows)
        y_SO = by.second(activated_SH, fc2, rows)
        ctx.rows, ctx.sums = rows, by.sums
        ctx.save_for_backward(x_TD, fc1, fc2, h_SF, *(() if gates_TK is None else (gates_TK,)))
        return y_SO if rows.bags is None else by.sums(y_SO, gates_TK, rows)

    @staticmethod
    def backward(ctx: Any, dy_TO: Tensor) -> tuple[Tensor | None, ...]:
        rows: SlotRows = ctx.rows
        x_TD, fc1, fc2, h_SF, *gates = ctx.saved_tensors
        gates_N = gates[0].reshape(-1) if gates else x_TD.new_ones(len(h_SF))
        dy_TO = dy_TO.contiguous()
        dh_SF, gated_SH, dgates_N = gate_gradients(dy_TO, fc2, h_SF, gates_N, rows)
        dfc2 = second_gradient(gated_SH, dy_TO, fc2, rows)
        del gated_SH
        dfc1 = first_gradient(x_TD, dh_SF, fc1, rows)
        dx = row_gradients(dh_SF, fc1, rows)
        if rows.bags is None:
            return dx, dfc1, dfc2, None, None, None
        dgates_TK = dgates_N.to(x_TD.dtype).view_as(gates[0])
        return ctx.sums(dx, None, rows), dfc1, dfc2, dgates_TK, None, None
