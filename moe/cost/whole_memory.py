"""Memory that a whole model takes on a rank, by arithmetic. Torch-free.

Shape letters as in moe.cost.whole_model; T tokens of a rank, s bytes of a number (2 in bfloat16), S
its slots of expert arithmetic, n tokens of a sequence, C tokens in the cache of each sequence.

    weights       s a parameter; master=fp32 and ZeRO 3: 4, as the shards of the fp32 copy are all
                  that is kept
    gradients     of training: 4; master=bf16: s
    optimizer     master=fp32: 4, but for ZeRO 3 and weights in fp32; and moments: adamw 8
                  (master=bf16: 2 s), adamw8bit 2 and a scale of 4 for every 256 of each, sgd 0
                  ZeRO 1 divides these by the ranks that hold the same parameter, 2 gradients, too,
                  3 (and strategy fsdp) weights, too
    gathered      ZeRO 3: the weights of two layers (the next one is fetched meanwhile), in training
                  a layer's gradients, too, in s and in the type they are reduced in; not of
                  parameters that one rank alone has
    activations   of training, kept until the backward pass, for each layer
                  MoE          moe.cost.activation_bytes
                  dense MLP    T (D + k F) s, k as for an expert's hidden units
                  attention    T (3 D + 2 H h + 2 G h) s + 4 T H: input and output of both norms but
                               for the experts' input, which the MoE layer has; queries, keys,
                               values, the result (FlashAttention, arXiv 2205.14135: no scores)
                               with norms of queries and keys their inputs, T (H h + G h) s; MLA:
                               T (3 D + 2 q + 2 c + r + H (3 h + 2 r + 2 v)) s; without flash
                               attention T H n s more
                  recompute=full keeps T D s a layer, and one layer's in full
                  embeddings' result T D s
    transient     the larger of the gradients of a layer's hidden rows, S F' s, and of logits,
                  T V (s + 4 + 4): in s, as softmax in fp32, and their gradient
                  in prefill and decode: one layer's activations, and logits of a sequence's last
                  token, V (s + 4)
    cache         of prefill and decode: C tokens of keys and values, 2 G h s for each layer; MLA
                  (c + r) s, which cannot be split
    messages      the largest collective: what it sends and receives

`fused` is what Megatron-Core's kernels keep less (its experts.py, cross_entropy.py): three tensors
of an expert's hidden units, as SwiGLU is one kernel; gates are applied to hidden units, so results
need not be kept (T K O s less); the router has no copy of its input in fp32 (4 T D less); cross
entropy works in place (4 T V less).
A rank with a part of the layers is the first or the last stage of a pipeline (1F1B, arXiv
2104.04473), whichever takes more: the first keeps activations of as many microbatches as there are
stages, the last computes the logits.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

from moe.cost.load import expected, routed_tokens
from moe.cost.traffic import collectives
from moe.cost.whole_model import (
    WHOLE,
    ParameterGroup,
    Share,
    WholeModel,
    dense_parts,
    held_layers,
    parameter_groups,
)
from moe.cost.work import KEPT_BY, KEPT_HIDDEN, activation_bytes
from moe.parallel.rules import first_width
from moe.parallel.traffic import Load
from moe.spec import DTYPE_BYTES, Cell
from moe.strategies import degrees, rules_of

PHASES = ("train", "prefill", "decode")
OPTIMIZERS = ("adamw", "adamw8bit", "sgd", "none")
MASTERS = ("fp32", "bf16")
ZERO_STAGES = (0, 1, 2, 3)
RECOMPUTES = ("none", "full")
FP32 = 4
MOMENTS = 2  # of adamw
SCALE_BYTES = FP32 / 256  # a moment of adamw8bit has a scale for each block of 256
FETCHED_LAYERS = 2
FUSED = "loop"  # the kernel of ours that keeps as many tensors of hidden units as a fused SwiGLU


@dataclass(frozen=True)
class MemoryPlan:
    """How a model is run, as far as memory depends on it.

    `context`: tokens of a sequence, in decode those in its cache. `fused`: see the module's text.
    `in_flight`: how many layers' activations are kept at once, and `logits` how often logits are
    computed; 0 and 1 follow from the layers that are held.
    """

    phase: str = "train"
    optimizer: str = "adamw"
    master: str = "fp32"
    zero: int = 1
    recompute: str = "none"
    context: int = 4096
    flash: bool = True
    fused: bool = False
    in_flight: int = 0
    logits: int = 1
    share: Share = WHOLE
    gradient_bytes: int = 0  # of a parameter; 0: by `master`
    moment_bytes: int = 0  # of each of adamw's two; 0: by `optimizer` and `master`


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of a rank, by part. `available` is what a rank has for them."""

    parts: dict[str, float] = field(default_factory=dict)
    available: float = math.inf

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.available

    @property
    def missing(self) -> float:
        """Bytes that are missing, 0 where it fits."""
        return max(0.0, self.total - self.available)


