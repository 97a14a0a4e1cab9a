"""An independent second definition of shards, capacity, and of what must hold of tokens, experts
and prescribed choices. It catches faults in code that the layer and the oracle share.

Shape letters: T tokens, B global batch, D in, E experts, K top-k, G nominal ranks.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from moe import weights
from moe.cost.load import dispatches
from moe.spec import Cell, LayerSpec
from moe.strategies import degrees, rules_of
from moe.workload.checks import hot_slots, most_imbalance, nominal_ranks

Rows = tuple[int, int]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DISTINCT_DIM = 8  # from this many numbers on, equal rows cannot be chance
SPREAD = 8.0  # allowed deviation of a token's mean square from 1, in standard deviations
FEW_SLOTS = 3  # that rounding may add to or take from a rank's part of the batch
COMPARED = 64  # first numbers of a token, compared between tokens


def shards(cell: Cell) -> list[Rows]:
    """Half-open ranges of global token ids, one for each rank: as even as possible, larger ones
    first."""
    batch, ranks = cell.workload.batch_size, cell.placement.world_size
    sizes = [len(range(rank, batch, ranks)) for rank in range(ranks)]
    starts = [sum(sizes[:rank]) for rank in range(ranks)]
    return [(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def output_rows(cell: Cell, rank: int) -> Rows:
    """Half-open range of global ids of the tokens whose outputs a rank ends with."""
    if rank and rules_of(cell.strategy.name).single_rank:
        return 0, 0
    return input_rows(cell, rank)


def input_rows(cell: Cell, rank: int) -> Rows:
    """Half-open range of global ids of the tokens that a rank starts with."""
    if cell.workload.tokens == "replicated":
        return 0, cell.workload.batch_size
    return shards(cell)[rank]


def extents(cell: Cell) -> list[Rows]:
    """Ranges of tokens that capacity, expert choice and the balancing loss treat together."""
    if cell.layer.router.scope == "global":
        return [(0, cell.workload.batch_size)]
    return [bounds for bounds in shards(cell) if bounds[0] < bounds[1]]


def places_per_expert(layer: LayerSpec, tokens: int) -> int:
    """ceil(factor * K * T / E), exactly in decimals, at most T (GShard, arXiv 2006.16668, section
    2.2; expert choice, arXiv 2202.09368, section 3.2)."""
    factor = Fraction(str(layer.router.capacity_factor)) or Fraction(1)
    return min(tokens, math.ceil(factor * layer.topk * tokens / layer.num_experts))


def as_sent(cell: Cell, x_ND: Tensor) -> Tensor:
    """Tokens as routed experts receive them: rounded where they travel in a coarser dtype. Rounding
    can move a hidden unit over the kink of its activation, which changes a gradient by much."""
    if not dispatches(cell) or degrees(cell).ep == 1:
        return x_ND
    wire = weights.dtype_of(cell.strategy.comm_dtype or cell.layer.dtype)
    return x_ND.to(wire).to(x_ND.dtype)


# Checks of what the layer and the oracle share.


def tokens_spread(x_BD: Tensor) -> bool:
    """Whether every token's numbers have a mean square near 1, as those of U(-sqrt(3), sqrt(3)) do,
    whose squares have a variance of 0.8."""
    squares_B = (x_BD.double() ** 2).mean(1)
    return bool(((squares_B - 1).abs() <= SPREAD * (0.8 / x_BD.shape[1]) ** 0.5).all())


def tokens_differ(cell: Cell, x_BD: Tensor) -> bool:
    """Whether no two tokens begin with the same numbers; True where D is too small to tell."""
    firsts = x_BD[:, :COMPARED].float()
    return cell.layer.dim < DISTINCT_DIM or len(firsts.unique(dim=0)) == len(x_BD)


def experts_differ(layer: LayerSpec, numbers_EN: Tensor) -> bool:
    """Whether no two rows, the first numbers of each expert, are the same; shared experts
    included."""
    return layer.dim < DISTINCT_DIM or len(numbers_EN.unique(dim=0)) == len(numbers_EN)


def prescribed_right(cell: Cell, allowed_BE: Tensor, trace_NK: Tensor | None) -> bool:
    """Whether each token has K experts and the choice is what the workload's name promises
    (docs/workloads.md). `moe.verify.golden` checks the random part of it."""
    layer, work, ranks = cell.layer, cell.workload, nominal_ranks(cell)
    batch, experts, topk = work.batch_size, layer.num_experts, layer.topk
    if allowed_BE.shape != (batch, experts) or bool((allowed_BE.sum(1) != topk).any()):
        return False
    counts_E = allowed_BE.sum(0)
    slots_BG = allowed_BE.view(batch, ranks, -1).sum(2) if experts % ranks == 0 else None
    if work.kind == "balanced":
        even = int(counts_E.max() - counts_E.min()) <= 1
        if slots_BG is None:
            return even
        parts = [slots_BG[slice(*rows)].sum(0) for rows in (*shards(cell), (0, batch))]
        return even and all(int(part.max() - part.min()) <= 1 for part in parts)
    if work.kind == "k_hot":  # every token has hot experts first, and all tokens the same ones
        hot = min(int(work.parameter), topk)
        every = counts_E.sort(descending=True)[1][: int(work.parameter)]
        return bool((allowed_BE[:, every].sum(1) == hot).all())
    if work.kind == "trace":
        assert trace_NK is not None
        rows = trace_NK.cpu().long()[torch.arange(batch) % len(trace_NK)]
        return bool(allowed_BE.gather(1, rows).all())
    if work.kind == "zipf":
        return True
    assert slots_BG is not None
    if work.kind == "hot_rank":
        return _is_hot(slots_BG[:, 0], hot_slots(cell))
    return _falls_off(cell, slots_BG.sum(0))


def _is_hot(slots_B: Tensor, wanted: float) -> bool:
    """Whether every token has `wanted` slots on the hot rank, rounded down or up at random, with a
    mean within 5 standard deviations of the rounding."""
    lowest, part = math.floor(wanted), wanted - math.floor(wanted)
    if part == 0:
        return bool((slots_B == lowest).all())
    rounded = bool(((slots_B == lowest) | (slots_B == lowest + 1)).all())
    chance = 5 * math.sqrt(part * (1 - part) / len(slots_B))
    return rounded and abs(float(slots_B.double().mean()) - wanted) <= chance


def _falls_off(cell: Cell, slots_G: Tensor) -> bool:
    """Whether slots fall from rank to rank and the first has the target, within the rounding of a
    few slots."""
    target = min(cell.workload.parameter, most_imbalance(cell))
    mean = float(slots_G.sum()) / len(slots_G)
    falling = int(slots_G.diff().max()) <= FEW_SLOTS
    return falling and abs(float(slots_G[0]) - target * mean) <= FEW_SLOTS
