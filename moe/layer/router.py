"""Which experts a token visits, and with what weight.

Shape letters: T tokens the router sees, E experts, K top-k.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from moe import weights
from moe.layer import balance_loss
from moe.layer.capacity import Scope, keep_first, places_per_expert, take_best
from moe.spec import LayerSpec, RouterSpec

_PLAIN = (RouterSpec(), RouterSpec(order="after"), RouterSpec(order="after", normalize=False))
_TINY = 1e-20  # smaller than any relevant gate
_SORT_LIMIT = 2048  # elements up to which a stable sort beats top-k and a tie check


@dataclass
class Routing:
    """`kept_TK` is None when no slot is dropped; a dropped slot's gate is 0. Where experts choose
    tokens, K = E: every expert is a slot, kept if it took the token."""

    logits_TE: Tensor  # float32
    scores_TE: Tensor  # float32, the scores the choice was made on
    indices_TK: Tensor  # int64
    gates_TK: Tensor  # float32
    kept_TK: Tensor | None = None
    ranked_TE: Tensor | None = None  # scores before groups were masked
    weight_TK: Tensor | None = None  # order of slots, where some are dropped


def _sorts(scores_TE: Tensor, topk: int) -> bool:
    return scores_TE.numel() <= _SORT_LIMIT or topk == scores_TE.shape[1]


def top_indices(scores_TE: Tensor, topk: int) -> Tensor:
    """[T, K] indices of the K largest per row; ties go to the lowest index, which torch.topk does
    not guarantee."""
    if _sorts(scores_TE, topk):
        return torch.sort(scores_TE, dim=1, descending=True, stable=True)[1][:, :topk]
    if scores_TE.is_cuda:
        return _ordered_keys(scores_TE).topk(topk, dim=1)[1]
    values, indices = scores_TE.topk(topk + 1, dim=1)
    if bool((values[:, 1:] == values[:, :-1]).any()):
        return torch.sort(scores_TE, dim=1, descending=True, stable=True)[1][:, :topk]
    return indices[:, :topk]


def _ordered_keys(scores_TE: Tensor) -> Tensor:
    """Distinct integers that sort as (score, lower index first)."""
    bits = (scores_TE + 0.0).view(torch.int32)  # + 0.0 makes -0 the equal of 0
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    experts = scores_TE.shape[1]
    return bits.to(torch.int64) * experts - torch.arange(experts, device=scores_TE.device)


class _HalfLogits(torch.autograd.Function):
    """Logits of half-precision tokens without a float32 copy of them, on a GPU. The weight's values
    are those of the tokens' dtype, so the products are the same; they are summed in float32."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_ED: Tensor) -> Tensor:
        ctx.save_for_backward(x_TD, weight_ED)
        return torch.mm(x_TD, weight_ED.to(x_TD.dtype).T, out_dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor, Tensor]:
        x_TD, weight_ED = ctx.saved_tensors
        return (grad_TE @ weight_ED).to(x_TD.dtype), grad_TE.T @ x_TD.float()


