"""The work of a step by phase, in seconds of the hardware at its best.

A time is the sum over all (phase, term) of coefficient x value:

    operations   how many operations are started        coefficient: seconds each
    experts      experts that get a product of their own coefficient: seconds each
    matrix       FLOPs / matrix rate                     coefficient: 1 / efficiency
    read         weight bytes / bandwidth                coefficient: 1 / efficiency
    move         bytes of tokens and slots / bandwidth   coefficient: 1 / efficiency
    fresh        bytes mapped anew / bandwidth           coefficient: 1 / efficiency
    alpha, wire  collectives, see `network`              coefficient: 1 / efficiency
    calls, messages, hops  of collectives, on links of each rank's own   coefficient: seconds each
    straggle     own work x expected lateness of the last rank, there  coefficient: relative spread

Where coefficients are fitted, matrix and read times are added, not maximised: products with few
rows m reach m / (m + h) of the matrix rate, and flops / rate x (1 + h / m) is a term in FLOPs plus
one in weights read.

Memory is mapped anew, page by page, where a step on a processor frees so much that glibc returns it
to the system: beyond GIVEN_BACK, taken as twice a large block (mallopt(3), M_TRIM_THRESHOLD).
Keeping freed memory (mallopt) removes these page faults, but left three times the live blocks in
memory, so that a rank's peak would say little. Emulated ranks keep it
(benchmarks/emulate/launch.py), so that nothing of theirs is mapped anew.

A machine that only states its rates (data sheets) has a software profile instead: see `roofline`.

The rank is the busiest: it takes `skew` times its even share of slots.
Shape letters: T tokens routed here, S slots computed here, D in, O out, E experts, K top-k.
"""

from __future__ import annotations

import dataclasses
from statistics import NormalDist

from analysis.predict import network, roofline
from analysis.predict.hardware import HardwareModel
from analysis.predict.step import Step as Step
from analysis.predict.step import busiest as busiest
from moe import cost
from moe.cost import Load
from moe.cost.load import dispatches, routed_tokens
from moe.cost.work import shared_tokens
from moe.parallel.rules import first_width
from moe.spec import DTYPE_BYTES
from moe.strategies import degrees

Key = tuple[str, str]
PHASES = ("router", "permute", "dispatch", "experts", "combine", "unpermute", "backward",
          "gradients")  # fmt: skip
# What has no efficiency: its coefficient is in seconds each, or a spread.
COUNTED = ("operations", "experts", "calls", "messages", "hops", "straggle")
# Of machines whose links are known: one coefficient for all phases, as a link knows no phase.
OF_LINKS = ("wire", "calls", "messages", "hops")
OPERATIONS = {"router": 4, "permute": 5, "experts": 3, "unpermute": 3}
LOCAL_RATES = ("matrix", "read", "move")  # terms of a rank's own work
DISPATCH_OPERATIONS = 8  # more permuting on both sides of an exchange
BACKWARD = 2.0  # times the forward pass's arithmetic
GIVEN_BACK = 32 << 20  # bytes


def terms(step: Step, machine: HardwareModel) -> dict[Key, float]:
    """Seconds of the machine at its best by (phase, term); terms of nothing are left out."""
    cell = step.cell
    values = _local(step, machine) if machine.profile is None else roofline.local(step, machine)
    for call in cost.collectives(cell, step.load, 0, machine.exchanged):
        times = network.call_times(call, machine)
        phase = {"counts": "dispatch"}.get(call.purpose, call.purpose)
        _add(values, (phase, "alpha"), times.alpha_s)
        _add(values, (phase, "wire"), times.wire_s)
        if machine.own_links:
            for term, count in network.counts(call).items():
                _add(values, (phase, term), count)
    if cell.workload.mode == "train" and machine.profile is None:
        for (phase, term), value in list(values.items()):
            if phase in OPERATIONS:
                _add(values, ("backward", term), BACKWARD * value)
    if machine.own_links:
        local = sum(v for (phase, term), v in values.items() if term in LOCAL_RATES
                    and phase in (*OPERATIONS, "backward"))  # fmt: skip
        values["wait", "straggle"] = local * latest(cell.placement.world_size)
    return {key: value for key, value in values.items() if value}


def latest(ranks: int) -> float:
    """Expected maximum of as many standard normal numbers, by Blom's approximation (1958)."""
    return NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25)) if ranks > 1 else 0.0


def _add(values: dict[Key, float], key: Key, value: float) -> None:
    values[key] = values.get(key, 0.0) + value


def _local(step: Step, machine: HardwareModel) -> dict[Key, float]:
    cell, load, layer = step.cell, step.load, step.cell.layer
    size, tokens = DTYPE_BYTES[layer.dtype], routed_tokens(cell, 0)
    units = layer.hidden // degrees(cell).tp
    shared = shared_tokens(cell, 0) * layer.shared_experts
    local_experts = layer.num_experts / degrees(cell).ep
    touched = local_experts if step.dense else load.touched
    weights = cost.touched_weight_bytes(cell, dataclasses.replace(load, touched=touched))
    arithmetic = cost.expert_flops(cell, Load(step.slots)) + cost.shared_flops(cell, 0)
    rows = load.rows if dispatches(cell) else load.slots
    hidden = (step.slots + shared) * (2 * first_width(layer, units) + units)
    read, copies = machine.read_rate(cost.weight_bytes(cell)), 1 if dispatches(cell) else 0
    permuted = 0.0 if step.dense and not copies else (1 + copies) * rows * layer.dim
    returned = tokens * layer.topk if dispatches(cell) else load.slots
    unpermuted = 0.0 if step.dense and not copies else (returned + copies * rows) * layer.dim_out
    bandwidth = machine.read_bytes_per_s if not machine.read_warm else machine.read_warm[-1][1]
    dispatch_operations = DISPATCH_OPERATIONS * copies
    width = first_width(layer, units)
    produced = size * (step.slots + shared) * (layer.dim + width + units + layer.dim_out)
    fresh = produced + size * copies * (rows + returned) * (layer.dim + layer.dim_out)
    kept = machine.own_links or not machine.calibrated or cell.placement.device == "cuda"
    return {
        ("router", "operations"): OPERATIONS["router"],
        ("router", "matrix"): cost.router_flops(cell, 0) / machine.matrix_rate("float32"),
        ("router", "move"): tokens * (size * layer.dim + 16 * layer.num_experts) / bandwidth,
        ("permute", "operations"): OPERATIONS["permute"] + dispatch_operations,
        ("permute", "move"): 2 * size * permuted / bandwidth,
        ("experts", "operations"): OPERATIONS["experts"],
        ("experts", "experts"): 0.0 if step.dense else load.touched,
        ("experts", "matrix"): arithmetic / machine.matrix_rate(layer.dtype),
        ("experts", "read"): weights / read,
        ("experts", "move"): size * hidden / bandwidth,
        ("experts", "fresh"): 0.0 if kept or fresh <= GIVEN_BACK else fresh / bandwidth,
        ("unpermute", "operations"): OPERATIONS["unpermute"] + dispatch_operations / 2,
        ("unpermute", "move"): 2 * size * unpermuted / bandwidth,
    }
