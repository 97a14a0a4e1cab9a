"""Groups slots by expert, and sums them per token again.

On a GPU nothing here waits for the device, unless rows of slots that are elsewhere are to be left
out: then the host has to know how many rows there are.

Shape letters: T tokens, K top-k, S rows (slots here, see `RowsElsewhere`), P experts here (physical
copies).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moe.parallel.bags import Bags, gather, inverse, sum_rows
from moe.parallel.row_counts import RowCounts, numbers

# What becomes of the rows of slots that are elsewhere, on a GPU:
#   cut      there are none, at the price of a wait for their number
#   kept     they lie behind the others
#   padded   the same, and one more row lies behind them, which stands for all of them in sums
RowsElsewhere = Literal["cut", "kept", "padded"]


@dataclass
class Slots:
    """Slots in expert order. `order_S` are positions in the flat [T * K] list of slots."""

    counts: RowCounts  # of each local expert
    order_S: Tensor
    num_tokens: int
    topk: int
    bags: Bags | None = None  # on a GPU
    expert_S: Tensor | None = None  # of each row, where it is known; any, for rows elsewhere

    @property
    def token_S(self) -> Tensor:
        return self.order_S if self.topk == 1 else self.order_S // self.topk


def sort_slots(local_TK: Tensor, num_local: int, elsewhere: RowsElsewhere = "cut") -> Slots:
    """Slots in expert order. `local_TK` is the local expert of every slot; values >= num_local are
    elsewhere."""
    if local_TK.is_cuda:
        return _sorted_on_gpu(local_TK, num_local, elsewhere)
    flat = local_TK.reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=num_local).tolist()[:num_local]
    kept = sum(counts)
    if kept < flat.numel():
        order = order[:kept]
    return Slots(RowCounts(counts), order, *local_TK.shape)


def _sorted_on_gpu(local_TK: Tensor, num_local: int, elsewhere: RowsElsewhere) -> Slots:
    tokens, topk = local_TK.shape
    local_S, order_S = torch.sort(local_TK.reshape(-1), stable=True)
    last_P = numbers(num_local, local_TK.device)
    ends_P = torch.searchsorted(local_S, last_P, right=True, out_int32=True)
    counts = RowCounts(ends_P=ends_P)
    row_TK, padding, mask_TK = inverse(order_S).view(tokens, topk), None, None
    if elsewhere == "padded" and order_S.numel():
        padding = order_S.numel()
        row_TK = row_TK.masked_fill(row_TK >= ends_P[-1:], padding)
        order_S = F.pad(order_S, (0, 1))
    elif elsewhere == "cut" and (kept := sum(counts.on_host)) < order_S.numel():
        order_S, mask_TK = order_S[:kept], local_TK < num_local
    bags = Bags(row_TK, order_S // topk, order_S, padding=padding, mask_N=mask_TK)
    return Slots(counts, order_S, tokens, topk, bags)


def permute(x_TD: Tensor, slots: Slots) -> Tensor:
    """[S, D]: one row per slot, in expert order."""
    if slots.bags is not None:
        return gather(x_TD, slots.bags)
    return x_TD.index_select(0, slots.token_S)


def unpermute(y_SO: Tensor, gates_TK: Tensor, slots: Slots) -> Tensor:
    """[T, O]: sum of gate * row over each token's slots; zeros for tokens without a slot."""
    tokens, topk = slots.num_tokens, slots.topk
    gates = gates_TK.to(y_SO.dtype)
    if slots.bags is not None:
        return sum_rows(y_SO, gates, slots.bags)
    if y_SO.shape[0] == tokens * topk:  # every slot is here: gather instead of scattering
        back = torch.empty_like(slots.order_S)
        back[slots.order_S] = torch.arange(back.numel(), device=back.device)
        # No copy of the rows. Training keeps it: embedding_bag's backward pass makes more of them.
        if not torch.is_grad_enabled() and y_SO.device.type == "cpu":
            bags_TK = back.view(tokens, topk)
            return F.embedding_bag(bags_TK, y_SO, mode="sum", per_sample_weights=gates)
        y_TKO = y_SO.index_select(0, back).view(tokens, topk, y_SO.shape[1])
        return torch.bmm(gates.unsqueeze(1), y_TKO).squeeze(1)
    gate_S = gates.reshape(-1).index_select(0, slots.order_S)
    out = y_SO.new_zeros((tokens, y_SO.shape[1]))
    return out.index_add(0, slots.token_S, y_SO * gate_S.unsqueeze(1))
