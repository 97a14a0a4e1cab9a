"""Sending slots to the ranks that hold their experts, and bringing the results back.

Shape letters: T tokens here, K top-k, S slots of these tokens, N rows received, P experts here,
G ranks of the group.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moe.collectives import exchange
from moe.comm import Group
from moe.permute import permute, sort_slots, unpermute
from moe.phases import phase
from moe.router import Routing

Compute = Callable[[Tensor, list[int]], Tensor]


def expert_order(counts_GP: Tensor) -> Tensor:
    """Index that brings rows from (source, expert) order into expert order."""
    sources, experts = counts_GP.shape
    expert_N = torch.arange(experts).repeat(sources).repeat_interleave(counts_GP.reshape(-1))
    return torch.argsort(expert_N, stable=True)


def exchange_counts(counts: list[int], group: Group) -> Tensor:
    """[G, P] rows that each member will send to each of this rank's experts."""
    sent = torch.tensor(counts, device=group.comm.device).view(group.size, -1)
    one_each = [1] * group.size
    return exchange(sent, group, one_each, one_each).cpu()


def alltoall(
    x_TD: Tensor, routing: Routing, num_experts: int, group: Group, compute: Compute
) -> Tensor:
    """Every slot travels to its expert and back: D numbers there, O numbers back."""
    with phase("permute"):
        slots = sort_slots(routing.indices_TK, num_experts)
        x_SD = permute(x_TD, slots)
    if group.size == 1:
        y_SO = compute(x_SD, slots.counts)
    else:
        with phase("dispatch"):
            counts_GP = exchange_counts(slots.counts, group)
            received: list[int] = counts_GP.sum(1).tolist()
            per_rank = num_experts // group.size
            sent = [sum(slots.counts[i * per_rank : (i + 1) * per_rank]) for i in range(group.size)]
            x_ND = exchange(x_SD, group, received, sent)
        with phase("permute"):
            order_N = expert_order(counts_GP).to(x_ND.device)
            x_ND = x_ND.index_select(0, order_N)
        y_NO = compute(x_ND, counts_GP.sum(0).tolist())
        with phase("unpermute"):
            y_NO = y_NO.index_select(0, torch.argsort(order_N))
        with phase("combine"):
            y_SO = exchange(y_NO, group, sent, received)
    with phase("unpermute"):
        return unpermute(y_SO, routing.gates_TK, slots)
