"""Gathering tokens into rows on a GPU, and summing rows per token again, without atomic additions.

A token's rows are its bag. torch.index_add and the gradient of torch.index_select add rows in no
fixed order, and in half precision round after each. Here each is one embedding_bag, which adds in
the bag's order, in float32.

Shape letters: A tokens, S rows, O their width, N entries of all bags.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moe.parallel.row_counts import numbers


@dataclass(frozen=True)
class Bags:
    """Which rows belong to which token.

    `row_N` are rows: [A, K], or flat with the start of each bag in `starts_A`. The others say the
    same by row: `source_S` is its token, `entry_S` its entry in `row_N`. Entries that equal
    `padding`, or are false in `mask_N`, add nothing.
    """

    row_N: Tensor
    source_S: Tensor
    entry_S: Tensor
    starts_A: Tensor | None = None
    padding: int | None = None
    mask_N: Tensor | None = None

    def sums(self, rows_SO: Tensor, weights_N: Tensor | None = None) -> Tensor:
        """[A, O]: the weighted sum of each bag's rows. With fewer rows than entries, the weights
        of what is missing must be 0."""
        starts_A = self.starts_A
        if starts_A is None:
            starts_A = numbers(len(self.row_N), rows_SO.device, self.row_N.shape[1])
        if not rows_SO.shape[0] or not self.row_N.numel():
            return rows_SO.new_zeros((len(starts_A), rows_SO.shape[1]))
        row_N = self.row_N.reshape(-1)
        if self.padding is None and len(rows_SO) < row_N.numel():
            row_N = row_N.clamp(max=len(rows_SO) - 1)
        if self.mask_N is not None:
            ones = self.mask_N.to(rows_SO.dtype)
            weights_N = ones if weights_N is None else weights_N * ones
        return F.embedding_bag(
            row_N, rows_SO, starts_A, mode="sum", padding_idx=self.padding,
            per_sample_weights=None if weights_N is None else weights_N.reshape(-1),
        )  # fmt: skip


def inverse(order_S: Tensor) -> Tensor:
    """The inverse of a permutation, on a GPU."""
    inverse_S = torch.empty_like(order_S)
    inverse_S[order_S] = numbers(len(order_S), order_S.device)
    return inverse_S


def bags_of_mask(mask_AB: Tensor, count: int) -> tuple[Tensor, Tensor, Bags]:
    """The `count` true entries of a mask, column by column: (row_S, column_S, bags by row)."""
    columns = mask_AB.shape[1]
    column_S, row_S = torch.nonzero_static(mask_AB.T.contiguous(), size=count).unbind(1)
    flat_S = row_S * columns + column_S
    by_row_AB = (mask_AB.reshape(-1).cumsum(0) - 1).view_as(mask_AB)
    entry_S = by_row_AB.reshape(-1).index_select(0, flat_S)
    sizes_A = mask_AB.sum(1)
    bags = Bags(inverse(entry_S), row_S, entry_S, starts_A=sizes_A.cumsum(0) - sizes_A)
    return row_S, column_S, bags


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_AD: Tensor, bags: Bags) -> Tensor:
        ctx.bags = bags
        return x_AD.index_select(0, bags.source_S)

    @staticmethod
    def backward(ctx: Any, grad_SD: Tensor) -> tuple[Tensor, None]:
        return ctx.bags.sums(grad_SD.contiguous()), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_SO: Tensor, weights_N: Tensor | None, bags: Bags) -> Tensor:
        ctx.bags = bags
        ctx.save_for_backward(rows_SO, *(() if weights_N is None else (weights_N,)))
        return bags.sums(rows_SO, weights_N)

    @staticmethod
    def backward(ctx: Any, grad_AO: Tensor) -> tuple[Tensor, Tensor | None, None]:
        bags: Bags = ctx.bags
        rows_SO, *weights = ctx.saved_tensors
        count = len(rows_SO)
        grad_SO = grad_AO.index_select(0, bags.source_S[:count])
        if not weights:
            return grad_SO, None, None
        (weights_N,) = weights
        by_row_S = (rows_SO * grad_SO).sum(1, dtype=torch.float32).to(weights_N.dtype)
        if not count:
            return grad_SO, torch.zeros_like(weights_N), None
        dweights_N = by_row_S[bags.row_N.clamp(max=count - 1)]
        if bags.padding is not None:
            dweights_N = dweights_N.masked_fill(bags.row_N == bags.padding, 0)
        if bags.mask_N is not None:
            dweights_N = dweights_N.masked_fill(~bags.mask_N, 0)
        weights_S = weights_N.reshape(-1).index_select(0, bags.entry_S[:count])
        return grad_SO * weights_S.unsqueeze(1), dweights_N, None


class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, order_N: Tensor, back_N: Tensor) -> Tensor:
        ctx.back_N = back_N
        return x_ND.index_select(0, order_N)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None]:
        return grad_ND.index_select(0, ctx.back_N), None, None


def gather(x_AD: Tensor, bags: Bags) -> Tensor:
    """[S, D]: the token of each row."""
    return _Gather.apply(x_AD, bags)  # type: ignore[no-any-return]


def sum_rows(rows_SO: Tensor, weights_N: Tensor | None, bags: Bags) -> Tensor:
    """[A, O]: the sum of each token's rows; weights are those of the entries of `bags`."""
    return _Sum.apply(rows_SO, weights_N, bags)  # type: ignore[no-any-return]


def reorder(x_ND: Tensor, order_N: Tensor, back_N: Tensor) -> Tensor:
    """Rows in another order; `back_N` is the inverse of the permutation `order_N`."""
    return _Reorder.apply(x_ND, order_N, back_N)  # type: ignore[no-any-return]
