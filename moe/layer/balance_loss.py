"""Balancing experts: a loss whose gradient moves the router, or a bias that affects only the
choice.

Shape letters: T tokens, K top-k, E experts, B global batch, N tokens the bias is computed on.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from moe import weights
from moe.layer.capacity import Scope, slots_of_experts
from moe.spec import LayerSpec, RouterSpec

BIAS_SLOTS = 256  # per expert; with fewer, the bias would fit the noise of the sample
BIAS_STEPS = (16, 16, 24)  # number of steps at each of BIAS_RATES
BIAS_RATES = (2.0**-5, 2.0**-7, 2.0**-9)
TOKENS_OF_BIAS = 1  # item of the token stream that no workload uses


def normalized(logits_TE: Tensor, score: str) -> Tensor:
    """[T, E] probabilities; each row sums to 1."""
    if score == "softmax":
        return logits_TE.softmax(dim=1)
    scores_TE = logits_TE.sigmoid()
    return scores_TE / scores_TE.sum(dim=1, keepdim=True)


def shares(layer: LayerSpec, scope: Scope, indices_TK: Tensor) -> Tensor:
    """[T, E]: E * f_e for every token here, where f_e is expert e's slots per token of the extent.
    A row of f sums to K."""

    def share(indices: Tensor) -> Tensor:
        counts_E = slots_of_experts(indices.reshape(-1), layer.num_experts)
        each = counts_E * (layer.num_experts / max(indices.shape[0], 1))
        return each.float().expand(indices.shape[0], -1)

    return scope.each(share, indices_TK)


def loss(layer: LayerSpec, scope: Scope, shares_TE: Tensor, probabilities_TE: Tensor) -> Tensor:
    """This rank's part of the balancing loss: coefficient * sum over extents of (tokens / B) * E *
    sum_e f_e P_e, where f has no gradient (Switch Transformer, arXiv 2101.03961, equations 4 to 6;
    for K experts a token as in transformers' load_balancing_loss_func, which gives K for an even
    load).

    P_e is a mean over the extent's tokens, so each token adds E * f . p / B.
    """
    batch = scope.extents[-1][1]
    return layer.router.aux_loss * (shares_TE * probabilities_TE).sum() / (batch * scope.copies)


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, extra: Tensor) -> Tensor:
        return gates.view_as(gates)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad.new_ones(())


def attach(gates_TK: Tensor, extra: Tensor) -> Tensor:
    """Returns the gates unchanged; their backward pass also runs that of `extra` with a gradient of
    1."""
    return _Attach.apply(gates_TK, extra)  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=4)
def calibration_scores(layer: LayerSpec) -> Tensor:
    """[N, E] float32 scores of the seeded tokens that the bias is computed on."""
    tokens = BIAS_SLOTS * layer.num_experts // layer.topk
    flat = torch.empty(tokens * layer.dim)
    weights.uniform_(flat, layer.weight_seed, TOKENS_OF_BIAS, "tokens").mul_(3**0.5)
    x_ND = flat.view(tokens, layer.dim).to(weights.dtype_of(layer.dtype)).double()
    logits_NE = x_ND @ weights.router(layer).double().T
    sigmoid = layer.router.score == "sigmoid"
    return (logits_NE.sigmoid() if sigmoid else logits_NE.softmax(dim=1)).float()


@functools.lru_cache(maxsize=16)
def selection_bias(layer: LayerSpec) -> Tensor:
    """[E] float32 bias that evens out the choice on seeded tokens: raised where an expert has fewer
    slots than the mean, lowered where it has more (auxiliary-loss-free balancing, arXiv
    2408.15664).

    It is found once: a bias that moved with every step would make repeated steps different
    functions. Steps are powers of two, so every rank computes the same bits.
    """
    scores_NE = calibration_scores(layer)
    sigmoid = layer.router.score == "sigmoid"
    unit = 1.0 if sigmoid else 2.0 ** -(layer.num_experts - 1).bit_length()
    bias_E = torch.zeros(layer.num_experts)
    for steps, rate in zip(BIAS_STEPS, BIAS_RATES, strict=True):
        for _ in range(steps):
            ranked_NE = scores_NE + bias_E
            if layer.router.groups > 1:
                ranked_NE = ranked_NE.masked_fill(~eligible(ranked_NE, layer.router), -torch.inf)
            chosen = ranked_NE.topk(layer.topk, dim=1)[1]
            counts_E = torch.bincount(chosen.reshape(-1), minlength=layer.num_experts).float()
            bias_E += rate * unit * torch.sign(counts_E.mean() - counts_E)
    return bias_E


def eligible(ranked_TE: Tensor, rule: RouterSpec) -> Tensor:
    """[T, E] bool: experts of the groups with the largest sum of their two best experts
    (DeepSeek-V3, arXiv 2412.19437, section 2.1.2); ties go to the lowest group."""
    size = ranked_TE.shape[1] // rule.groups
    by_group = ranked_TE.unflatten(1, (rule.groups, size))
    group_TG = by_group.topk(min(2, size), dim=2)[0].sum(2)
    best = torch.sort(group_TG, dim=1, descending=True, stable=True)[1][:, : rule.group_topk]
    fine_TG = torch.zeros_like(group_TG, dtype=torch.bool).scatter(1, best, True)
    return fine_TG.repeat_interleave(size, dim=1)
