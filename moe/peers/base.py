"""Another system's layer in the place of this project's: the same weights, tokens and routing.

Shape letters: T tokens on this rank, D in, O out, E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from moe import peers, weights
from moe.comm import Comm
from moe.experts import Experts
from moe.layer import MoELayer
from moe.router import Routing
from moe.spec import Cell


class PeerLayer(MoELayer):
    """A subclass makes the `system` from `weights_of` and calls it in `forward`."""

    def __init__(self, cell: Cell, comm: Comm, trace_NK: Tensor | None = None) -> None:
        self.variant = peers.limits_of(cell.strategy.name).variant(cell)
        super().__init__(cell, comm, trace_NK)
        self.system = self.make_system()
        self.requires_grad_(cell.workload.mode == "train")

    # What a peer says.

    def make_system(self) -> nn.Module:
        """The other system's module with this rank's weights; may import it, and be collective."""
        raise NotImplementedError

    # What a peer is made of.

    def weights_of(self, name: str, ids: Sequence[int] | None = None) -> Tensor:
        """Matrix `name` of all experts or of `ids`, stacked, in the layer's dtype: w1, w3 are
        [E, H, D], w2 is [E, O, H], b1, b3 are [E, H], b2 is [E, O] (see moe.weights)."""
        ids = range(self.layer.num_experts) if ids is None else ids
        columns = (0, self.layer.hidden)
        return weights.stacked(self.layer, ids, name, columns).to(self.comm.device)

    def count(self, slots: int) -> None:
        """Tells the skew how many rows this rank's experts were given."""
        if self.seen is not None:
            self.seen.slots += slots

    # What the system has of its own, and the project's layers have not.

    def make_experts(self) -> Experts:
        return self.hold(())  # the system holds them

    def use(self, kernel: str) -> None:
        """Its kernels are its own."""

    def tune(self, x_TD: Tensor) -> dict[str, Any]:
        return {"name": self.variant, "how": "the system's own", "candidates_ms": {}}


class Gate(nn.Module):
    """In the place of a system's router: calls the project's."""

    def __init__(self, layer: PeerLayer) -> None:
        super().__init__()
        self.route = layer.route  # a bound method: the layer is no child of its own part

    def choose(self, x_TD: Tensor) -> Routing:
        return self.route(x_TD)
