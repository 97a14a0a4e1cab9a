"""peer_grouped: the two products with F.grouped_mm that anyone would write for PyTorch.

Slots are sorted by expert, and the ends of the experts' rows stay on the device.
Shape letters: T tokens on this rank, S = T*K slots, D in, H hidden, E experts, K top-k.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe.layer.experts import can_be_captured
from moe.peers.fused import FusedExperts, FusedPeer
from moe.spec import Unsupported


class Grouped(FusedExperts):
    def forward(self, x_TD: Tensor, indices_TK: Tensor, gates_TK: Tensor) -> Tensor:
        fc1, fc2 = self.gate_up_proj.transpose(1, 2), self.down_proj.transpose(1, 2)
        experts_S, order_S = indices_TK.flatten().sort()
        every_E = torch.arange(len(fc1), device=x_TD.device)
        ends_E = torch.searchsorted(experts_S, every_E, right=True, out_int32=True)
        x_SD = x_TD.index_select(0, order_S // indices_TK.shape[1])
        gate_SH, up_SH = F.grouped_mm(x_SD, fc1, offs=ends_E).chunk(2, dim=1)
        y_SD = F.grouped_mm(F.silu(gate_SH) * up_SH, fc2, offs=ends_E)
        y_SD = torch.empty_like(y_SD).index_copy_(0, order_S, y_SD)  # by token again
        gates_TK1 = gates_TK.unsqueeze(2).to(x_TD.dtype)
        return (y_SD.unflatten(0, gates_TK.shape) * gates_TK1).sum(1)


class Peer(FusedPeer):
    def make_system(self) -> nn.Module:
        return Grouped(self.fused())

    def tune(self, x_TD: Tensor) -> dict[str, Any]:
        if self.wait_free and not can_be_captured("grouped", x_TD.dtype, x_TD.device):
            raise Unsupported("measure.graph", "on", "off on this GPU, whose F.grouped_mm reads "
                              "the experts' rows on the host", "set measure.graph=off")  # fmt: skip
        return super().tune(x_TD)
