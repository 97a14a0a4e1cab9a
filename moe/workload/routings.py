"""Workloads that prescribe the experts of every token.

The choice follows from (seed, token id) and, for workloads about ranks, from the nominal number of
ranks. It never depends on the strategy, the rank that asks, or the batch size.

Shape letters: T tokens asked for, E experts, K top-k, G nominal ranks, P = E/G experts of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from moe import weights
from moe.spec import Cell, Unsupported
from moe.workload.checks import check_workload, hot_slots, most_imbalance, nominal_ranks

CHOICE, ORDER, COIN = 0, 1, 2  # items of the "routing" stream: per token and expert, expert, token
GOLDEN = 0x9E3779B1  # 2**32 / golden ratio: multiples of it mod 2**32 are evenly spread
TURN = 32  # bits of a position modulo 2**32
SMALLEST = 2.0**-26  # below the spacing of the uniforms


def allowed(cell: Cell, bounds: tuple[int, int], trace_NK: Tensor | None) -> Tensor:
    """[T, E] bool with exactly K true per row, for the global token ids of `bounds`.

    Raises Unsupported for an impossible workload.
    """
    check_workload(cell)
    if cell.workload.kind == "trace":
        return _trace(cell, bounds, trace_NK)
    return MAKERS[cell.workload.kind](cell, bounds)


def _uniform(cell: Cell, bounds: tuple[int, int], width: int, item: int) -> Tensor:
    """[T, width] float64 in [0, 1]; any rows can be generated without those before them."""
    flat = torch.empty((bounds[1] - bounds[0]) * width)
    weights.uniform_(flat, cell.workload.seed, item, "routing", start=bounds[0] * width)
    return flat.double().add_(1).mul_(0.5).view(-1, width)


def _best(scores: Tensor, count: Tensor) -> Tensor:
    """Marks the `count` largest along the last axis; ties go to the lowest index."""
    place = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return place < count


def _best_k(scores_TE: Tensor, topk: int) -> Tensor:
    """`_best` with the same count for every row. Several times faster: sorts only rows with
    ties."""
    mask_TE = scores_TE >= scores_TE.topk(topk, dim=1)[0][:, -1:]
    tied_T = mask_TE.sum(1) != topk
    if bool(tied_T.any()):
        mask_TE[tied_T] = _best(scores_TE[tied_T], torch.tensor(topk))
    return mask_TE


def _marked(cell: Cell, indices_TK: Tensor) -> Tensor:
    shape = (indices_TK.shape[0], cell.layer.num_experts)
    return torch.zeros(shape, dtype=torch.bool).scatter_(1, indices_TK, True)


def _popularity(cell: Cell) -> Tensor:
    """[E] 0 for the most popular expert, 1 for the next, ...: a seeded permutation."""
    return _uniform(cell, (0, cell.layer.num_experts), 1, ORDER).view(-1).argsort().argsort()


# balanced


def _primes(number: int) -> list[int]:
    factors, factor = [], 2
    while number > 1:
        while number % factor == 0:
            factors.append(factor)
            number //= factor
        factor += 1
    return factors


@lru_cache(maxsize=64)
def spread_order(experts: int, ranks: int) -> tuple[int, ...]:
    """An order of the experts in which every window is spread evenly over experts and ranks.

    Mixed-radix digit reversal: the digits of i to the base f1, f2, ... are read in reverse, with
    the prime factors of gcd(E, G) first. Consecutive i then go to different ranks, and any
    f1*...*fj consecutive i go once to each of that many blocks of experts, so counts per block
    differ by at most one in any window.
    """
    common = math.gcd(experts, ranks)
    order = [0]
    stride = experts
    for factor in _primes(common) + _primes(experts // common):
        stride //= factor
        order = [first + digit * stride for digit in range(factor) for first in order]
    return tuple(order)


def _balanced(cell: Cell, bounds: tuple[int, int]) -> Tensor:
    """Slot t*K + j takes the next expert of `spread_order`; the seed sets where it starts."""
    experts, topk = cell.layer.num_experts, cell.layer.topk
    order = torch.tensor(spread_order(experts, nominal_ranks(cell)))
    slots = torch.arange(bounds[0] * topk, bounds[1] * topk) + cell.workload.seed
    return _marked(cell, order[slots % experts].view(-1, topk))


# skewed by expert


def _zipf(cell: Cell, bounds: tuple[int, int]) -> Tensor:
    """K draws without replacement with weights 1/rank^s, as the K largest of log weight + Gumbel
    noise (Yellott 1977). Without replacement, K > 1 is less skewed than the weights."""
    noise_TE = _uniform(cell, bounds, cell.layer.num_experts, CHOICE)
    gumbel_TE = -(-(noise_TE.clamp(SMALLEST, 1 - SMALLEST).log())).log()
    weight_E = -cell.workload.parameter * (_popularity(cell) + 1).double().log()
    return _best_k(gumbel_TE + weight_E, cell.layer.topk)


def _k_hot(cell: Cell, bounds: tuple[int, int]) -> Tensor:
    """Hot experts first, uniformly; the others uniformly where a token has slots left."""
    scores_TE = _uniform(cell, bounds, cell.layer.num_experts, CHOICE)
    hot_E = _popularity(cell) < int(cell.workload.parameter)
    return _best_k(scores_TE + 2 * hot_E, cell.layer.topk)


# skewed by nominal rank


def _hot_rank(cell: Cell, bounds: tuple[int, int]) -> Tensor:
    """Nominal rank 0 gets `share` of a token's slots, rounded up or down by a seeded coin."""
    experts, topk, hot = cell.layer.num_experts, cell.layer.topk, hot_slots(cell)
    scores_TE = _uniform(cell, bounds, experts, CHOICE)
    up_T1 = _uniform(cell, bounds, 1, COIN) < hot - math.floor(hot)
    count_T1 = math.floor(hot) + up_T1.long()
    places = experts // nominal_ranks(cell)
    return torch.cat(
        [_best(scores_TE[:, :places], count_T1), _best(scores_TE[:, places:], topk - count_T1)], 1
    )


