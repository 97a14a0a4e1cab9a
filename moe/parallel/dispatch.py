"""Sends slots to the ranks that hold their experts, and brings the results back.

Places are copies of experts, numbered over the ranks of the group: P on each of its G members. A
slot whose place is at least P * G is dropped: it is not sent and adds nothing.

Shape letters: T tokens here, K top-k, S slots of these tokens, N rows received, P places here, G
ranks of the group, C chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moe.parallel.collectives import PendingExchange, exchange
from moe.parallel.comm import RankGroup
from moe.parallel.permute import Slots, permute, sort_slots, unpermute
from moe.phases import phase
from moe.spec import shard_bounds

Compute = Callable[[Tensor, list[int]], Tensor]


@dataclass(frozen=True)
class Way:
    """Destination of rows: `places` in total over the ranks of `group`, sent in the dtype
    `wire`."""

    group: RankGroup
    places: int
    wire: torch.dtype | None = None

    @property
    def per_rank(self) -> int:
        return self.places // self.group.size


def expert_order(counts_GP: Tensor) -> Tensor:
    """[N] index that sorts rows from (source, expert) order into expert order."""
    sources, experts = counts_GP.shape
    expert_N = torch.arange(experts).repeat(sources).repeat_interleave(counts_GP.reshape(-1))
    return torch.argsort(expert_N, stable=True)


def exchange_counts(counts: list[int], group: RankGroup) -> Tensor:
    """[G, X] numbers from each member; `counts` are G * X numbers, X for each member."""
    sent = torch.tensor(counts, device=group.comm.device).view(group.size, -1)
    one_each = [1] * group.size
    return exchange(sent, group, one_each, one_each).cpu()


def alltoall(
    x_TD: Tensor, places_TK: Tensor, gates_TK: Tensor, way: Way, compute: Compute
) -> Tensor:
    """[T, O]: every slot travels to its expert (D numbers) and back (O numbers)."""
    with phase("permute"):
        slots = sort_slots(places_TK, way.places)
        x_SD = permute(x_TD, slots)
    if way.group.size == 1:
        y_SO = compute(x_SD, slots.counts)
    else:
        with phase("dispatch"):
            counts_GP = exchange_counts(slots.counts, way.group)
            received: list[int] = counts_GP.sum(1).tolist()
            sent = _by_member(slots.counts, way)
            x_ND = exchange(x_SD, way.group, received, sent, way.wire)
        y_NO = _computed(x_ND, counts_GP, compute)
        with phase("combine"):
            y_SO = exchange(y_NO, way.group, sent, received, way.wire)
    with phase("unpermute"):
        return unpermute(y_SO, gates_TK, slots)


def _by_member(counts: list[int], way: Way) -> list[int]:
    per_rank = way.per_rank
    return [sum(counts[i : i + per_rank]) for i in range(0, way.places, per_rank)]


def _computed(x_ND: Tensor, counts_GP: Tensor, compute: Compute) -> Tensor:
    """Runs the experts on rows in (source, expert) order; results are in the same order."""
    with phase("permute"):
        order_N = expert_order(counts_GP).to(x_ND.device)
        x_ND = x_ND.index_select(0, order_N)
    y_NO = compute(x_ND, counts_GP.sum(0).tolist())
    with phase("unpermute"):
        return y_NO.index_select(0, torch.argsort(order_N))


def overlapped(
    x_TD: Tensor, places_TK: Tensor, gates_TK: Tensor, way: Way, compute: Compute, chunks: int
) -> Tensor:
    """`alltoall` in chunks of tokens: later chunks travel while one is computed."""
    if way.group.size == 1:
        return alltoall(x_TD, places_TK, gates_TK, way, compute)
    with phase("permute"):
        bounds = [shard_bounds(x_TD.shape[0], chunks, chunk) for chunk in range(chunks)]
        slots = [sort_slots(places_TK[a:b], way.places) for a, b in bounds]
        rows = [permute(x_TD[a:b], one) for (a, b), one in zip(bounds, slots, strict=True)]
    with phase("dispatch"):
        counts_CGP = _chunk_counts(slots, way)
        received: list[list[int]] = counts_CGP.sum(2).tolist()
        sent = [_by_member(one.counts, way) for one in slots]
        going = [
            PendingExchange(x_SD, way.group, received[c], sent[c], way.wire)
            for c, x_SD in enumerate(rows)
        ]
    coming = []
    for chunk in range(chunks):
        with phase("dispatch"):
            x_ND = going[chunk].wait()
        y_NO = _computed(x_ND, counts_CGP[chunk], compute)
        with phase("combine"):
            coming.append(PendingExchange(y_NO, way.group, sent[chunk], received[chunk], way.wire))
    parts = []
    for (a, b), one, back in zip(bounds, slots, coming, strict=True):
        with phase("combine"):
            y_SO = back.wait()
        with phase("unpermute"):
            parts.append(unpermute(y_SO, gates_TK[a:b], one))
    return torch.cat(parts)


def _chunk_counts(slots: list[Slots], way: Way) -> Tensor:
    """[C, G, P] rows that each member sends here in each chunk; one exchange for all chunks."""
    counts_CGP = torch.tensor([one.counts for one in slots]).view(len(slots), way.group.size, -1)
    by_member = counts_CGP.transpose(0, 1).reshape(-1).tolist()
    counts = exchange_counts(by_member, way.group)
    return counts.view(way.group.size, len(slots), way.per_rank).transpose(0, 1)


def dedup(x_TD: Tensor, places_TK: Tensor, gates_TK: Tensor, way: Way, compute: Compute) -> Tensor:
    """[T, O]: a token travels once to every member that holds one of its experts, with its gates
    there; the member returns the gated sum over them."""
    group, tokens = way.group, x_TD.shape[0]
    with phase("permute"):
        gates_TGP = _gates_by_place(places_TK, gates_TK, way)
        member, token = (gates_TGP != 0).any(2).T.nonzero(as_tuple=True)
        sent: list[int] = torch.bincount(member, minlength=group.size).tolist()
        x_ND, gates_NP = x_TD.index_select(0, token), gates_TGP[token, member]
    with phase("dispatch"):
        received: list[int] = exchange_counts(sent, group).view(-1).tolist()
        x_ND = exchange(x_ND, group, received, sent, way.wire)
        gates_NP = exchange(gates_NP, group, received, sent)
    with phase("permute"):
        place, row = (gates_NP != 0).T.nonzero(as_tuple=True)
        counts: list[int] = torch.bincount(place, minlength=way.per_rank).tolist()
        x_SD, gate_S = x_ND.index_select(0, row), gates_NP[row, place]
    y_SO = compute(x_SD, counts)
    with phase("unpermute"):
        y_SO = y_SO * gate_S.to(y_SO.dtype).unsqueeze(1)
        y_NO = y_SO.new_zeros((x_ND.shape[0], y_SO.shape[1])).index_add(0, row, y_SO)
    with phase("combine"):
        y_NO = exchange(y_NO, group, sent, received, way.wire)
    with phase("unpermute"):
        return y_NO.new_zeros((tokens, y_NO.shape[1])).index_add(0, token, y_NO)


def _gates_by_place(places_TK: Tensor, gates_TK: Tensor, way: Way) -> Tensor:
    """[T, G, P] gates; zero where a token has no slot."""
    gates = gates_TK.new_zeros((places_TK.shape[0], way.places + 1))  # + 1 for dropped slots
    gates = gates.scatter(1, places_TK.clamp(max=way.places), gates_TK)
    return gates[:, :-1].reshape(-1, way.group.size, way.per_rank)