def whole_memory(
    model: WholeModel, cell: Cell, plan: MemoryPlan, available: float = math.inf, skew: float = 1.0
) -> MemoryUse:
    """Bytes of rank 0, which has the most tokens, `skew` times its even share of slots."""
    layers = sum(held_layers(model, plan.share))
    if plan.phase == "train" and layers < model.layers and not plan.in_flight:
        stages = (dataclasses.replace(plan, in_flight=model.layers, logits=0),
                  dataclasses.replace(plan, in_flight=layers))  # fmt: skip
        uses = [whole_memory(model, cell, stage, available, skew) for stage in stages]
        return max(uses, key=lambda use: use.total)
    work = dataclasses.replace(cell.workload, mode="train" if plan.phase == "train" else "forward")
    cell = dataclasses.replace(cell, workload=work)
    load = expected(cell, 0, skew)
    groups = parameter_groups(model, cell, plan.share)
    parts = _parameters(cell, groups, plan)
    if plan.phase == "train":
        parts |= _training(model, cell, load, plan)
    else:
        parts |= _inference(model, cell, load, plan)
    parts["messages"] = _largest_message(cell, load)
    return MemoryUse({name: value for name, value in parts.items() if value}, available)


def _largest_message(cell: Cell, load: Load) -> float:
    """Of tokens and slots; weights that are gathered and gradients that are added up in place are
    counted elsewhere."""
    if rules_of(cell.strategy.name).gathered_bytes(cell):
        return 0.0
    calls = [call for call in collectives(cell, load) if call.purpose != "gradients"]
    return max(
        ((call.sent_bytes + call.received_bytes) / call.calls for call in calls), default=0.0
    )


def _parameters(cell: Cell, groups: list[ParameterGroup], plan: MemoryPlan) -> dict[str, float]:
    """Weights, gradients, optimiser's states, and what ZeRO 3 gathers."""
    size = DTYPE_BYTES[cell.layer.dtype]
    train, fp32 = plan.phase == "train", plan.master == "fp32" and plan.optimizer != "none"
    sharded = rules_of(cell.strategy.name).gathered_bytes(cell) > 0
    stage = 3 if sharded else plan.zero if train else 0
    whole = sum(group.total for group in groups)
    shards = sum(group.total / group.copies for group in groups)
    copied = fp32 and size < FP32  # weights in fp32 are their own master
    weight, master = (FP32, 0) if train and fp32 and stage == 3 else (size, FP32 * copied)
    parts = {"weights": weight * (shards if stage == 3 else whole)}
    if train:
        gradient = plan.gradient_bytes or (FP32 if plan.master == "fp32" else size)
        parts["gradients"] = gradient * (shards if stage >= 2 else whole)
        state = master + _moments(plan, size)
        parts["optimizer"] = state * (shards if stage >= 1 else whole)
    if stage == 3:
        layer = _layer_elements(groups)
        reduced = size + (FP32 if plan.master == "fp32" else size) if train else 0
        parts["gathered"] = layer * (FETCHED_LAYERS * size + reduced)
    return parts


def _layer_elements(groups: list[ParameterGroup]) -> float:
    """Elements that are gathered for a rank's largest layer: of what other ranks have shards of."""
    sizes = {group.name: group.elements for group in groups if group.copies > 1}
    moe = sum(sizes.get(name, 0.0) for name in ("experts", "shared experts", "router"))
    same = sum(sizes.get(name, 0.0) for name in ("attention", "keys and values",
                                                 "norms and latents"))  # fmt: skip
    return same + max(moe, sizes.get("dense MLP", 0.0))


