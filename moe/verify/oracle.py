"""The layer in plain float64 arithmetic, one process, expert by expert. Strategies must agree with
it.

It shares with the strategies only the weights (rounded to the layer's dtype), the selection bias
and prescribed choices; `moe.verify.definitions` checks these. tests/unit/moe/test_oracle.py
compares it with other projects' modules.

Shape letters: N tokens checked, B global batch, D in, H hidden, O out, E experts, K slots of a
token.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from moe import weights
from moe.layer import balance_loss
from moe.spec import Cell, LayerSpec
from moe.verify import definitions

Matrices = Mapping[str, Tensor]


def expert_output(layer: LayerSpec, matrices: Matrices, x_ND: Tensor) -> Tensor:
    """[N, O] output of one expert."""
    return expert_second(layer, matrices, expert_first(layer, matrices, x_ND), x_ND)


def expert_first(layer: LayerSpec, matrices: Matrices, x_ND: Tensor) -> Tensor:
    """[N, H] hidden units before the activation."""
    return F.linear(x_ND, matrices["w1"], matrices.get("b1"))


def expert_second(layer: LayerSpec, matrices: Matrices, h: Tensor, x_ND: Tensor) -> Tensor:
    """[N, O] from hidden units before the activation."""
    if layer.activation == "relu":
        h = h.clamp(min=0)
    elif layer.activation == "gelu":
        h = 0.5 * h * (1 + torch.erf(h / 2**0.5))
    elif layer.activation == "silu_gated":
        h = h * torch.sigmoid(h) * F.linear(x_ND, matrices["w3"], matrices.get("b3"))
    return F.linear(h, matrices["w2"], matrices.get("b2"))


def router_weight(layer: LayerSpec, device: torch.device) -> Tensor:
    """[E, D] router weights in float64."""
    return weights.router(layer, device).double()


def logits(layer: LayerSpec, x_ND: Tensor) -> Tensor:
    """[N, E] router logits of float64 tokens."""
    return x_ND @ router_weight(layer, x_ND.device).T


def probabilities(layer: LayerSpec, logits_NE: Tensor) -> Tensor:
    """[N, E] scores of all experts."""
    if layer.router.score == "sigmoid":
        return 1 / (1 + torch.exp(-logits_NE))
    return torch.softmax(logits_NE, dim=1)


def gates(
    layer: LayerSpec, logits_NE: Tensor, indices_NK: Tensor, kept_NK: Tensor | None = None
) -> Tensor:
    """[N, K] gates of the chosen experts; 0 for dropped slots."""
    rule = layer.router
    if rule.order == "after":
        gates_NK = torch.softmax(torch.gather(logits_NE, 1, indices_NK), dim=1)
    else:
        gates_NK = torch.gather(probabilities(layer, logits_NE), 1, indices_NK)
    chosen = rule.kind == "expert_choice"
    if chosen and kept_NK is not None:
        gates_NK = gates_NK * kept_NK
    if rule.normalize and rule.order == "before":
        total_N1 = gates_NK.sum(dim=1, keepdim=True)
        gates_NK = gates_NK / torch.where(total_N1 == 0, 1.0, total_N1)
    if not chosen and kept_NK is not None:
        gates_NK = gates_NK * kept_NK
    return gates_NK * rule.scale


def ranking(layer: LayerSpec, logits_NE: Tensor) -> Tensor:
    """[N, E] scores that experts are ranked by with a selection bias or groups."""
    scores_NE = probabilities(layer, logits_NE)
    if layer.router.selection_bias == "balanced":
        scores_NE = scores_NE + balance_loss.selection_bias(layer).to(scores_NE)
    return scores_NE


def eligible(layer: LayerSpec, ranked_NE: Tensor) -> Tensor:
    """[N, E] bool: experts of the best groups, by the sum of a group's two best."""
    rule = layer.router
    by_group = ranked_NE.unflatten(1, (rule.groups, ranked_NE.shape[1] // rule.groups))
    two = by_group.sort(dim=2)[0][:, :, -2:].sum(2)
    chosen = valid_choice(two, rule.group_topk)
    group_E = torch.arange(ranked_NE.shape[1], device=ranked_NE.device) // by_group.shape[2]
    return (group_E.view(1, -1, 1) == chosen.unsqueeze(1)).any(2)


def kept(cell: Cell, table_BK: Tensor, weight_BK: Tensor) -> Tensor:
    """[B, K] bool: slots of the whole batch that are kept, counted expert by expert.

    `weight_BK` orders slots: gates for router.drop=probability, scores where experts choose.
    Otherwise slots are ordered by token, or for drop=first_choices by choice, then token.
    """
    rule, stays = cell.layer.router, torch.zeros_like(table_BK, dtype=torch.bool)
    by_weight = rule.kind == "expert_choice" or rule.drop == "probability"
    for start, end in definitions.extents(cell):
        room = definitions.places_per_expert(cell.layer, end - start)
        for expert in range(cell.layer.num_experts):
            here = table_BK[start:end] == expert
            if rule.drop == "first_choices" and not by_weight:
                slot, token = here.T.nonzero(as_tuple=True)
            else:
                token, slot = here.nonzero(as_tuple=True)
            if by_weight:
                weights_here = weight_BK[start + token, slot].neg().tolist()
                best = sorted(range(len(token)), key=weights_here.__getitem__)[:room]
                token, slot = token[best], slot[best]
            stays[start + token[:room], slot[:room]] = True
    return stays


def balancing_loss(
    cell: Cell, logits_NE: Tensor, table_BK: Tensor, rows: tuple[int, int]
) -> Tensor:
    """The part of the balancing loss that the tokens `rows` add, given all tokens' choices:
    coefficient * sum over extents of (tokens / B) * E * sum_e (slots of e / tokens) * P_e."""
    layer, batch = cell.layer, cell.workload.batch_size
    scores_NE = probabilities(layer, logits_NE)
    scores_NE = scores_NE / scores_NE.sum(dim=1, keepdim=True)
    loss = logits_NE.new_zeros(())
    for start, end in definitions.extents(cell):
        first, last = max(start, rows[0]), min(end, rows[1])
        if first >= last:
            continue
        chosen = table_BK[start:end]
        for expert in range(layer.num_experts):
            share = float((chosen == expert).sum()) / (end - start) * layer.num_experts
            loss = loss + share * scores_NE[first - rows[0] : last - rows[0], expert].sum() / batch
    return layer.router.aux_loss * loss


def valid_choice(scores_NE: Tensor, topk: int) -> Tensor:
    """[N, K] sorted ids of the K best per row; ties go to the lowest id, by definition.

    Counts the experts that precede each one, without sort or topk; in blocks of rows to limit N * E
    * E.
    """
    experts = torch.arange(scores_NE.shape[1], device=scores_NE.device)
    rows = max(1, 2**22 // scores_NE.shape[1] ** 2)
    blocks = []
    for part in scores_NE.split(rows):
        other, self_ = part.unsqueeze(1), part.unsqueeze(2)
        ahead = (other > self_) | ((other == self_) & (experts < experts.unsqueeze(1)))
        chosen = ahead.sum(dim=2) < topk
        blocks.append(chosen.nonzero()[:, 1].view(-1, topk))
    return torch.cat(blocks) if blocks else experts.new_empty((0, topk))
