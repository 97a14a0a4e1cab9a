"""The work of a step on a cluster of data sheets, in seconds that its software profile reaches.

Every kernel takes the longer of its FLOPs and of all the bytes that it reads and writes, as GPUs
run them: a grouped product reads weights and rows and writes rows (`read`); activations and
permutes are kernels of their own that only move (`move`). Each operation takes kernel_s at least.

The host starts operations ahead of the GPU, so that their start counts only where it takes longer
than what the GPU has to do. Where the host waits for the GPU, before an exchange whose sizes it
must know, the queue is empty: what it starts before and after the wait counts apart.

Terms beside those of `features`: `kernels`, `operations` (both counts) and `waits` (a count).
Shape letters as there: T tokens, S slots, D in, O out, K top-k, U hidden units here, F = U or 2U.
"""

from __future__ import annotations

from collections.abc import Mapping

from analysis.predict.hardware import HardwareModel
from analysis.predict.software import KernelModel, SoftwareProfile
from analysis.predict.step import Step
from moe import cost
from moe.cost import Load
from moe.cost.load import dispatches, routed_tokens
from moe.cost.work import shared_tokens
from moe.parallel.rules import first_width
from moe.spec import DTYPE_BYTES
from moe.strategies import degrees, rules_of

Key = tuple[str, str]
STARTED = ("router", "permute", "dispatch", "experts", "unpermute")
BEFORE_THE_WAIT = ("router", "permute")
BACKWARD = 2.0  # times the forward pass's arithmetic
MOVED_BACK_ONCE = ("permute", "unpermute")  # their gradients are moved once, as they were
BALANCED = "balanced"  # the workload in which all experts have equally many rows


def profile_of(machine: HardwareModel) -> SoftwareProfile:
    """Raises ValueError for a machine without one."""
    if machine.profile is None:
        raise ValueError(f"{machine.name}: no software profile; see hardware.with_profile")
    return machine.profile


def coefficients(machine: HardwareModel) -> dict[Key, float]:
    """Products' terms are at the shares their kernel reaches, links' at those of `network`."""
    profile = profile_of(machine)
    once = {("", term): 1.0 for term in ("matrix", "read", "alpha", "wire")}
    return {
        **once,
        ("", "move"): 1 / profile.move_efficiency,
        ("", "operations"): profile.operation_s,
        ("", "kernels"): profile.kernel_s,
        ("", "waits"): profile.wait_s,
    }


def local(step: Step, machine: HardwareModel) -> dict[Key, float]:
    """The terms of all that a rank does between its exchanges, backward pass included."""
    profile, cell = profile_of(machine), step.cell
    chooses = rules_of(cell.strategy.name).dispatchers
    dispatcher = cell.strategy.dispatcher if chooses else "local"
    values = _work(step, machine, profile.kernels[step.kernel])
    for phase in STARTED:
        times = cell.strategy.overlap if phase == "experts" else 1  # once for every chunk
        values[phase, "kernels"] = times * profile.started(dispatcher, phase)
    if cell.workload.mode == "train":
        for (phase, term), value in list(values.items()):
            if term != "kernels":
                factor = 1.0 if phase in MOVED_BACK_ONCE else BACKWARD
                key = ("backward", term)
                values[key] = values.get(key, 0.0) + factor * value
        values["backward", "kernels"] = profile.started(dispatcher, "backward")
    if cell.strategy.graph == "off":  # a CUDA graph is started at once, and never waits
        for (phase, term), value in list(values.items()):
            if term == "kernels":
                values[phase, "operations"] = value
        values["dispatch", "waits"] = profile.waits.get(dispatcher, 0)
    return values


