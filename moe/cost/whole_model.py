"""A whole model around the MoE layer: its sizes, and the parameters that a rank has of it.

Shape letters: D width of a token, H heads, G heads of keys and values, h numbers of a head, V
vocabulary, F hidden units of a dense layer's MLP, R ranks, p ranks that split attention.

    attention    D H h + 2 D G h + H h D          queries, keys and values, output
                 or with latents (DeepSeek-V2's MLA, arXiv 2405.04434), of ranks q and c, r numbers
                 with positions of a head, v numbers of a value:
                 D q + q H (h + r) + D (c + r) + c H (h + v) + H v D; without q: D H (h + r)
    dense MLP    3 D F                            layers that are not MoE, gated
    embeddings   2 V D                            input and output
    norms        2 D a layer, D at the end, and those of queries, keys and latents

How they are spread: experts and router by the rules of the strategy. Attention, dense MLPs and
embeddings are on every rank, each for its own tokens; where a strategy splits hidden units over tp
ranks, p = gcd(tp, H) of these split heads, units and vocabulary. Norms and latents are not split.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from moe.spec import Cell
from moe.strategies import degrees, rules_of

QK_NORMS = ("none", "head", "all")  # of queries and keys: none, one a head, one over all heads


@dataclass(frozen=True)
class WholeModel:
    """What a model has beside its MoE layers' experts and routers (in LayerSpec)."""

    layers: int
    moe_layers: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int  # h; of MLA the part without positions
    qk_norm: str = "none"
    q_rank: int = 0
    kv_rank: int = 0  # MLA where it is not 0
    rope_dim: int = 0
    value_dim: int = 0
    dense_hidden: int = 0  # F

    @property
    def latent(self) -> bool:
        """Whether attention is MLA."""
        return self.kv_rank > 0


@dataclass(frozen=True)
class Share:
    """What part of the model a rank works on. Numbers of 0 mean the whole model's or the rule's.

    `replicas` are further groups of ranks like the cell's, each with a batch of its own.
    """

    layers: int = 0
    dense_layers: int = -1  # of `layers` those without experts; -1: as the model has them
    embeddings: int = 0  # matrices V x D on the rank
    dense_tp: int = 0  # p
    replicas: int = 1


WHOLE = Share()


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of a rank that equally many ranks hold: `layers` times `elements`, on `copies`
    ranks each."""

    name: str
    elements: float
    layers: int
    copies: int

    @property
    def total(self) -> float:
        return self.elements * self.layers


def held_layers(model: WholeModel, share: Share) -> tuple[int, int]:
    """(MoE layers, dense layers) of a rank; of a part of the layers as many MoE layers as can be,
    since those are the largest."""
    layers = share.layers or model.layers
    if share.dense_layers >= 0:
        return layers - share.dense_layers, share.dense_layers
    moe = min(layers, model.moe_layers)
    return moe, layers - moe


def dense_parts(model: WholeModel, cell: Cell, share: Share) -> int:
    """p: ranks that split attention, dense MLPs and embeddings."""
    return share.dense_tp or math.gcd(degrees(cell).tp, model.heads)


def attention_elements(model: WholeModel, dim: int, parts: int = 1) -> tuple[float, float, float]:
    """Elements of one layer's attention on a rank: (split over `parts`, heads of keys and values,
    of which each rank has one at least, norms and latents, the same on every rank)."""
    if model.latent:
        query = (model.q_rank or dim) * model.heads * (model.head_dim + model.rope_dim)
        values = model.kv_rank * model.heads * (model.head_dim + model.value_dim)
        output = model.heads * model.value_dim * dim
        down = dim * (model.q_rank + model.kv_rank + model.rope_dim)
        norms = 2 * dim + model.q_rank + model.kv_rank
        return (query + values + output) / parts, 0.0, down + norms
    norms = 2 * dim
    if model.qk_norm == "head":
        norms += 2 * model.head_dim
    elif model.qk_norm == "all":
        norms += (model.heads + model.kv_heads) * model.head_dim
    keys = 2 * dim * model.head_dim * max(1.0, model.kv_heads / parts)
    return 2 * dim * model.head_dim * model.heads / parts, keys, norms


def parameter_groups(model: WholeModel, cell: Cell, share: Share = WHOLE) -> list[ParameterGroup]:
    """Parameters of rank 0 before ZeRO, by group. `fsdp` and ZeRO's stages keep 1 / copies of
    them."""
    moe, dense = held_layers(model, share)
    parts, ranks = dense_parts(model, cell, share), cell.placement.world_size * share.replicas
    dim, (_, tp, dp) = cell.layer.dim, degrees(cell)
    sizes = rules_of(cell.strategy.name).parameter_elements(cell)
    shared = sum(n for name, n in sizes.items() if name.startswith("shared_"))
    router = sizes["router"]
    split, keys, same = attention_elements(model, dim, parts)
    key_parts = math.gcd(parts, model.kv_heads)
    part = moe + dense < model.layers  # a stage of a pipeline has one of the two
    matrices = share.embeddings or (1 if part else 2)
    groups = [
        ParameterGroup("experts", sum(sizes.values()) - shared - router, moe, dp * share.replicas),
        ParameterGroup("shared experts", shared, moe, ranks // tp),
        ParameterGroup("router", router, moe, ranks),
        ParameterGroup("attention", split, moe + dense, ranks // parts),
        ParameterGroup("keys and values", keys, moe + dense, ranks // key_parts),
        ParameterGroup("norms and latents", same, moe + dense, ranks),
        ParameterGroup("dense MLP", 3 * dim * model.dense_hidden / parts, dense, ranks // parts),
        ParameterGroup("embeddings", matrices * model.vocab * dim / parts, 1, ranks // parts),
        ParameterGroup("last norm", dim, 1, ranks),
    ]
    return [group for group in groups if group.total]


def parameter_count(groups: Iterable[ParameterGroup], ranks: int) -> float:
    """Parameters of the model: of all ranks together, copies counted once."""
    return sum(group.total * ranks / group.copies for group in groups)
