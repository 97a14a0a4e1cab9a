"""peer_transformers: the Mixtral block of transformers, on one process or on each rank for itself.

Variants are its ways of computing the experts: grouped_mm, eager (a loop), batched_mm (a copy of an
expert's weights for every slot). It has no communication: replicated tokens are computed by every
rank, sharded ones by their own, as by strategy=simple.
Shape letters: T tokens on this rank, D in, E experts, K top-k.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe.peers.base import Gate, PeerLayer


class MixtralGate(Gate):
    """Returns what MixtralTopKRouter does: logits, weights and indices of the chosen."""

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        routing = self.choose(x_TD)
        return routing.logits_TE, routing.gates_TK, routing.indices_TK


class Peer(PeerLayer):
    def routed_rows(self) -> tuple[int, int]:
        return super().routed_rows() if self.sharded else (0, self.total)

    def make_system(self) -> nn.Module:
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

        layer = self.layer
        config = MixtralConfig(hidden_size=layer.dim, intermediate_size=layer.hidden,
                               num_local_experts=layer.num_experts,
                               num_experts_per_tok=layer.topk)  # fmt: skip
        config._experts_implementation = self.variant
        with torch.device("meta"):
            block = MixtralSparseMoeBlock(config)
        block.gate = MixtralGate(self)
        fc1_EFD = torch.cat([self.weights_of("w1"), self.weights_of("w3")], dim=1)
        held = {"experts.gate_up_proj": fc1_EFD, "experts.down_proj": self.weights_of("w2")}
        block.load_state_dict(held, assign=True)
        return block

    def replicated_parameters(self) -> list[nn.Parameter]:
        """On the whole batch every rank has the whole gradient already."""
        return list(self.parameters()) if self.sharded else []

    def forward(self, x_TD: Tensor) -> Tensor:
        self.count(x_TD.shape[0] * self.layer.topk)
        y_TD: Tensor = self.system(x_TD.unsqueeze(0)).squeeze(0)
        return y_TD
