"""One step of a cell. The same object is checked and timed.

With `strategy.graph` it is captured in a CUDA graph, and a call replays it: one launch in place of
one for each kernel.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from moe import waits
from moe.layer.base import MoELayer
from moe.phases import phase
from moe.spec import Cell, Unsupported
from moe.workload import batches

# All graphs since `release_graphs`. They are captured on one stream; torch 2.13 frees its cuBLAS
# workspace with the first of them that is destroyed (pytorch #193402).
_graphs: list[Any] = []
CAPTURE_WARM_UP = 3  # calls before a capture, as torch's documentation advises


class Step:
    """Forward in inference mode, or forward, backward and reduction of gradients, on `x_TD`.

    `output` is the last call's result, not a copy. Gradients are in `.grad` of x and the
    parameters. `strategy.slowdown` adds busy work on every rank: that fraction of the step's own
    time.
    """

    def __init__(self, cell: Cell, layer: MoELayer, x_TD: Tensor) -> None:
        self.layer, self.x_TD = layer, x_TD
        self.output: Tensor | None = None
        if cell.workload.mode == "forward":
            call = _forward(layer, x_TD)
        else:
            bounds = batches.start_rows(cell, layer.comm.rank)
            call = _train(layer, x_TD, batches.cotangent(cell, bounds, x_TD.device))
        if cell.strategy.slowdown:
            call = _slowed(call, cell.strategy.slowdown, layer.comm.device)
        self._call = call
        self._replay: Callable[[], Tensor] | None = None
        if cell.strategy.graph == "on":
            self._replay = _captured(call, [x_TD, *layer.parameters()], layer.comm.device)

    @property
    def captured(self) -> bool:
        return self._replay is not None

    def __call__(self) -> None:
        self.output = None  # frees it before the next output is allocated
        self.output = self._call() if self._replay is None else self._replay()

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Calls in the block run kernel by kernel, so that what they do can be watched."""
        replay, self._replay = self._replay, None
        try:
            yield
        finally:
            self._replay = replay


class Rotation:
    """Each call runs the next of several steps; `last` is the one that ran last."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.last = steps[-1]
        self._following = itertools.cycle(steps).__next__

    def __call__(self) -> None:
        self.last.output = None  # frees its memory for the next step, as a single step does
        self.last = self._following()
        self.last()


def _forward(layer: MoELayer, x_TD: Tensor) -> Callable[[], Tensor]:
    forward, inference = layer.forward, torch.inference_mode  # skips torch's hooks

    def call() -> Tensor:
        with inference():
            return forward(x_TD)

    return call


def _train(layer: MoELayer, x_TD: Tensor, cotangent_TO: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        layer.zero_grad(set_to_none=True)
        x_TD.grad = None
        y_TO = layer(x_TD)
        with phase("backward"):
            if y_TO.requires_grad:
                y_TO.backward(cotangent_TO[: y_TO.shape[0]])
        with phase("gradients"):
            layer.finish_gradients()
        return y_TO.detach()

    return call


def _captured(
    call: Callable[[], Tensor], leaves: Sequence[Tensor], device: torch.device
) -> Callable[[], Tensor]:
    """Replays `call`, which reads and writes the memory of its capture: inputs and weights, the
    output, and the gradients of `leaves`.

    Raises Unsupported where the call makes the host wait, which no capture allows.
    """
    usual, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    aside.wait_stream(usual)
    with torch.cuda.stream(aside):
        for _ in range(CAPTURE_WARM_UP):  # libraries choose algorithms and allocate
            call()
        if why := waits.first(call):
            raise Unsupported("measure.graph", "on", f"off for a step that waits ({why})",
                              "set measure.graph=off")  # fmt: skip
    usual.wait_stream(aside)
    for leaf in leaves:
        leaf.grad = None  # or its memory would be held beside the capture's
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            output = call()
    finally:
        torch.cuda.set_stream(usual)  # a capture that fails leaves its own
    _graphs.append(graph)
    gradients = [(leaf, leaf.grad) for leaf in leaves if leaf.grad is not None]

    def replay() -> Tensor:
        graph.replay()
        for leaf, gradient in gradients:  # an eager call in between has left its own
            leaf.grad = gradient
        return output

    return replay


def release_graphs() -> None:
    """Lets go of all graphs. Call it where no captured step will be called again."""
    _graphs.clear()


def _slowed(
    call: Callable[[], Tensor], fraction: float, device: torch.device
) -> Callable[[], Tensor]:
    def slowed() -> Tensor:
        start_ns = time.monotonic_ns()
        output = call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        with phase("experts"):
            now_ns = time.monotonic_ns()
            end_ns = now_ns + int(fraction * (now_ns - start_ns))
            while time.monotonic_ns() < end_ns:
                pass
        return output

    return slowed
