"""One step of a cell, as the thing that is timed."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from moe import workload
from moe.layer import MoELayer
from moe.phases import phase
from moe.spec import Cell


def make_step(cell: Cell, layer: MoELayer, x_TD: Tensor) -> Callable[[], None]:
    """Forward in inference mode, or forward, backward and the gradients' reduction.

    `strategy.slowdown` adds, on every rank, busy work of that fraction of its own step's time.
    """
    if cell.workload.mode == "forward":
        step = _forward(layer, x_TD)
    else:
        bounds = workload.start_rows(cell, layer.comm.rank)
        step = _train(layer, x_TD, workload.cotangent(cell, bounds).to(x_TD.device))
    if not cell.strategy.slowdown:
        return step
    return _slowed(step, cell.strategy.slowdown, layer.comm.device)


def _forward(layer: MoELayer, x_TD: Tensor) -> Callable[[], None]:
    forward, inference = layer.forward, torch.inference_mode  # no hooks to be called

    def step() -> None:
        with inference():
            forward(x_TD)

    return step


def train_once(layer: MoELayer, x_TD: Tensor, cotangent_TO: Tensor) -> Tensor:
    """Forward and backward of the loss; leaves gradients in x and the parameters."""
    layer.zero_grad(set_to_none=True)
    x_TD.grad = None
    y_TO = layer(x_TD)
    with phase("backward"):
        if y_TO.requires_grad:
            y_TO.backward(cotangent_TO[: y_TO.shape[0]])
    with phase("gradients"):
        layer.finish_gradients()
    return y_TO.detach()


def _train(layer: MoELayer, x_TD: Tensor, cotangent_TO: Tensor) -> Callable[[], None]:
    def step() -> None:
        train_once(layer, x_TD, cotangent_TO)

    return step


def _slowed(step: Callable[[], None], fraction: float, device: torch.device) -> Callable[[], None]:
    def slowed() -> None:
        start_ns = time.monotonic_ns()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        with phase("experts"):
            now_ns = time.monotonic_ns()
            end_ns = now_ns + int(fraction * (now_ns - start_ns))
            while time.monotonic_ns() < end_ns:
                pass

    return slowed
