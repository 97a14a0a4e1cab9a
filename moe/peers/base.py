"""Another system's layer in the place of this project's: the same weights, tokens and routing.

Shape letters: T tokens on this rank, D in, H hidden, O out, E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from moe import phases, weights
from moe.layer.base import MoELayer, known_gradient
from moe.layer.experts import Experts
from moe.layer.router import Routing
from moe.parallel.comm import Comm
from moe.peers.instrument import Listening, Part, timed
from moe.peers.registry import limits_of
from moe.spec import Cell

View = Callable[[nn.Parameter], Tensor]  # of a parameter: itself, or its gradient
Matrices = Iterator[tuple[int, dict[str, Tensor]]]


class PeerLayer(MoELayer):
    """A subclass makes the `system` from `weights_of`, says where those weights are in it, and
    calls `run` in `forward`."""

    def __init__(self, cell: Cell, comm: Comm, trace_BK: Tensor | None = None) -> None:
        self.variant = limits_of(cell.strategy.name).variant(cell)
        super().__init__(cell, comm, trace_BK)
        self.system: Any = self.make_system()
        self.requires_grad_(cell.workload.mode == "train")

    # What a peer says.

    def make_system(self) -> nn.Module:
        """The other system's module with this rank's weights; may import it, and be collective."""
        raise NotImplementedError

    def matrices(self, of: View) -> Matrices:
        """`of` the parameters, cut into each expert's matrices (as `weights_of` without the E):
        how the correctness check finds gradients. Only asked in mode=train."""
        raise NotImplementedError

    def timed_parts(self) -> Sequence[Part]:
        """Methods inside the system whose time is a phase; the rest of it is `other`."""
        return ()

    # What a peer is made of.

    def weights_of(self, name: str, ids: Sequence[int] | None = None) -> Tensor:
        """Matrix `name` of all experts or of `ids`, stacked, in the layer's dtype: w1, w3 are
        [E, H, D], w2 is [E, O, H], b1, b3 are [E, H], b2 is [E, O] (see moe.weights)."""
        ids = range(self.layer.num_experts) if ids is None else ids
        columns = (0, self.layer.hidden)
        return weights.stacked(self.layer, ids, name, columns).to(self.comm.device)

    @property
    def own_experts(self) -> range:
        """Ids of this rank's experts, where experts are spread evenly over the ranks."""
        per_rank = self.layer.num_experts // self.comm.world_size
        return range(self.comm.rank * per_rank, (self.comm.rank + 1) * per_rank)

    def run(self, *arguments: Tensor) -> Any:
        """Calls the system; watches it when somebody counts bytes or records phases."""
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
        """Tells the skew how many rows this rank's experts were given."""
        if self.seen is not None:
            self.seen.slots += slots

    # What the system has of its own, and the project's layers have not.

    def make_experts(self) -> Experts:
        return Elsewhere(self)

    def use(self, kernel: str) -> None:
        """Its kernels are its own."""

    def tune(self, x_TD: Tensor) -> dict[str, Any]:
        return {"name": self.variant, "how": "the system's own", "candidates_ms": {}}


class Elsewhere(Experts):
    """No experts here: the system holds them, and the correctness check is told their gradients."""

    def __init__(self, layer: PeerLayer) -> None:
        super().__init__(layer.layer, (), (0, layer.layer.hidden), layer.comm.device)
        self.matrices = layer.matrices  # a bound method: a layer is no part of its own parts

    def by_expert(self, tensors: Mapping[str, Tensor]) -> Matrices:
        with torch.no_grad():
            yield from self.matrices(known_gradient)


class Gate(nn.Module):
    """In the place of a system's router: calls the project's."""

    def __init__(self, layer: PeerLayer) -> None:
        super().__init__()
        self.choose: Callable[[Tensor], Routing] = layer.route