def logits(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """[T, E] float32 logits of tokens in the layer's dtype."""
    if x_TD.is_cuda and x_TD.dtype != torch.float32:
        return _HalfLogits.apply(x_TD, weight_ED)  # type: ignore[no-any-return]
    return nn.functional.linear(x_TD.float(), weight_ED)


def probabilities(logits_TE: Tensor, score: str) -> Tensor:
    return logits_TE.sigmoid() if score == "sigmoid" else logits_TE.softmax(dim=1)


class Router(nn.Module):
    """`allowed_TE` masks experts that a prescribed workload excludes; None lets logits decide.
    Rules over many tokens need `scope`."""

    def __init__(
        self,
        layer: LayerSpec,
        device: torch.device,
        allowed_TE: Tensor | None,
        scope: Scope | None = None,
    ) -> None:
        super().__init__()
        self.layer, self.rule, self.scope = layer, layer.router, scope
        self.plain_rule = self.rule if self.rule in _PLAIN else None
        self.weight_ED = nn.Parameter(weights.router(layer, device))
        self.allowed_TE: Tensor | None
        self.register_buffer("allowed_TE", None if allowed_TE is None else allowed_TE.to(device))
        self.bias_E: Tensor | None
        self.register_buffer("bias_E", None)
        if self.rule.selection_bias == "balanced":
            self.bias_E = balance_loss.selection_bias(layer).to(device)

    def forward(self, x_TD: Tensor) -> Routing:
        logits_TE = logits(x_TD, self.weight_ED)
        if not torch.is_grad_enabled() and self._simple() and _sorts(logits_TE, self.layer.topk):
            return self._sorted(logits_TE)
        if self.rule.kind == "expert_choice":
            return self._expert_choice(logits_TE)
        masked_TE = logits_TE
        if self.allowed_TE is not None:
            masked_TE = logits_TE.masked_fill(~self.allowed_TE, -torch.inf)
        ranked_TE, scores_TE = self._ranked(masked_TE.detach())
        indices_TK = top_indices(scores_TE, self.layer.topk)
        gates_TK = self._gates(logits_TE, indices_TK)
        if self.rule.aux_loss and torch.is_grad_enabled():
            gates_TK = self._balanced(gates_TK, logits_TE, indices_TK)
        routing = Routing(logits_TE, scores_TE, indices_TK, gates_TK, None, ranked_TE)
        return self._limited(routing) if self.rule.capacity_factor else routing

    def _simple(self) -> bool:
        """Whether choice and gates depend only on the K largest logits."""
        return self.allowed_TE is None and self.rule is self.plain_rule

    def _sorted(self, logits_TE: Tensor) -> Routing:
        """Same choice and gates with half the operations, which matters for small batches."""
        values_TE, order_TE = torch.sort(logits_TE, dim=1, descending=True, stable=True)
        topk = self.layer.topk
        gates_TK = torch.softmax(values_TE[:, :topk], 1)
        return Routing(logits_TE, logits_TE, order_TE[:, :topk], gates_TK)

    def _ranked(self, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ([T, E] scores that experts are ranked by, the same with ineligible groups at
        -inf). Probabilities grow with logits, so without a bias or groups the logits themselves are
        used."""
        rule = self.rule
        if self.bias_E is None and rule.groups == 1:
            return logits_TE, logits_TE
        ranked_TE = probabilities(logits_TE, rule.score)
        if self.bias_E is not None:
            ranked_TE = ranked_TE + self.bias_E
        if rule.groups == 1:
            return ranked_TE, ranked_TE
        return ranked_TE, ranked_TE.masked_fill(~balance_loss.eligible(ranked_TE, rule), -torch.inf)

    def _gates(self, logits_TE: Tensor, indices_TK: Tensor) -> Tensor:
        """[T, K] gates of the chosen experts. Softmax over the chosen equals renormalised softmax
        over all, with one operation less. A prescribed choice leaves the logits unchanged: without
        renormalisation, gates are shares of all experts."""
        rule = self.rule
        if rule.score == "sigmoid":
            gates_TK = logits_TE.gather(1, indices_TK).sigmoid()
            if rule.normalize:
                gates_TK = gates_TK / gates_TK.sum(dim=1, keepdim=True)
        elif rule.order == "before" and not rule.normalize:
            gates_TK = logits_TE.softmax(dim=1).gather(1, indices_TK)
        else:
            gates_TK = logits_TE.gather(1, indices_TK).softmax(dim=1)
        return gates_TK if rule.scale == 1.0 else gates_TK * rule.scale

    def _limited(self, routing: Routing) -> Routing:
        """Drops slots beyond an expert's capacity; the other gates stay as they are."""
        layer, scope = self.layer, self.scope
        assert scope is not None
        indices_TK, drop = routing.indices_TK, self.rule.drop
        by_gate = drop == "probability"

        def keep(indices: Tensor, gates: Tensor | None = None) -> Tensor:
            places = places_per_expert(layer, indices.shape[0])
            return keep_first(indices, gates, layer.num_experts, places, drop)

        weight_TK = routing.gates_TK.detach()
        kept_TK = scope.each(keep, *((indices_TK, weight_TK) if by_gate else (indices_TK,)))
        gates_TK = routing.gates_TK * kept_TK
        return replace(routing, gates_TK=gates_TK, kept_TK=kept_TK, weight_TK=weight_TK)

    def _expert_choice(self, logits_TE: Tensor) -> Routing:
        """Every expert takes its best tokens: a token has E slots, few of them kept."""
        layer, scope = self.layer, self.scope
        assert scope is not None
        gates_TE = probabilities(logits_TE, self.rule.score)
        scores_TE = gates_TE.detach()

        def take(scores: Tensor) -> Tensor:
            return take_best(scores, places_per_expert(layer, scores.shape[0]))

        kept_TE = scope.each(take, scores_TE)
        gates_TE = gates_TE * kept_TE
        if self.rule.normalize:  # a token that nobody took has no gates
            gates_TE = gates_TE / gates_TE.sum(dim=1, keepdim=True).clamp(min=_TINY)
        indices_TE = torch.arange(layer.num_experts, device=logits_TE.device).expand_as(kept_TE)
        gates_TE = gates_TE * self.rule.scale
        return Routing(logits_TE, scores_TE, indices_TE, gates_TE, kept_TE, scores_TE, scores_TE)

    def _balanced(self, gates_TK: Tensor, logits_TE: Tensor, indices_TK: Tensor) -> Tensor:
        """The same gates; their backward pass adds the balancing loss's gradient."""
        assert self.scope is not None
        shares_TE = balance_loss.shares(self.layer, self.scope, indices_TK)
        probabilities_TE = balance_loss.normalized(logits_TE, self.rule.score)
        loss = balance_loss.loss(self.layer, self.scope, shares_TE, probabilities_TE)
        return balance_loss.attach(gates_TK, loss)
