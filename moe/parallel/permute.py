"""Groups slots by expert, and sums them per token again.

Shape letters: T tokens, K top-k, S kept slots here, P experts here (physical copies).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Slots:
    """Slots in expert order. `order_S` are positions in the flat [T * K] list of slots."""

    counts: list[int]  # slots of each local expert
    order_S: Tensor
    num_tokens: int
    topk: int

    @property
    def token_S(self) -> Tensor:
        return self.order_S if self.topk == 1 else self.order_S // self.topk


def sort_slots(local_TK: Tensor, num_local: int) -> Slots:
    """Slots in expert order. `local_TK` is the local expert of every slot; values >= num_local are
    elsewhere."""
    flat = local_TK.reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=num_local).tolist()[:num_local]
    kept = sum(counts)
    if kept < flat.numel():
        order = order[:kept]
    return Slots(counts, order, *local_TK.shape)


def permute(x_TD: Tensor, slots: Slots) -> Tensor:
    """[S, D]: one row per slot, in expert order."""
    return x_TD.index_select(0, slots.token_S)


def unpermute(y_SO: Tensor, gates_TK: Tensor, slots: Slots) -> Tensor:
    """[T, O]: sum of gate * row over each token's slots; zeros for tokens without a slot."""
    tokens, topk = slots.num_tokens, slots.topk
    gates = gates_TK.to(y_SO.dtype)
    if y_SO.shape[0] == tokens * topk:  # every slot is here: gather instead of scattering
        inverse = torch.empty_like(slots.order_S)
        inverse[slots.order_S] = torch.arange(inverse.numel(), device=inverse.device)
        # No copy of the rows. Training keeps it: embedding_bag's backward pass makes more of them.
        if not torch.is_grad_enabled() and y_SO.device.type == "cpu":
            bags_TK = inverse.view(tokens, topk)
            return F.embedding_bag(bags_TK, y_SO, mode="sum", per_sample_weights=gates)
        y_TKO = y_SO.index_select(0, inverse).view(tokens, topk, y_SO.shape[1])
        return torch.bmm(gates.unsqueeze(1), y_TKO).squeeze(1)
    gate_S = gates.reshape(-1).index_select(0, slots.order_S)
    out = y_SO.new_zeros((tokens, y_SO.shape[1]))
    return out.index_add(0, slots.token_S, y_SO * gate_S.unsqueeze(1))
