"""The base of other systems' layers: same weights, tokens and routing as this project's.

Shape letters: T tokens on this rank, D in, H hidden, O out, E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from moe import phases, weights
from moe.layer import weight_store
from moe.layer.base import MoELayer, known_gradient
from moe.layer.experts import Experts
from moe.layer.router import Routing
from moe.layer.weight_store import FusedWeights
from moe.parallel.comm import Comm
from moe.peers.instrument import Listening, Part, timed
from moe.peers.registry import limits_of
from moe.spec import Cell

View = Callable[[nn.Parameter], Tensor]  # of a parameter: itself, or its gradient
Matrices = Iterator[tuple[int, dict[str, Tensor]]]


class PeerLayer(MoELayer):
    """A subclass builds `system` from `weights_of`, maps its weights in `matrices`, and calls `run`
    in `forward`."""

    def __init__(self, cell: Cell, comm: Comm, trace_BK: Tensor | None = None) -> None:
        self.variant = limits_of(cell.strategy.name).variant(cell)
        super().__init__(cell, comm, trace_BK)
        self.system: Any = self.make_system()
        self.requires_grad_(cell.workload.mode == "train")

    # Overridden by a peer.

    def make_system(self) -> nn.Module:
        """The other system's module with this rank's weights. May import the system, and be
        collective."""
        raise NotImplementedError

    def matrices(self, of: View) -> Matrices:
        """Yields (expert, matrices) from of(parameter), shaped as `weights_of` without the E. The
        correctness check reads gradients this way, in mode=train only."""
        raise NotImplementedError

    def timed_parts(self) -> Sequence[Part]:
        """Methods of the system whose time is a phase; the rest is `other`."""
        return ()

    # Building blocks of a peer.

    def weights_of(self, name: str, ids: Sequence[int] | None = None) -> Tensor:
        """Matrix `name` of all experts or of `ids`, stacked, in the layer's dtype: w1, w3 are [E,
        H, D], w2 is [E, O, H], b1, b3 are [E, H], b2 is [E, O] (see moe.weights)."""
        ids = range(self.layer.num_experts) if ids is None else ids
        columns = (0, self.layer.hidden)
        return weights.stacked(self.layer, ids, name, columns, self.comm.device)

    def fused(self) -> FusedWeights:
        """All experts' matrices as this project's kernels hold them, and share them on a GPU."""
        ids, columns = range(self.layer.num_experts), (0, self.layer.hidden)
        fused = weight_store.matrices(self.layer, ids, columns, self.comm.device)
        self.experts.shared_weights = fused if self.comm.device.type == "cuda" else None
        return fused

    @property
    def own_experts(self) -> range:
        """Ids of this rank's experts, if experts are spread evenly over the ranks."""
        per_rank = self.layer.num_experts // self.comm.world_size
        return range(self.comm.rank * per_rank, (self.comm.rank + 1) * per_rank)

    def run(self, *arguments: Tensor) -> Any:
        """Calls the system; counts bytes and phases if either is being recorded."""
        counted = self.comm.is_counting and self.comm.world_size > 1
        if not counted and not phases.active():
            return self.system(*arguments)
        with ExitStack() as watching:
            if counted:
                train = self.cell.workload.mode == "train"
                watching.enter_context(Listening(self.comm, train))
            if phases.active():
                watching.enter_context(timed(self.timed_parts()))
            return self.system(*arguments)

    def count(self, slots: int) -> None:
        """Adds to the rows this rank's experts were given, for the skew."""
        if self.seen is not None:
            self.seen.slots += slots

    # Replaced because the system has its own.

    def make_experts(self) -> Experts:
        return Elsewhere(self)

    def use(self, kernel: str) -> None:
        """Does nothing: the system chooses its kernels."""

    def tune(self, x_TD: Tensor) -> dict[str, Any]:
        return {"name": self.variant, "how": "the system's own", "candidates_ms": {}}


class Elsewhere(Experts):
    """Holds no experts; yields the system's gradients to the correctness check."""

    def __init__(self, layer: PeerLayer) -> None:
        super().__init__(layer.layer, (), (0, layer.layer.hidden), layer.comm.device)
        self.matrices = layer.matrices  # a bound method, as a module must not contain its parent

    def by_expert(self, tensors: Mapping[str, Tensor]) -> Matrices:
        with torch.no_grad():
            yield from self.matrices(known_gradient)


class Gate(nn.Module):
    """Replaces the system's router by the project's."""

    def __init__(self, layer: PeerLayer) -> None:
        super().__init__()
        self.choose: Callable[[Tensor], Routing] = layer.route