def _moments(plan: MemoryPlan, size: int) -> float:
    """Bytes of a parameter's moments."""
    if plan.optimizer == "adamw":
        return MOMENTS * (plan.moment_bytes or (FP32 if plan.master == "fp32" else size))
    return MOMENTS * (1 + SCALE_BYTES) if plan.optimizer == "adamw8bit" else 0.0


def _tokens(cell: Cell) -> float:
    """T: tokens whose attention, norms and logits a rank computes, or its share of them where a
    group splits heads and vocabulary."""
    return -(-cell.workload.batch_size // cell.placement.world_size)


def _training(model: WholeModel, cell: Cell, load: Load, plan: MemoryPlan) -> dict[str, float]:
    layer, tokens, size = cell.layer, _tokens(cell), DTYPE_BYTES[cell.layer.dtype]
    moe, dense = held_layers(model, plan.share)
    attention = tokens * (size * attention_width(model, layer.dim, True, plan) + FP32 * model.heads)
    if plan.fused:
        cell = dataclasses.replace(cell, strategy=dataclasses.replace(cell.strategy, kernel=FUSED))
    kept = KEPT_BY.get(cell.strategy.kernel, KEPT_HIDDEN)[layer.activation]
    experts = attention + activation_bytes(cell, load)
    if plan.fused:
        experts -= routed_tokens(cell, 0) * (size * layer.topk * layer.dim_out + FP32 * layer.dim)
    plain = attention + tokens * size * (layer.dim + kept * model.dense_hidden)
    alive = (plan.in_flight or moe + dense) / (moe + dense)
    inputs = tokens * size * layer.dim
    full = alive * (moe * experts + dense * plain)
    if plan.recompute == "full":
        full = alive * (moe + dense) * inputs + max(
            experts if moe else 0.0, plain if dense else 0.0
        )
    hidden = load.slots * first_width(layer, layer.hidden // degrees(cell).tp) * size
    logits = plan.logits * tokens * model.vocab * (size + (1 if plan.fused else 2) * FP32)
    return {"activations": full + inputs, "transient": max(hidden, logits)}


def _inference(model: WholeModel, cell: Cell, load: Load, plan: MemoryPlan) -> dict[str, float]:
    layer, tokens, size = cell.layer, _tokens(cell), DTYPE_BYTES[cell.layer.dtype]
    moe, dense = held_layers(model, plan.share)
    sequences = tokens if plan.phase == "decode" else max(1.0, tokens / plan.context)
    cached = sequences * plan.context if plan.phase == "decode" else tokens
    attention = tokens * size * attention_width(model, layer.dim, False, plan)
    plain = tokens * size * 3 * model.dense_hidden if dense else 0.0
    experts = activation_bytes(cell, load) if moe else 0.0
    logits = plan.logits * sequences * model.vocab * (size + FP32)
    width = cache_width(model, dense_parts(model, cell, plan.share))
    return {
        "activations": attention + max(experts, plain),
        "transient": logits,
        "cache": cached * (moe + dense) * size * width,
    }


def attention_width(model: WholeModel, dim: int, train: bool, plan: MemoryPlan) -> float:
    """Numbers that one layer's attention and norms keep of a token."""
    heads, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    if model.latent:
        inside = model.heads * (3 * model.head_dim + 2 * model.rope_dim + 2 * model.value_dim)
        inside += 2 * model.q_rank + 2 * model.kv_rank + model.rope_dim
    else:
        inside = 2 * heads + 2 * keys
        if model.qk_norm != "none" and train:
            inside += heads + keys
    scores = 0 if plan.flash else model.heads * plan.context
    return 3 * dim + inside + scores


def cache_width(model: WholeModel, parts: int) -> float:
    """Numbers of a token in the cache of one layer on a rank, for each token of the rank's share:
    `parts` ranks have the same sequences, and a head of keys and values each at least."""
    if model.latent:
        return float(parts * (model.kv_rank + model.rope_dim))
    return 2 * model.head_dim * float(max(model.kv_heads, parts))
