"""Sends slots to the ranks that hold their experts, and brings the results back.

Places are copies of experts, numbered over the ranks of the group: P on each of its G members. A
slot whose place is at least P * G is dropped: it is not sent and adds nothing.

The host has to know how many rows come and go: on a GPU that is one wait, for the counts of all
chunks together.

Shape letters: T tokens here, K top-k, S slots of these tokens, N rows received, P places here, G
ranks of the group, C chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moe import waits
from moe.parallel import bags
from moe.parallel.collectives import PendingExchange, exchange
from moe.parallel.comm import RankGroup
from moe.parallel.permute import Slots, permute, sort_slots, unpermute
from moe.parallel.row_counts import RowCounts, numbers
from moe.phases import phase
from moe.spec import shard_bounds

Compute = Callable[[Tensor, RowCounts], Tensor]


@dataclass(frozen=True)
class Way:
    """Destination of rows: `places` in total over the ranks of `group`, sent in the dtype
    `wire`. `drops`: whether there may be slots that go nowhere."""

    group: RankGroup
    places: int
    wire: torch.dtype | None = None
    drops: bool = True

    @property
    def per_rank(self) -> int:
        return self.places // self.group.size


def expert_order(counts_GP: Tensor, rows: int) -> Tensor:
    """[N] index that sorts the N=`rows` rows from (source, expert) order into expert order."""
    sources, experts = counts_GP.shape
    expert_N = numbers(experts, counts_GP.device).repeat(sources)
    expert_N = expert_N.repeat_interleave(counts_GP.reshape(-1), output_size=rows)
    return torch.argsort(expert_N, stable=True)


@dataclass(frozen=True)
class Exchanged:
    """What the ranks of a group announce to each other: rows to send to each member, to receive
    from it, and to compute at each place here; and on the device [G, P] the rows that each member
    sends to each place."""

    sent: list[int]
    received: list[int]
    of_experts: list[int]
    counts_GP: Tensor


def announce(numbers_GX: Tensor, group: RankGroup) -> Tensor:
    """[G, X] numbers from each member; `numbers_GX` are for each member."""
    one_each = [1] * group.size
    return exchange(numbers_GX, group, one_each, one_each)


def exchange_counts(slots: list[Slots], way: Way) -> list[Exchanged]:
    """The rows that travel in each chunk. One exchange, and one wait on a GPU, for all chunks."""
    group, chunks, device = way.group, len(slots), way.group.comm.device
    sent_CGP = torch.stack([one.counts.per_expert(device) for one in slots])
    sent_CGP = sent_CGP.view(chunks, group.size, way.per_rank)
    received_GX = announce(sent_CGP.transpose(0, 1).reshape(group.size, -1), group)
    received_GCP = received_GX.view(group.size, chunks, way.per_rank)
    received_CGP = received_GCP.transpose(0, 1)
    known_CGX = torch.cat([sent_CGP.sum(2, keepdim=True), received_CGP], 2)
    exchanged = []
    for known_GX, counts_GP in zip(waits.to_host(known_CGX), received_CGP, strict=True):
        sent, *places = (list(column) for column in zip(*known_GX, strict=True))
        received = [sum(counts) for counts in zip(*places, strict=True)]
        exchanged.append(Exchanged(sent, received, list(map(sum, places)), counts_GP))
    return exchanged


def alltoall(
    x_TD: Tensor, places_TK: Tensor, gates_TK: Tensor, way: Way, compute: Compute
) -> Tensor:
    """[T, O]: every slot travels to its expert (D numbers) and back (O numbers)."""
    alone = way.group.size == 1
    with phase("permute"):
        slots = sort_slots(places_TK, way.places, "cut" if alone and way.drops else "kept")
        x_SD = permute(x_TD, slots)
    if alone:
        y_SO = compute(x_SD, slots.counts)
    else:
        with phase("dispatch"):
            (rows,) = exchange_counts([slots], way)
            x_SD = _leaving(x_SD, rows)
            x_ND = exchange(x_SD, way.group, rows.received, rows.sent, way.wire)
        y_NO = _computed(x_ND, rows, compute)
        with phase("combine"):
            y_SO = exchange(y_NO, way.group, rows.sent, rows.received, way.wire)
    with phase("unpermute"):
        return unpermute(y_SO, gates_TK, slots)


def _leaving(x_SD: Tensor, rows: Exchanged) -> Tensor:
    """The rows that are sent; those of dropped slots lie behind them."""
    leaving = sum(rows.sent)
    return x_SD if leaving == len(x_SD) else x_SD[:leaving]


def _computed(x_ND: Tensor, rows: Exchanged, compute: Compute) -> Tensor:
    """Runs the experts on rows in (source, expert) order; results are in the same order."""
    counts = RowCounts(rows.of_experts, rows.counts_GP.sum(0))
    with phase("permute"):
        order_N = expert_order(rows.counts_GP, len(x_ND))
        if not x_ND.is_cuda:
            x_ND = x_ND.index_select(0, order_N)
        else:
            back_N = bags.inverse(order_N)
            x_ND = bags.reorder(x_ND, order_N, back_N)
    y_NO = compute(x_ND, counts)
    with phase("unpermute"):
        if not y_NO.is_cuda:
            return y_NO.index_select(0, torch.argsort(order_N))
        return bags.reorder(y_NO, back_N, order_N)


def overlapped(
    x_TD: Tensor, places_TK: Tensor, gates_TK: Tensor, way: Way, compute: Compute, chunks: int
) -> Tensor:
    """`alltoall` in chunks of tokens: later chunks travel while one is computed."""
    if way.group.size == 1:
        return alltoall(x_TD, places_TK, gates_TK, way, compute)
    with phase("permute"):
        bounds = [shard_bounds(x_TD.shape[0], chunks, chunk) for chunk in range(chunks)]
        slots = [sort_slots(places_TK[a:b], way.places, "kept") for a, b in bounds]
        parts = [permute(x_TD[a:b], one) for (a, b), one in zip(bounds, slots, strict=True)]
    with phase("dispatch"):
        rows = exchange_counts(slots, way)
        going = [
            PendingExchange(_leaving(x_SD, one), way.group, one.received, one.sent, way.wire)
            for x_SD, one in zip(parts, rows, strict=True)
        ]
    coming = []
    for one, trip in zip(rows, going, strict=True):
        with phase("dispatch"):
            x_ND = trip.wait()
        y_NO = _computed(x_ND, one, compute)
        with phase("combine"):
            coming.append(PendingExchange(y_NO, way.group, one.sent, one.received, way.wire))
    outputs = []
    for (a, b), chunk, back in zip(bounds, slots, coming, strict=True):
        with phase("combine"):
            y_SO = back.wait()
        with phase("unpermute"):
            outputs.append(unpermute(y_SO, gates_TK[a:b], chunk))
    return torch.cat(outputs)


def dedup(x_TD: Tensor, places_TK: Tensor, gates_TK: Tensor, way: Way, compute: Compute) -> Tensor:
    """[T, O]: a token travels once to every member that holds one of its experts, with its gates
    there; the member returns the gated sum over them."""
    group, size, places = way.group, way.group.size, way.per_rank
    with phase("permute"):
        gates_TGP = _gates_by_place(places_TK, gates_TK, way)
        used_TGP = gates_TGP != 0
        crossing_TG = used_TGP.any(2)
        sent_GX = torch.cat([crossing_TG.sum(0).unsqueeze(1), used_TGP.sum(0)], 1)
    with phase("dispatch"):
        received_GX = announce(sent_GX, group)
        counts_P = received_GX[:, 1:].sum(0)
        flat = waits.to_host(torch.cat([sent_GX[:, 0], received_GX[:, 0], counts_P]))
        sent, received, counts = flat[:size], flat[size : 2 * size], flat[2 * size :]
    with phase("permute"):
        token = _Pairs(crossing_TG, sum(sent))
        x_ND = token.gather(x_TD)
        flat_N = token.row_S * size + token.column_S
        gates_NP = gates_TGP.reshape(-1, places).index_select(0, flat_N)
    with phase("dispatch"):
        x_ND = exchange(x_ND, group, received, sent, way.wire)
        gates_NP = exchange(gates_NP, group, received, sent)
    with phase("permute"):
        pair = _Pairs(gates_NP != 0, sum(counts))
        x_SD = pair.gather(x_ND)
    y_SO = compute(x_SD, RowCounts(counts, counts_P))
    with phase("unpermute"):
        y_NO = pair.total(y_SO, gates_NP)
    with phase("combine"):
        y_NO = exchange(y_NO, group, sent, received, way.wire)
    with phase("unpermute"):
        return token.total(y_NO, None)


class _Pairs:
    """The true entries of a mask [A, B], `count` of them, column by column: (row, column) pairs."""

    def __init__(self, mask_AB: Tensor, count: int) -> None:
        self.size, self.columns = mask_AB.shape
        self.bags: bags.Bags | None = None
        if mask_AB.is_cuda:
            self.row_S, self.column_S, self.bags = bags.bags_of_mask(mask_AB, count)
        else:
            self.column_S, self.row_S = mask_AB.T.nonzero(as_tuple=True)

    def gather(self, x_AD: Tensor) -> Tensor:
        """[S, D]: the row of x of each pair."""
        if self.bags is not None:
            return bags.gather(x_AD, self.bags)
        return x_AD.index_select(0, self.row_S)

    def total(self, y_SO: Tensor, gates_AB: Tensor | None) -> Tensor:
        """[A, O]: the sum over each row's pairs, times their gates."""
        flat_S = self.row_S * self.columns + self.column_S
        if self.bags is not None:
            gates_N = None
            if gates_AB is not None:
                flat_N = flat_S.index_select(0, self.bags.row_N)
                gates_N = gates_AB.reshape(-1).index_select(0, flat_N).to(y_SO.dtype)
            return bags.sum_rows(y_SO, gates_N, self.bags)
        if gates_AB is not None:
            gate_S = gates_AB.reshape(-1).index_select(0, flat_S)
            y_SO = y_SO * gate_S.to(y_SO.dtype).unsqueeze(1)
        return y_SO.new_zeros((self.size, y_SO.shape[1])).index_add(0, self.row_S, y_SO)


def _gates_by_place(places_TK: Tensor, gates_TK: Tensor, way: Way) -> Tensor:
    """[T, G, P] gates; zero where a token has no slot."""
    gates = gates_TK.new_zeros((places_TK.shape[0], way.places + 1))  # + 1 for dropped slots
    gates = gates.scatter(1, places_TK.clamp(max=way.places), gates_TK)
    return gates[:, :-1].reshape(-1, way.group.size, way.per_rank)
