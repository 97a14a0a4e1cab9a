"""peer_deepspeed: DeepSpeed's MoE layer, experts spread over the ranks.

legacy  deepspeed.moe.layer.MoE: no tokens are dropped, so every expert is padded to the fullest one
        of all ranks (an all-reduce of a maximum); two equal all-to-alls. Any torch module may be an
        expert; here it is two (gated: three) linear layers.
autoep  the layer that its AutoEP puts in the place of transformers' Mixtral block: uneven
        all-to-alls, grouped products.

Each rank routes its own tokens, as by strategy=ep with dispatcher=alltoall; replicated tokens are
gathered afterwards.
Shape letters: T tokens on this rank, D in, H hidden, E experts, K top-k, R ranks, L sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe import weights
from moe.layer.activations import activate
from moe.peers.base import Gate, Matrices, PeerLayer, View
from moe.peers.instrument import Part


class LegacyGate(Gate):
    """DeepSpeed's gating functions on the chosen experts' logits: choice and gates are this
    project's, places and padding DeepSpeed's. Dropping and sampling are off."""

    def __init__(self, layer: PeerLayer) -> None:
        super().__init__(layer)
        self.topk, self.ep_group = layer.layer.topk, None

    def _set_ep_group(self, group: Any) -> None:
        self.ep_group = group

    def forward(self, x_TD: Tensor, used: None, sparse: bool, tutel: bool) -> Any:
        from deepspeed.moe import sharded_moe

        routing = self.choose(x_TD)
        chosen = torch.full_like(routing.logits_TE, -torch.inf)
        picked_TK = routing.logits_TE.gather(1, routing.indices_TK)
        chosen = chosen.scatter(1, routing.indices_TK, picked_TK)
        keep: dict[str, Any] = {"capacity_factor": 1.0, "min_capacity": 0, "drop_tokens": False}
        keep |= {"ep_group": self.ep_group, "sparse_routes": sparse}
        if self.topk == 1:
            return sharded_moe.top1gating(chosen, use_rts=False, **keep)
        if self.topk == 2:
            return sharded_moe.top2gating(chosen, top2_2nd_expert_sampling=False, **keep)
        return sharded_moe.topkgating(chosen, k=self.topk, **keep)


class AutoEPGate(Gate):
    """Returns what AutoEP's router does: scores and ids of the chosen, slots per expert."""

    def __init__(self, layer: PeerLayer) -> None:
        super().__init__(layer)
        self.num_experts = layer.layer.num_experts

    def forward(self, x_TD: Tensor, bias: None) -> tuple[Tensor, Tensor, Tensor]:
        from deepspeed.moe.ep_count import count_tokens_per_expert

        routing = self.choose(x_TD)
        counts_E = count_tokens_per_expert(routing.indices_TK, self.num_experts)
        return routing.gates_TK, routing.indices_TK.contiguous(), counts_E


class Block(nn.Module):
    """The attributes of a Mixtral block that AutoEP reads."""

    def __init__(self, layer: PeerLayer) -> None:
        super().__init__()
        self.gate, self.experts = nn.Module(), nn.Module()
        self.gate.weight = nn.Parameter(layer.router.weight_ED.detach())
        fc1_EFD = torch.cat([layer.weights_of("w1"), layer.weights_of("w3")], dim=1)
        self.experts.gate_up_proj = nn.Parameter(fc1_EFD)
        self.experts.down_proj = nn.Parameter(layer.weights_of("w2"))


class Expert(nn.Module):
    """An expert as DeepSpeed's users write it: two linear layers and an activation."""

    def __init__(self, matrices: dict[str, Tensor], activation: str) -> None:
        super().__init__()
        self.matrices = nn.ParameterDict(matrices)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        matrices = self.matrices
        return F.linear(activate(F.linear(x, matrices["w1"]), self.activation), matrices["w2"])


def _start(backend: str) -> None:
    """Starts DeepSpeed's communication over the existing process group. Disables its shared-memory
    all-reduce, which would be compiled now and neither layer calls."""
    import deepspeed

    if backend == "none" or deepspeed.comm.is_initialized():
        return
    builder = deepspeed.accelerator.get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is not None:
        deepspeed.ops.__compatible_ops__[builder.NAME] = False
    deepspeed.comm.init_distributed(backend, verbose=False)


