"""peer_liger: Liger Kernel's fused layer, as it is shipped.

One function, forward and backward: the gather of rows is part of its first product. The host waits
once a forward pass, for the number of tiles. Gates are float32, as transformers' Mixtral gives them
to it; their gradients are added up in the dtype of the outputs.
Shape letters: T tokens on this rank, D in, H hidden, E experts, K top-k.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moe.layer.weight_store import FusedWeights
from moe.peers.fused import FusedExperts, FusedPeer


class Liger(FusedExperts):
    def __init__(self, fused: FusedWeights) -> None:
        super().__init__(fused)
        from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

        self.function: Any = LigerFusedMoEFunction

    def forward(self, x_TD: Tensor, indices_TK: Tensor, gates_TK: Tensor) -> Tensor:
        indices_TK = indices_TK.to(torch.int32)
        y_TD: Tensor = self.function.apply(
            x_TD, self.gate_up_proj, self.down_proj, indices_TK, gates_TK
        )
        return y_TD


class Peer(FusedPeer):
    def make_system(self) -> nn.Module:
        return Liger(self.fused())
