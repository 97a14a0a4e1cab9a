"""peer_moe_ops: the operators of moe-ops, put together as its README does.

`permute` counts and copies rows by expert, `grouped_gemm` is called for both products (gate and up
in one), `unpermute` adds up with float32 gates. Nothing waits for the GPU.
Shape letters: T tokens on this rank, S = T*K slots, D in, H hidden, E experts, K top-k.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe.layer.weight_store import FusedWeights
from moe.peers.fused import FusedExperts, FusedPeer


class MoEOps(FusedExperts):
    def __init__(self, fused: FusedWeights) -> None:
        super().__init__(fused)
        import moe_ops

        self.permute: Any = moe_ops.permute
        self.grouped_gemm: Any = moe_ops.grouped_gemm
        self.unpermute: Any = moe_ops.unpermute

    def forward(self, x_TD: Tensor, indices_TK: Tensor, gates_TK: Tensor) -> Tensor:
        indices_TK = indices_TK.to(torch.int32)
        x_SD, places_S, ends = self.permute(x_TD, indices_TK, E=len(self.gate_up_proj))
        gate_SH, up_SH = self.grouped_gemm(x_SD, self.gate_up_proj, ends).chunk(2, dim=1)
        y_SD = self.grouped_gemm(F.silu(gate_SH) * up_SH, self.down_proj, ends)
        y_TD: Tensor = self.unpermute(y_SD, places_S, gates_TK, *gates_TK.shape)
        return y_TD


class Peer(FusedPeer):
    def make_system(self) -> nn.Module:
        return MoEOps(self.fused())
