"""A cell's layer, of this project's strategies or of a peer. Torch-free until one is built."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from moe.parallel.refusals import one_of
from moe.peers.registry import layer_of, limits_of
from moe.spec import PEER, Cell
from moe.strategies import names, rules_of
from moe.strategies.checks import check_fields

if TYPE_CHECKING:
    from torch import Tensor

    from moe.layer.base import MoELayer
    from moe.parallel.comm import Comm


def supports(cell: Cell) -> None:
    """Raises Unsupported, naming field, value, what is allowed and what to do."""
    name = cell.strategy.name
    if name.startswith(PEER):
        limits = limits_of(name)
        limits.refuse_graph(cell)
        supports(limits.equivalent(cell))
        limits.refuse(cell)
        return
    one_of("strategy", name, names())
    check_fields(cell)
    rules_of(name).refuse(cell)


def build(cell: Cell, comm: Comm, trace_BK: Tensor | None = None) -> MoELayer:
    """The layer of this rank; `trace_BK` are expert ids per token for workload.kind=trace.

    Collective: every rank builds the same cells in the same order. Raises Unsupported.
    """
    supports(cell)
    name = cell.strategy.name
    if name.startswith(PEER):
        return layer_of(name)(cell, comm, trace_BK)
    layer: type[MoELayer] = import_module(f"moe.strategies.{name}.layer").LAYER
    return layer(cell, comm, trace_BK)
