"""The layer in float64, one process, expert by expert: what every strategy must agree with.

It shares with the strategies only the weight set (rounded to the layer's dtype) and nothing that
is under test. Shape letters: N tokens checked, B global batch, D in, H hidden, O out, E experts,
K top-k.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moe import weights
from moe.spec import Layer

Matrices = dict[str, Tensor]


def expert_matrices(layer: Layer, expert: int, device: torch.device) -> Matrices:
    """All matrices of one expert in float64."""
    return {n: weights.matrix(layer, expert, n).to(device).double() for n in weights.names(layer)}


def expert_output(layer: Layer, held: Matrices, x_ND: Tensor) -> Tensor:
    """[N, O] of one expert."""
    h = F.linear(x_ND, held["w1"], held.get("b1"))
    if layer.activation == "relu":
        h = h.clamp(min=0)
    elif layer.activation == "gelu":
        h = 0.5 * h * (1 + torch.erf(h / 2**0.5))
    elif layer.activation == "silu_gated":
        h = h * torch.sigmoid(h) * F.linear(x_ND, held["w3"], held.get("b3"))
    return F.linear(h, held["w2"], held.get("b2"))


def logits(layer: Layer, x_ND: Tensor) -> Tensor:
    """[N, E] router logits of float64 tokens."""
    return x_ND @ weights.router(layer).to(x_ND.device).double().T


def gates(layer: Layer, logits_NE: Tensor, indices_NK: Tensor, allowed_NE: Tensor | None) -> Tensor:
    """[N, K] weights of the given choice of experts."""
    rule = layer.router
    if allowed_NE is not None:
        logits_NE = logits_NE.masked_fill(~allowed_NE, -torch.inf)
    chosen_NK = torch.gather(logits_NE, 1, indices_NK)
    if rule.order == "after":
        gates_NK = torch.softmax(chosen_NK, dim=1)
    else:
        gates_NK = torch.gather(torch.softmax(logits_NE, dim=1), 1, indices_NK)
        if rule.normalize:
            gates_NK = gates_NK / gates_NK.sum(dim=1, keepdim=True)
    return gates_NK * rule.scale


def valid_choice(scores_NE: Tensor, topk: int) -> Tensor:
    """[N, K] sorted ids of the K best per row; of equal scores the lowest id, by definition.

    Counts for each expert the ones that precede it; needs no sort and no topk. Row by row in
    blocks, so that N * E * E stays small.
    """
    experts = torch.arange(scores_NE.shape[1], device=scores_NE.device)
    rows = max(1, 2**22 // scores_NE.shape[1] ** 2)
    found = []
    for part in scores_NE.split(rows):
        other, self_ = part.unsqueeze(1), part.unsqueeze(2)
        ahead = (other > self_) | ((other == self_) & (experts < experts.unsqueeze(1)))
        chosen = ahead.sum(dim=2) < topk
        found.append(chosen.nonzero()[:, 1].view(-1, topk))
    return torch.cat(found) if found else experts.new_empty((0, topk))


def outputs(layer: Layer, x_ND: Tensor, indices_NK: Tensor, gates_NK: Tensor) -> Tensor:
    """[N, O], generating one expert's weights at a time."""
    out = x_ND.new_zeros((x_ND.shape[0], layer.dim_out))
    for expert in indices_NK.unique().tolist():
        row, slot = (indices_NK == expert).nonzero(as_tuple=True)
        held = expert_matrices(layer, expert, x_ND.device)
        y = expert_output(layer, held, x_ND[row])
        out.index_add_(0, row, y * gates_NK[row, slot].unsqueeze(1))
    return out
