"""peer_transformers: the Mixtral block of transformers, on one process or on each rank for itself.

Variants are its ways of computing the experts: grouped_mm, eager (a loop), batched_mm (a copy of an
expert's weights for every slot). It has no communication: replicated tokens are computed by every
rank, sharded ones by their own, as by strategy=simple; their gradients are added up in the end.
Shape letters: T tokens on this rank, D in, F = 2H, E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moe.peers.base import Gate, Matrices, PeerLayer, View
from moe.peers.fused import split
from moe.peers.instrument import Part
from moe.strategies.simple.layer import Simple


class MixtralGate(Gate):
    """Returns what MixtralTopKRouter does: logits, weights and indices of the chosen."""

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        routing = self.choose(x_TD)
        return routing.logits_TE, routing.gates_TK, routing.indices_TK


class Peer(PeerLayer, Simple):
    def make_system(self) -> nn.Module:
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

        layer = self.layer
        config = MixtralConfig(hidden_size=layer.dim, intermediate_size=layer.hidden,
                               num_local_experts=layer.num_experts,
                               num_experts_per_tok=layer.topk)  # fmt: skip
        config._experts_implementation = self.variant
        with torch.device("meta"):
            block: Any = MixtralSparseMoeBlock(config)
        block.gate = MixtralGate(self)
        fused = self.fused()
        state = {"experts.gate_up_proj": fused.fc1, "experts.down_proj": fused.fc2}
        block.load_state_dict(state, assign=True)
        return block

    def matrices(self, of: View) -> Matrices:
        yield from split(of, self.system.experts)

    def timed_parts(self) -> Sequence[Part]:
        return [Part(self.system.experts, "forward", "experts")]

    def forward(self, x_TD: Tensor) -> Tensor:
        self.count(x_TD.shape[0] * self.layer.topk)
        y_TD: Tensor = self.run(x_TD.unsqueeze(0)).squeeze(0)
        return y_TD