class Peer(PeerLayer):
    def make_system(self) -> nn.Module:
        _start(self.comm.backend)
        system = self._autoep() if self.variant == "autoep" else self._legacy()
        return system.train(self.cell.workload.mode == "train")

    def _legacy(self) -> nn.Module:
        from deepspeed.moe.layer import MoE

        layer, size = self.layer, self.comm.world_size
        experts = [self._expert(e) for e in self.own_experts]
        system = MoE(layer.dim, experts[0], layer.num_experts, size, layer.topk, drop_tokens=False)
        moe = system.deepspeed_moe
        moe.gate = LegacyGate(self)
        for place, expert in enumerate(experts):
            moe.experts.deepspeed_experts[place] = expert
        if size > 1:
            system.set_deepspeed_parallelism()
        moe.experts.register_forward_pre_hook(self._told)
        return system

    def _autoep(self) -> nn.Module:
        from deepspeed.module_inject import auto_ep_layer
        from deepspeed.module_inject.auto_ep_config import AutoEPConfig, MoELayerSpec

        layer, size = self.layer, self.comm.world_size
        spec = MoELayerSpec(
            moe_module_name="mlp", model_family="mixtral", router_name="gate",
            experts_name="experts", expert_storage="fused_3d", expert_w1_name="gate_up_proj",
            expert_w2_name="down_proj", expert_w3_name=None, num_experts=layer.num_experts,
            top_k=layer.topk, hidden_size=layer.dim, ffn_hidden_size=layer.hidden,
            score_func="softmax", score_apply="post", route_norm=True, gate_bias=False,
            return_router_logits=False, router_logits_capture_target="none",
            router_logits_capture_index=None, router_logits_capture_layer_name=None,
            has_shared_experts=False, shared_experts_name="",
        )  # fmt: skip
        config = AutoEPConfig(enabled=True, autoep_size=size, load_balance_coeff=None)
        rank = self.comm.rank
        system = auto_ep_layer.AutoEPMoELayer(spec, Block(self), size, rank, config)
        system.router = AutoEPGate(self)
        if size > 1:
            system.set_deepspeed_parallelism()
        system.experts.register_forward_pre_hook(self._told)
        return system

    def _expert(self, e: int) -> Expert:
        matrices = {name: self.weights_of(name, [e])[0] for name in weights.names(self.layer)}
        if "w3" in matrices:
            matrices["w1"] = torch.cat([matrices["w1"], matrices.pop("w3")])
        return Expert(
            {name: nn.Parameter(w) for name, w in matrices.items()}, self.layer.activation
        )

    def matrices(self, of: View) -> Matrices:
        if self.variant == "autoep":
            experts = self.system.experts
            stacks = {name: of(getattr(experts, name)) for name in ("w1", "w3", "w2")}
            for place, e in enumerate(self.own_experts):
                yield e, {name: stacked[place] for name, stacked in stacks.items()}
            return
        experts = self.system.deepspeed_moe.experts.deepspeed_experts
        for e, expert in zip(self.own_experts, experts, strict=True):
            w1, w2 = of(expert.matrices["w1"]), of(expert.matrices["w2"])
            gated = self.layer.activation == "silu_gated"
            yield e, dict(zip(("w1", "w3"), w1.chunk(2), strict=True)) | {"w2": w2} if gated else {
                "w1": w1, "w2": w2
            }  # fmt: skip

    def timed_parts(self) -> Sequence[Part]:
        holder = self.system if self.variant == "autoep" else self.system.deepspeed_moe
        return [Part(holder.experts, "forward", "experts")]

    def _told(self, experts: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.count(given[0].numel() // self.layer.dim)

    def forward(self, x_TD: Tensor) -> Tensor:
        out = self.run(self.own_tokens(x_TD)[None])
        y_TD: Tensor = (out[0] if isinstance(out, tuple) else out)[0]
        return y_TD if self.sharded else self.gather_batch(y_TD)
