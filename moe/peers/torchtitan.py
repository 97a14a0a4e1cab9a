"""peer_torchtitan: torchtitan's MoE with its all-to-all token dispatcher.

Each rank holds E/R experts and routes its own tokens, as by strategy=ep with dispatcher=alltoall;
replicated tokens are gathered afterwards. Its experts compute in bfloat16 whatever they are given.
Shape letters: T tokens on this rank, D in, H hidden, E experts, K top-k, R ranks, L sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moe.peers.base import Gate, Matrices, PeerLayer, View
from moe.peers.instrument import Part
from moe.spec import LayerSpec

NAMES = {"w1": "w1_EFD", "w3": "w3_EFD", "w2": "w2_EDF"}


class TitanGate(Gate):
    """Returns what TokenChoiceTopKRouter does: scores and ids of the chosen, scores of all."""

    def forward(self, x_1TD: Tensor, bias: None) -> tuple[Tensor, Tensor, Tensor]:
        routing = self.choose(x_1TD[0])
        return (
            routing.gates_TK[None],
            routing.indices_TK[None].contiguous(),
            routing.logits_TE[None],
        )


class Peer(PeerLayer):
    def make_system(self) -> nn.Module:
        from torchtitan.distributed.utils import set_spmd_backend
        from torchtitan.models.common.moe import MoE

        set_spmd_backend("partial_dtensor")  # its dispatcher then uses the mesh it is given
        layer, size = self.layer, self.comm.world_size
        with torch.device(self.comm.device):
            system = MoE(_config(layer, len(self.own_experts)))
        experts = system.routed_experts.inner_experts
        for ours, theirs in NAMES.items():
            setattr(experts, theirs, nn.Parameter(self.weights_of(ours, self.own_experts)))
        if size > 1:
            system.routed_experts.token_dispatcher.wire_meshes(ep_mesh=self._mesh())
        system.router = TitanGate(self)
        experts.register_forward_pre_hook(self._told)
        return system.train(self.cell.workload.mode == "train")

    def _mesh(self) -> Any:
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(self.comm.device.type, (self.comm.world_size,),
                                mesh_dim_names=("ep",))  # fmt: skip

    def matrices(self, of: View) -> Matrices:
        experts = self.system.routed_experts.inner_experts
        stacks = {ours: of(getattr(experts, theirs)) for ours, theirs in NAMES.items()}
        for place, e in enumerate(self.own_experts):
            yield e, {name: stacked[place] for name, stacked in stacks.items()}

    def timed_parts(self) -> Sequence[Part]:
        routed = self.system.routed_experts
        return [
            Part(routed.token_dispatcher, "dispatch", "dispatch"),
            Part(routed.inner_experts, "forward", "experts"),
            Part(routed.token_dispatcher, "combine", "combine"),
        ]

    def _told(self, experts: nn.Module, given: tuple[Tensor, Tensor]) -> None:
        self.count(given[0].shape[0])

    def forward(self, x_TD: Tensor) -> Tensor:
        y_TD: Tensor = self.run(self.own_tokens(x_TD)[None])[0]
        return y_TD if self.sharded else self.gather_batch(y_TD)


def _config(layer: LayerSpec, per_rank: int) -> Any:
    """Config with plain parameters of this rank's experts, where torchtitan would shard DTensors
    over a mesh; its balancing bias is off."""
    from torchtitan.models.common.linear import Linear
    from torchtitan.models.common.moe import (
        GroupedExperts,
        MoE,
        RoutedExperts,
        TokenChoiceTopKRouter,
    )
    from torchtitan.models.common.token_dispatcher import AllToAllTokenDispatcher

    dim, num, topk = layer.dim, layer.num_experts, layer.topk
    gate = Linear.Config(in_features=dim, out_features=num)
    experts = GroupedExperts.Config(dim=dim, hidden_dim=layer.hidden, num_experts=per_rank)
    dispatcher = AllToAllTokenDispatcher.Config(num_experts=num, top_k=topk)
    return MoE.Config(
        num_experts=num,
        routed_experts=RoutedExperts.Config(inner_experts=experts, token_dispatcher=dispatcher),
        router=TokenChoiceTopKRouter.Config(num_experts=num, gate=gate, top_k=topk),
        load_balance_coeff=None,
    )
