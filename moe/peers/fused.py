"""The base of peers that are a function of tokens, experts' matrices and routing, on one process or
on each rank for itself: spread as strategy=simple.

Shape letters: T tokens on this rank, D in, H hidden, E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from moe.layer.weight_store import FusedWeights
from moe.peers.base import Matrices, PeerLayer, View
from moe.peers.instrument import Part
from moe.strategies.simple.layer import Simple


class FusedExperts(nn.Module):
    """All experts' matrices in two parameters, as most systems hold them: `gate_up_proj` [E, 2H, D]
    and `down_proj` [E, D, H]. A subclass computes the layer with them."""

    def __init__(self, fused: FusedWeights) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Parameter(fused.fc1), nn.Parameter(fused.fc2)

    def forward(self, x_TD: Tensor, indices_TK: Tensor, gates_TK: Tensor) -> Tensor:
        """[T, D]: the gated sum over each token's experts. Indices are int64, gates float32."""
        raise NotImplementedError


def split(of: View, experts: Any) -> Matrices:
    """Yields (expert, matrices) from the two parameters of `FusedExperts` or of a module with the
    same names and shapes."""
    fc1_EFD, fc2_EDH = of(experts.gate_up_proj), of(experts.down_proj)
    for e, (fc1_FD, fc2_DH) in enumerate(zip(fc1_EFD, fc2_EDH, strict=True)):
        w1, w3 = fc1_FD.chunk(2)
        yield e, {"w1": w1, "w3": w3, "w2": fc2_DH}


class FusedPeer(PeerLayer, Simple):
    """A subclass builds its `FusedExperts` in `make_system`."""

    def matrices(self, of: View) -> Matrices:
        yield from split(of, self.system)

    def timed_parts(self) -> Sequence[Part]:
        return [Part(self.system, "forward", "experts")]

    def forward(self, x_TD: Tensor) -> Tensor:
        routing = self.route(x_TD)
        self.count(routing.indices_TK.numel())
        y_TD: Tensor = self.run(x_TD, routing.indices_TK, routing.gates_TK)
        return y_TD
