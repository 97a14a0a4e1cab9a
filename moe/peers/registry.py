"""Finds peers, their limits and their code. Torch-free."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from moe.peers.support import LIMITS, Limits
from moe.spec import PEER, Cell, Unsupported

if TYPE_CHECKING:
    from moe.layer.base import MoELayer

OWN = tuple(LIMITS)
FOREIGN = "moe_peer_"


def _module(name: str) -> str:
    """The module of strategy `name`; raises Unsupported for a peer that is not there."""
    short = name.removeprefix(PEER)
    if short in LIMITS:
        return f"moe.peers.{short}"
    foreign = FOREIGN + short
    if not foreign.isidentifier() or find_spec(foreign) is None:
        known = "|".join(PEER + one for one in OWN)
        raise Unsupported("strategy", name, f"{known} or a module {FOREIGN}<name>",
                          f"put {foreign}.py on PYTHONPATH or choose one of these")  # fmt: skip
    return foreign


def limits_of(name: str) -> Limits:
    """Limits of strategy `name`; raises Unsupported if there is no such peer."""
    module, short = _module(name), name.removeprefix(PEER)
    limits: Limits = LIMITS[short] if short in LIMITS else import_module(module).LIMITS
    return limits


def layer_of(name: str) -> type[MoELayer]:
    """The class that builds strategy `name`; imports torch."""
    layer: type[MoELayer] = import_module(_module(name)).Peer
    return layer


def equivalent(cell: Cell) -> Cell:
    """The cell itself; for a peer, the cell of this project with the same weights and messages."""
    if not cell.strategy.name.startswith(PEER):
        return cell
    return limits_of(cell.strategy.name).equivalent(cell)


def check_installed(cell: Cell) -> None:
    """Raises Unsupported, naming what is missing and how to get it."""
    if not cell.strategy.name.startswith(PEER):
        return
    limits = limits_of(cell.strategy.name)
    missing = limits.missing()
    if missing:
        raise Unsupported("strategy", cell.strategy.name,
                          f"where {limits.system} is installed ({', '.join(missing)} is not)",
                          limits.install)  # fmt: skip