@lru_cache(maxsize=64)
def rank_edges(target: float, ranks: int, topk: int) -> tuple[int, ...]:
    """[G + 1] cumulative shares of a token's K slots by rank, in units of 2**-32 slots.

    Shares fall as 1/(rank + 1)^s; a bisection finds the s for which the first is target * K / G.
    """
    low, high = 0.0, 64.0
    for _ in range(80):
        exponent = (low + high) / 2
        first = 1 / sum((rank + 1) ** -exponent for rank in range(ranks))
        low, high = (exponent, high) if first < target / ranks else (low, exponent)
    parts = [(rank + 1) ** -low for rank in range(ranks)]
    parts[0] = min(target / ranks, 1.0)
    scale = (1 - parts[0]) / sum(parts[1:])
    edges = [0.0, parts[0]]
    for part in parts[1:]:
        edges.append(edges[-1] + part * scale)
    return (*(round(edge * topk * 2**TURN) for edge in edges[:-1]), topk << TURN)


def _imbalance(cell: Cell, bounds: tuple[int, int]) -> Tensor:
    """Every token has a fixed share of its slots on each rank, rounded so that all tokens together
    come as close to it as possible (systematic sampling from golden-ratio starts). Slots of a rank
    are uniform over its experts. No search per batch is needed, and small batches hit the target
    too."""
    ranks, experts = nominal_ranks(cell), cell.layer.num_experts
    scores_TE = _uniform(cell, bounds, experts, CHOICE)
    target = min(cell.workload.parameter, most_imbalance(cell))
    edges_G = torch.tensor(rank_edges(target, ranks, cell.layer.topk))
    start_T1 = torch.arange(*bounds).unsqueeze(1) * GOLDEN + cell.workload.seed * GOLDEN
    start_T1 &= (1 << TURN) - 1
    below_TG = -((start_T1 - edges_G) >> TURN)  # points start, start + 1, ... under each edge
    count_TG = below_TG.diff(dim=1)
    chosen = _best(scores_TE.view(-1, ranks, experts // ranks), count_TG.unsqueeze(2))
    return chosen.view(-1, experts)


# recorded


def _trace(cell: Cell, bounds: tuple[int, int], trace_NK: Tensor | None) -> Tensor:
    if trace_NK is None or trace_NK.dim() != 2 or trace_NK.shape[1] != cell.layer.topk:
        shape = None if trace_NK is None else tuple(trace_NK.shape)
        raise Unsupported("workload.trace", f"ids of shape {shape}",
                          f"[N, topk={cell.layer.topk}]", "hand the loaded trace over")  # fmt: skip
    rows_T = torch.arange(*bounds) % trace_NK.shape[0]
    return _marked(cell, trace_NK.cpu()[rows_T].long())


MAKERS: dict[str, Callable[[Cell, tuple[int, int]], Tensor]] = {
    "balanced": _balanced,
    "zipf": _zipf,
    "k_hot": _k_hot,
    "hot_rank": _hot_rank,
    "imbalance": _imbalance,
}
