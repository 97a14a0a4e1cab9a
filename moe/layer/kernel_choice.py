"""Choosing a kernel by measuring each on what the layer's experts are really given."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moe.layer.router import Routing

if TYPE_CHECKING:
    from moe.layer.base import MoELayer

_LOOK_NS = 8_000_000  # a first look at each candidate, after one call to warm up
_BUDGET_NS = 40_000_000  # each of the passes over those that are near the best
_MIN_CALLS, _MAX_CALLS = 3, 50
_NEAR = (1.5, 1.2)  # times the best: at the first look, at the first pass
_MUCH_WORK = 100_000_000  # multiplications
_WASTE = 4  # all experts on all rows, over what is asked of them
_TIE = 1.02  # within it the first in the list is taken


def tune(layer: MoELayer, x_TD: Tensor) -> dict[str, Any]:
    """Every rank times each candidate on its own part at the same time; the slowest rank's median
    counts, so all choose alike. Collective: it runs one forward.

    A short look leaves those near the best, which are timed at length, twice, in either order: a
    choice that noise made would be another one in every launch, and differ by more than what a
    sweep sets out to tell apart.
    """
    asked = layer.cell.strategy.kernel
    names = layer.experts.variants(asked, x_TD.dtype)
    if len(names) == 1:
        layer.use(names[0])
        return {"name": names[0], "how": "asked for", "candidates_ms": {}}
    call, hopeless = _expert_stage(layer, x_TD)
    names = [name for name in names if name not in hopeless]
    found = _time(layer, call, names, _LOOK_NS)
    for again, limit in enumerate(_NEAR):
        near = [name for name in names if found[name] < limit * min(found.values())]
        if len(near) == 1:
            break
        for name, ms in _time(layer, call, near if again else near[::-1], _BUDGET_NS).items():
            found[name] = min(ms, found[name]) if again else ms
    best = next(name for name in names if found[name] <= _TIE * min(found.values()))
    layer.use(best)
    return {"name": best, "how": "measured", "candidates_ms": found}


def _time(
    layer: MoELayer, call: Callable[[], None], names: Sequence[str], budget_ns: int
) -> dict[str, float]:
    """Median ms of each kernel on the slowest rank."""
    times_ms = torch.zeros(len(names), device=layer.comm.device)
    for i, name in enumerate(names):
        layer.use(name)
        times_ms[i] = _median_ms(call, layer, budget_ns)
    layer.comm.world.combine_(times_ms, "max")
    return dict(zip(names, times_ms.tolist(), strict=True))


def _expert_stage(layer: MoELayer, x_TD: Tensor) -> tuple[Callable[[], None], set[str]]:
    """What this rank's experts did in one forward, repeatable without the other ranks; and the
    kernels that need not be tried, the same on all ranks."""
    train = layer.cell.workload.mode == "train"
    with torch.no_grad(), layer.watching() as seen:
        layer(x_TD)
    stage = seen.stage
    inputs: list[Tensor] = []
    if train and stage is not None:  # gradients of rows and gates are part of a step
        inputs = [stage.args[0], *(a.gates_TK for a in stage.args if isinstance(a, Routing))]
        for leaf in inputs:
            leaf.requires_grad_()

    def call() -> None:
        if stage is None:
            return
        with torch.set_grad_enabled(train):
            y = stage()
            if train and y.requires_grad:
                y.backward(torch.ones_like(y))
                for leaf in (*inputs, *layer.experts.parameters()):  # a kernel may replace its own
                    leaf.grad = None

    rows = 0 if stage is None else stage.args[0].shape[0] * len(layer.experts.ids)
    work = rows * layer.experts.fc1.shape[1:].numel()
    wasteful = work > _MUCH_WORK and rows > _WASTE * seen.slots
    anywhere = torch.tensor([float(wasteful)], device=layer.comm.device)
    layer.comm.world.combine_(anywhere, "max")
    return call, {"dense"} if anywhere.item() else set()


def _median_ms(call: Callable[[], None], layer: MoELayer, budget_ns: int) -> float:
    times = []
    begin = time.monotonic_ns()
    for turn in range(_MAX_CALLS + 1):
        start = time.monotonic_ns()
        call()
        if layer.comm.device.type == "cuda":
            torch.cuda.synchronize(layer.comm.device)
        if turn:
            times.append((time.monotonic_ns() - start) / 1e6)
        if turn >= _MIN_CALLS and time.monotonic_ns() - begin > budget_ns:
            break
    return statistics.median(times)
