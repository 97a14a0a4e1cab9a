"""How many ranks share what: arithmetic of degrees, torch-free."""

from __future__ import annotations

from typing import NamedTuple

from moe.spec import Cell


class Degrees(NamedTuple):
    """Ranks that split the experts (ep), an expert's hidden units (tp), and hold replicas (dp)."""

    ep: int
    tp: int
    dp: int


def _small_divisor(size: int) -> int:
    """The largest divisor that is at most the square root."""
    return max(n for n in range(1, int(size**0.5) + 1) if size % n == 0)


def degrees(cell: Cell) -> Degrees:
    """What `strategy.ep` and `strategy.tp` of 0 stand for; the product is R for a valid cell."""
    size, strategy = cell.placement.world_size, cell.strategy
    if strategy.name == "ep":
        return Degrees(strategy.ep or size, 1, 1)
    if strategy.name == "tp":
        return Degrees(1, strategy.tp or size, 1)
    if strategy.name == "ep_tp":
        tp = strategy.tp or (size // strategy.ep if strategy.ep else _small_divisor(size))
        return Degrees(strategy.ep or size // tp, tp, 1)
    if strategy.name == "dp_ep":
        ep = strategy.ep or size // _small_divisor(size)
        return Degrees(ep, 1, size // ep)
    return Degrees(1, 1, size)
