"""Chooses a kernel by timing each on the rows that this layer's experts are given.

For a step that runs from a CUDA graph, the GPU's time counts: a graph has no launches to wait for.
Else the time that the host sees.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moe.layer.experts import Experts
from moe.layer.gpu_time import HeldQueue
from moe.layer.out_of_memory import free_cached, is_out_of_memory
from moe.layer.router import Routing
from moe.parallel.comm import Comm

_LOOK_NS = 8_000_000  # first look at each candidate, after one warm-up call
_BUDGET_NS = 40_000_000  # each pass over the candidates near the best
_MIN_CALLS, _MAX_CALLS = 3, 50
_NEAR = (1.5, 1.2)  # times the best, after the first look and the first pass
_MUCH_WORK = 100_000_000  # multiplications
_WASTE = 4  # ratio of rows that `dense` computes to rows needed
_TIE = 1.02  # candidates within this factor of the best tie; the first in the list wins


def choose(
    names: Sequence[str], call: Callable[[], None], use: Callable[[str], None], comm: Comm,
    captured: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Times `call` with each kernel, leaves the fastest in use, and returns {name, how,
    candidates_ms: {name: ms}}, and out_of_memory: [names] where a GPU's memory was not enough for
    all kernels. `captured`: for a step that a CUDA graph replays, by the GPU's time. Raises
    torch.OutOfMemoryError where memory was enough for none.

    Collective: all ranks time their own parts at the same time, and the slowest rank's median
    counts, so all choose alike. After a short look at each kernel, those near the best are timed
    longer, twice, in both orders: otherwise noise would pick different kernels in different
    launches, which changes a cell's time by more than the effects a sweep compares. A kernel that
    runs out of memory on one rank takes infinitely long there, and so is out of the choice on all.
    """
    too_large: set[str] = set()
    by_host = partial(_host_ms, call, comm.device)
    timed = partial(HeldQueue().ms, call) if captured else by_host

    def time_ms(candidates: Sequence[str], budget_ns: int) -> dict[str, float]:
        times_ms = torch.zeros(len(candidates), device=comm.device)
        for i, name in enumerate(candidates):
            times_ms[i] = _median_ms(partial(use, name), by_host, timed, comm.device, budget_ns)
        comm.world.combine_(times_ms, "max")
        times = dict(zip(candidates, times_ms.tolist(), strict=True))
        too_large.update(name for name, ms in times.items() if math.isinf(ms))
        if too_large.issuperset(names):
            raise torch.OutOfMemoryError(
                f"a GPU's memory is not enough for any kernel: {', '.join(names)}"
            )
        return times

    times = time_ms(names, _LOOK_NS)
    for again, limit in enumerate(_NEAR):
        near = [name for name in names if times[name] < limit * min(times.values())]
        if len(near) == 1:
            break
        for name, ms in time_ms(near if again else near[::-1], _BUDGET_NS).items():
            times[name] = min(ms, times[name]) if again else ms
        times |= dict.fromkeys(too_large, math.inf)
    best = next(name for name in names if times[name] <= _TIE * min(times.values()))
    use(best)
    finite = {name: ms for name, ms in times.items() if name not in too_large}
    choice = {"name": best, "how": "measured", "candidates_ms": finite}
    return choice | ({"out_of_memory": sorted(too_large)} if too_large else {})


def replay(
    stage: partial[Tensor] | None, slots: int, experts: Experts, train: bool, comm: Comm
) -> tuple[Callable[[], None], set[str]]:
    """Returns (call, skip): a replay of this rank's expert computation, and kernels too wasteful to
    time.

    `stage` is the expert computation of one forward pass on `slots` rows (None if there was none);
    in training the replay includes its backward pass, with the accumulation of gradients: one that
    arrives transposed is copied there. `skip` is the same on all ranks. Collective.
    """
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
                try:
                    y.backward(torch.ones_like(y))
                finally:
                    for leaf in (*inputs, *experts.parameters()):  # a kernel may replace its own
                        leaf.grad = None

    rows = 0 if stage is None else stage.args[0].shape[0] * len(experts.ids)
    work = rows * experts.fc1.shape[1:].numel()
    wasteful = work > _MUCH_WORK and rows > _WASTE * slots
    anywhere = torch.tensor([float(wasteful)], device=comm.device)
    comm.world.combine_(anywhere, "max")
    return call, {"dense"} if anywhere.item() else set()


def _host_ms(call: Callable[[], None], device: torch.device) -> float:
    """Milliseconds until the device has done what `call` asks for."""
    start_ns = time.monotonic_ns()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.monotonic_ns() - start_ns) / 1e6


def _median_ms(
    use: Callable[[], None], warm_up: Callable[[], object], timed: Callable[[], float],
    device: torch.device, budget_ns: int,
) -> float:  # fmt: skip
    """Of what `timed` returns after `use` and `warm_up`; infinite where the GPU's memory is not
    enough for them."""
    try:
        use()
        begin_ns = time.monotonic_ns()
        warm_up()
        return _repeated_ms(timed, begin_ns + budget_ns)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    free_cached(device)  # when the error, and what it kept, have gone
    return math.inf


def _repeated_ms(timed: Callable[[], float], end_ns: int) -> float:
    """The median of at least _MIN_CALLS values, until the time `end_ns`."""
    times: list[float] = []
    while len(times) < _MAX_CALLS:
        times.append(timed())
        if len(times) >= _MIN_CALLS and time.monotonic_ns() > end_ns:
            break
    return statistics.median(times)
