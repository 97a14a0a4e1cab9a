"""The ways to spread the layer over ranks: what is supported, and how to build one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe import peers
from moe.spec import PEER, Cell
from moe.strategies.checks import supports

if TYPE_CHECKING:
    from torch import Tensor

    from moe.layer.base import MoELayer
    from moe.parallel.comm import Comm

__all__ = ["build", "supports"]


def build(cell: Cell, comm: Comm, trace_BK: Tensor | None = None) -> MoELayer:
    """The layer of this rank; `trace_BK` are expert ids per token for workload.kind=trace.

    Collective: every rank builds the same cells in the same order.
    """
    from moe.strategies.dp import Dp
    from moe.strategies.dp_ep import DpEp
    from moe.strategies.ep import Ep
    from moe.strategies.ep_tp import EpTp
    from moe.strategies.fsdp import Fsdp
    from moe.strategies.serial import Serial
    from moe.strategies.simple import Simple
    from moe.strategies.tp import Tp

    supports(cell)
    if cell.strategy.name.startswith(PEER):
        return peers.layer_of(cell.strategy.name)(cell, comm, trace_BK)
    kinds: dict[str, type[MoELayer]] = {
        "serial": Serial, "simple": Simple, "dp": Dp, "tp": Tp, "ep": Ep, "ep_tp": EpTp,
        "dp_ep": DpEp, "fsdp": Fsdp,
    }  # fmt: skip
    return kinds[cell.strategy.name](cell, comm, trace_BK)
