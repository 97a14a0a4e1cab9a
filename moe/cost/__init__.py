"""What a step costs, by arithmetic: FLOPs, bytes of memory, bytes sent. Torch-free.

All figures are of one rank and one step. `load` computes how many slots reach a rank, counted or
expected; `work` has FLOPs and memory; `traffic` lists every collective with its group and bytes.

Figures that depend on which experts the tokens chose take a `Load`.
"""

from moe.cost.load import expected, hit_probability
from moe.cost.traffic import collectives, totals
from moe.cost.work import (
    TRAIN_FACTOR,
    activation_bytes,
    expert_elements,
    expert_flops,
    forward_flops,
    peak_bytes,
    router_flops,
    shared_flops,
    step_flops,
    touched_weight_bytes,
    weight_bytes,
)
from moe.parallel.traffic import Call, Load

__all__ = [
    "TRAIN_FACTOR",
    "Call",
    "Load",
    "activation_bytes",
    "collectives",
    "expected",
    "expert_elements",
    "expert_flops",
    "forward_flops",
    "hit_probability",
    "peak_bytes",
    "router_flops",
    "shared_flops",
    "step_flops",
    "totals",
    "touched_weight_bytes",
    "weight_bytes",
]
