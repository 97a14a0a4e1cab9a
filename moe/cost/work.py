"""FLOPs of a rank's step, and the bytes it keeps.

Shape letters: T tokens routed here, S slots computed here, D in, H hidden, O out, E experts,
K top-k, R ranks, U = H / tp hidden units here, F = U or (gated) 2U.

    experts   2 S (F D + U O)            multiply and add of both products
    router    2 T E D                    in float32
    shared    2 T' N (F D + U O)         N shared experts, T' tokens they are given here
    training  three times all of it      a backward pass has two products for each forward one
                                         (gradients of inputs and of weights)
"""

from __future__ import annotations

from moe.cost.load import dispatches, fullest, routed_tokens
from moe.parallel.rules import first_width
from moe.parallel.traffic import INDEX_BYTES, ROUTER_BYTES, Load
from moe.spec import DTYPE_BYTES, Cell, LayerSpec
from moe.strategies import degrees, rules_of

TRAIN_FACTOR = 3
KEPT_HIDDEN = {"relu": 1, "identity": 1, "gelu": 2, "silu_gated": 4}
KEPT_BY = {"loop": {**KEPT_HIDDEN, "silu_gated": 3}, "liger": {"silu_gated": 2},
           "triton": {"silu_gated": 2}}  # fmt: skip


def expert_elements(layer: LayerSpec, parts: int = 1) -> int:
    """Elements of one expert's matrices on a rank that holds 1 / parts of it."""
    hidden = layer.hidden // parts
    return first_width(layer, hidden) * layer.dim + hidden * layer.dim_out


def expert_flops(cell: Cell, load: Load) -> float:
    """FLOPs of the routed experts' products in a forward pass."""
    return 2.0 * load.slots * expert_elements(cell.layer, degrees(cell).tp)


def router_flops(cell: Cell, rank: int = 0) -> float:
    """FLOPs of the router's product in a forward pass."""
    return 2.0 * routed_tokens(cell, rank) * cell.layer.num_experts * cell.layer.dim


def shared_tokens(cell: Cell, rank: int = 0) -> int:
    """Number of tokens this rank gives to its part of the shared experts."""
    return len(range(*rules_of(cell.strategy.name).shared_rows(cell, rank)))


def shared_flops(cell: Cell, rank: int = 0) -> float:
    parts = degrees(cell).tp
    each = 2.0 * shared_tokens(cell, rank) * expert_elements(cell.layer, parts)
    return cell.layer.shared_experts * each


def forward_flops(cell: Cell, load: Load, rank: int = 0) -> float:
    return expert_flops(cell, load) + router_flops(cell, rank) + shared_flops(cell, rank)


def step_flops(cell: Cell, load: Load, rank: int = 0) -> float:
    """FLOPs of a forward pass or, in mode=train, of forward and backward."""
    times = TRAIN_FACTOR if cell.workload.mode == "train" else 1
    return times * forward_flops(cell, load, rank)


# Bytes kept.


def weight_bytes(cell: Cell, rank: int = 0) -> int:
    """Bytes of the weights a rank keeps between steps."""
    return rules_of(cell.strategy.name).kept_bytes(cell, rank)


def touched_weight_bytes(cell: Cell, load: Load) -> float:
    """Lower bound of the expert weights a rank reads: experts that have slots, once each."""
    elements = expert_elements(cell.layer, degrees(cell).tp)
    experts = load.touched + cell.layer.shared_experts
    return float(experts * elements * DTYPE_BYTES[cell.layer.dtype])


def activation_bytes(cell: Cell, load: Load, rank: int = 0) -> float:
    """What one forward pass keeps: in mode=train until the backward pass, in mode=forward while the
    experts compute, when most is alive. S rows are computed here, T tokens routed here.

        train     S D + h S U + T K O + T D     inputs and hidden rows, results, tokens
        forward   S D + S (F + U) + T D         results come after hidden rows have gone
        dispatch  + T K D                       rows that were sent, alive until they are back
        shared    + h T' N U (forward: (F + U) T' N after the experts, if that is more)
        router    + T (4 E + 32 K), and 4 T D where the dtype is not float32

    h = 1 for relu and identity, 2 for gelu, 4 (kernel=loop: 3, liger and triton: 2) for silu_gated:
    tensors of U columns that autograd keeps. Kernels that pad keep more: `padded_bytes`.
    """
    layer, size = cell.layer, DTYPE_BYTES[cell.layer.dtype]
    units, train = layer.hidden // degrees(cell).tp, cell.workload.mode == "train"
    tokens, shared = routed_tokens(cell, rank), shared_tokens(cell, rank) * layer.shared_experts
    widths = first_width(layer, units) + (0 if layer.activation == "identity" else units)
    numbers = load.slots * layer.dim + tokens * layer.dim
    if train:
        kept = KEPT_BY.get(cell.strategy.kernel, KEPT_HIDDEN)
        hidden = kept[layer.activation] * units
        numbers += (load.slots + shared) * hidden + tokens * layer.topk * layer.dim_out
    else:
        numbers += max(load.slots, shared) * widths
    if dispatches(cell) and not train:
        numbers += tokens * layer.topk * layer.dim
    routing = ROUTER_BYTES * layer.num_experts + 4 * INDEX_BYTES * layer.topk
    if size != ROUTER_BYTES:
        routing += ROUTER_BYTES * layer.dim
    return size * numbers + tokens * routing


def peak_bytes(cell: Cell, load: Load, rank: int = 0) -> float:
    """Peak memory of a step: weights and activations; in mode=train also gradients of weights and
    hidden rows; weights gathered for the step (fsdp), twice in mode=train."""
    layer, train = cell.layer, cell.workload.mode == "train"
    kept = weight_bytes(cell, rank)
    total = kept + activation_bytes(cell, load, rank)
    if train:
        units = layer.hidden // degrees(cell).tp
        total += kept + load.slots * first_width(layer, units) * DTYPE_BYTES[layer.dtype]
    return total + (2 if train else 1) * rules_of(cell.strategy.name).gathered_bytes(cell)


def padded_bytes(cell: Cell, load: Load, rank: int = 0) -> float:
    """What a kernel that was asked for by name keeps beyond `activation_bytes`, because it computes
    more rows than there are slots. P experts are here, M rows reach the fullest of them.

        bmm    P M (D + F + U + O)   every expert's rows are padded to the fullest expert's
        dense  P T (F + U)           every expert computes every row that is here
    """
    layer, (ep, tp, _) = cell.layer, degrees(cell)
    experts, units = layer.num_experts / ep, layer.hidden // tp
    hidden = first_width(layer, units) + units
    if cell.strategy.kernel == "bmm":
        rows, width = fullest(load.slots, experts), layer.dim + hidden + layer.dim_out
    elif cell.strategy.kernel == "dense":
        rows = load.slots if dispatches(cell) else float(routed_tokens(cell, rank))
        width = hidden
    else:
        return 0.0
    return experts * rows * width * DTYPE_BYTES[layer.dtype]