def _work(step: Step, machine: HardwareModel, kernel: KernelModel) -> dict[Key, float]:
    cell, layer = step.cell, step.cell.layer
    tokens, size = routed_tokens(cell, 0), DTYPE_BYTES[layer.dtype]
    units = layer.hidden // degrees(cell).tp
    width = first_width(layer, units)
    slots = step.slots + shared_tokens(cell, 0) * layer.shared_experts
    touched = layer.num_experts / degrees(cell).ep if step.dense else step.load.touched
    padded = touched and not step.dense and cell.workload.kind != BALANCED
    each = step.slots / touched if padded else 0.0
    first, second = 2 * slots * width * layer.dim, 2 * slots * units * layer.dim_out
    arithmetic = first * kernel.slowdown(layer.dim, each) + second * kernel.slowdown(units, each)
    weights = cost.touched_weight_bytes(cell, _with_touched(step.load, touched))
    rows = slots * (layer.dim + (width if kernel.activation else units) + units + layer.dim_out)
    moved_in, moved_out = _moves(step, machine, kernel)
    bandwidth = machine.read_bytes_per_s
    router_share = max(one.matrix for one in profile_of(machine).kernels.values())
    return {
        ("router", "matrix"): cost.router_flops(cell, 0)
        / (machine.matrix_rate("float32") * router_share),
        ("router", "move"): tokens * (size * layer.dim + 16 * layer.num_experts) / bandwidth,
        ("permute", "move"): size * moved_in / bandwidth,
        ("experts", "matrix"): arithmetic / (machine.matrix_rate(layer.dtype) * kernel.matrix),
        ("experts", "read"): (weights + size * rows) / (bandwidth * kernel.read),
        ("experts", "move"): size * slots * kernel.activation * (width + units) / bandwidth,
        ("unpermute", "move"): size * moved_out / bandwidth,
    }


def _with_touched(load: Load, touched: float) -> Load:
    return Load(load.slots, load.rows, load.sent, load.received, touched, load.copied)


def _moves(step: Step, machine: HardwareModel, kernel: KernelModel) -> tuple[float, float]:
    """Elements that permutes read and write, before the experts and after them."""
    cell, load, layer = step.cell, step.load, step.cell.layer
    tokens, fused = routed_tokens(cell, 0), profile_of(machine).fused_permutes
    chosen = tokens * layer.topk
    if not dispatches(cell):
        if step.dense:
            return 0.0, 0.0
        gathered = 0.0 if kernel.gathers else load.slots
        read = 0.0 if kernel.gathers else tokens if fused else load.slots
        return (read + gathered) * layer.dim, (tokens + load.slots) * layer.dim_out
    if cell.strategy.dispatcher == "dedup":
        # rows of tokens become slots, and slots rows again; in place, or copied on either side
        here = load.rows + load.slots
        once = 0.0 if fused else 2 * load.rows
        return (once + here) * layer.dim, (once + here) * layer.dim_out
    # by destination, and by expert there; and both back
    by_destination = (tokens if fused else chosen) + chosen
    by_expert = 0.0 if kernel.gathers else 2 * load.rows
    back = tokens + chosen + 2 * load.rows
    return (by_destination + by_expert) * layer.dim, back * layer.dim_out


def phases_s(parts: Mapping[Key, float]) -> dict[str, float]:
    """Seconds by phase on the device, from the seconds of every (phase, term); `launches` is its
    wait for a slower host, `host_waits` the host's wait for it."""
    times: dict[str, float] = {}
    for phase in dict.fromkeys(key[0] for key in parts):  # sums in one order
        of_phase = {term: value for (name, term), value in parts.items() if name == phase}
        product = max(of_phase.pop("matrix", 0.0), of_phase.pop("read", 0.0))
        off_device = ("operations", "waits")
        times[phase] = product + sum(v for term, v in of_phase.items() if term not in off_device)
    waits = sum(value for (_, term), value in parts.items() if term == "waits")
    before = set(times) & set(BEFORE_THE_WAIT) if waits else set()
    idle = 0.0
    for chosen in ([p for p in times if p in before], [p for p in times if p not in before]):
        launched = sum(parts.get((phase, "operations"), 0.0) for phase in chosen)
        idle += max(0.0, launched - sum(times[phase] for phase in chosen))
    extra = {"launches": idle, "host_waits": waits}
    return {**times, **{name: value for name, value in extra.items() if value}}
