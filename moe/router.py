"""Which experts a token visits, and with what weight.

Shape letters: T tokens the router sees, E experts, K top-k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe import weights
from moe.spec import Layer
from moe.spec import Router as Rule

_PLAIN = (Rule(), Rule(order="after"), Rule(order="after", normalize=False))
_SORT_LIMIT = 2048  # elements up to which a stable sort costs no more than top-k and a check


@dataclass
class Routing:
    """`kept_TK` is None when no slot is dropped; gates are 0 where a slot is."""

    logits_TE: Tensor  # float32
    scores_TE: Tensor  # float32, what the choice was made on
    indices_TK: Tensor  # int64
    gates_TK: Tensor  # float32
    kept_TK: Tensor | None = None


def _sorts(scores_TE: Tensor, topk: int) -> bool:
    return scores_TE.numel() <= _SORT_LIMIT or topk == scores_TE.shape[1]


def top_indices(scores_TE: Tensor, topk: int) -> Tensor:
    """Indices of the K largest per row; of equal scores the lowest, which topk leaves open."""
    if _sorts(scores_TE, topk):
        return torch.sort(scores_TE, dim=1, descending=True, stable=True)[1][:, :topk]
    if scores_TE.is_cuda:
        return _ordered_keys(scores_TE).topk(topk, dim=1)[1]
    values, indices = scores_TE.topk(topk + 1, dim=1)
    if bool((values[:, 1:] == values[:, :-1]).any()):
        return torch.sort(scores_TE, dim=1, descending=True, stable=True)[1][:, :topk]
    return indices[:, :topk]


def _ordered_keys(scores_TE: Tensor) -> Tensor:
    """Integers that order as (score, lower index first), so that no two are equal."""
    bits = (scores_TE + 0.0).view(torch.int32)  # + 0.0 makes -0 the equal of 0
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    experts = scores_TE.shape[1]
    return bits.to(torch.int64) * experts - torch.arange(experts, device=scores_TE.device)


class Router(nn.Module):
    """`allowed_TE` masks what a prescribed workload does not want; None lets logits decide."""

    def __init__(self, layer: Layer, device: torch.device, allowed_TE: Tensor | None) -> None:
        super().__init__()
        self.layer, self.rule = layer, layer.router
        self.plain_rule = self.rule if self.rule in _PLAIN else None
        self.weight_ED = nn.Parameter(weights.router(layer).to(device))
        self.allowed_TE: Tensor | None
        self.register_buffer("allowed_TE", allowed_TE)

    def forward(self, x_TD: Tensor) -> Routing:
        logits_TE = nn.functional.linear(x_TD.float(), self.weight_ED)
        scores_TE = logits_TE
        if not torch.is_grad_enabled() and self._simple() and _sorts(logits_TE, self.layer.topk):
            return self._sorted(logits_TE)
        if self.allowed_TE is not None:
            scores_TE = logits_TE.masked_fill(~self.allowed_TE, -torch.inf)
        indices_TK = top_indices(scores_TE.detach(), self.layer.topk)
        return Routing(logits_TE, scores_TE, indices_TK, self._gates(scores_TE, indices_TK))

    def _simple(self) -> bool:
        """Whether the choice and the gates are those of the K largest logits, as they are."""
        return self.allowed_TE is None and self.rule is self.plain_rule

    def _sorted(self, logits_TE: Tensor) -> Routing:
        """The same choice and gates with half the operations, of which a small batch feels each."""
        values_TE, order_TE = torch.sort(logits_TE, dim=1, descending=True, stable=True)
        topk = self.layer.topk
        gates_TK = torch.softmax(values_TE[:, :topk], 1)
        return Routing(logits_TE, logits_TE, order_TE[:, :topk], gates_TK)

    def _gates(self, logits_TE: Tensor, indices_TK: Tensor) -> Tensor:
        """softmax over the chosen equals softmax over all, renormalised: one operation less."""
        rule = self.rule
        if rule.order == "before" and not rule.normalize:
            gates_TK = logits_TE.softmax(dim=1).gather(1, indices_TK)
        else:
            gates_TK = logits_TE.gather(1, indices_TK).softmax(dim=1)
        return gates_TK if rule.scale == 1.0 else gates_TK * rule.scale
