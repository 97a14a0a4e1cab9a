"""Waits of the host in a step against their budget, and steps from a CUDA graph against eager ones.

A form whose budget is 0 runs under torch.cuda.set_sync_debug_mode("error"), where an operation that
waits raises; others are counted. Both need a GPU.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import budget
from benchmarks.gpu.facts import device_of, median_ms
from benchmarks.gpu.forms import MODES, PLACES, PLAIN, Form, layer_of, one_rank, step_of
from benchmarks.gpu.rows import Part, error_of
from moe import waits
from moe.parallel.comm import Comm
from moe.spec import LayerSpec, StrategySpec, Unsupported
from runners.host.project_paths import CODE

ROUTERS = (PLAIN, "sigmoid_groups")  # whose tokens choose their experts
GRAPH_LAYER = LayerSpec(
    dim=2048, hidden=768, dim_out=2048, num_experts=32, topk=8, topk_requested=8,
    activation="silu_gated", bias="none",
)  # fmt: skip  # Qwen3-30B-A3B's with a quarter of its experts
GRAPH_BATCHES = (1, 16, 128)
GRAPH_FORMS = [
    Form(StrategySpec("simple", kernel="grouped"), "sharded", "bfloat16", "forward"),
    Form(StrategySpec("simple", kernel="dense"), "sharded", "bfloat16", "forward"),
    Form(StrategySpec("simple", kernel="liger"), "sharded", "bfloat16", "forward"),
    Form(StrategySpec("simple", kernel="triton"), "sharded", "bfloat16", "forward"),
    Form(StrategySpec("ep", "allgather", kernel="grouped"), "sharded", "bfloat16", "forward"),
    Form(StrategySpec("simple", kernel="grouped"), "sharded", "bfloat16", "train"),
]
GRAPH_SHARE = 0.5  # of the part


def limited() -> list[tuple[Form, int]]:
    """The forms that have a budget, with it."""
    crossed = itertools.product(ROUTERS, MODES, PLACES, budget.KERNELS)
    pairs = []
    for router, mode, (strategy, tokens), kernel in crossed:
        most = budget.host_waits(strategy.name, strategy.dispatcher, kernel)
        if most is not None:
            form = Form(replace(strategy, kernel=kernel), tokens, "bfloat16", mode, router)
            pairs.append((form, most))
    return pairs


def run(part: Part) -> None:
    if part.tiny:
        return part.add(left_out="waits and CUDA graphs need a GPU")
    device = device_of(part.tiny)
    comm, layer, placement = Comm(device, 1, 0), layer_of(part.tiny), one_rank(part.tiny)
    graphs_begin_s = part.left_s() * GRAPH_SHARE
    for form, most in limited():
        if part.left_s() < graphs_begin_s:
            part.add(cut=True, what="budget")
            break
        try:
            step = step_of(form.cell(layer, placement), comm)
            row = judged(step, device, most)
        except Exception as error:
            row = {"ok": False, "error": error_of(error)}
        part.add(**form.labels(), budget=most, **row)
    for form, batch in itertools.product(GRAPH_FORMS, GRAPH_BATCHES):
        if part.is_over():
            return part.add(cut=True, what="graphs")
        part.add(**form.labels(), batch=batch, **graph_row(form, batch, comm))
    return None


def judged(step: Callable[[], object], device: torch.device, most: int) -> dict[str, Any]:
    """Waits of a step against its budget; where that is 0, under the sync debug mode "error"."""
    step()  # first calls may wait: they allocate, and choose kernels of libraries
    made = waits.count(step, device)
    row: dict[str, Any] = {"ok": made is not None and made <= most, "waits": made}
    if most == 0 and (raised := waiting_operation(step)):
        row |= {"ok": False, "error": raised}
    return row


def waiting_operation(step: Callable[[], object]) -> str:
    """The first operation of a step that waits for the GPU, and its line; "" for none."""
    error = waits.reported(step)
    return f"{error_of(error)} at {line_of(error)}" if error else ""


def line_of(error: BaseException) -> str:
    """FILE:LINE of the last line of this project that an error came through."""
    own = [
        frame for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(CODE / "moe") and frame.filename != waits.__file__
    ]  # fmt: skip
    if not own:
        return "an unknown line"
    return f"{Path(own[-1].filename).relative_to(CODE)}:{own[-1].lineno}"


def graph_row(form: Form, batch: int, comm: Comm) -> dict[str, Any]:
    """Median ms of a step, kernel by kernel and as the replay of a CUDA graph, and whether both
    give the same output."""
    captured = replace(form, strategy=replace(form.strategy, graph="on"))
    try:
        step = step_of(captured.cell(GRAPH_LAYER, one_rank(tiny=False), batch), comm)
        with step.eager():
            step()
            assert step.output is not None
            expected = step.output.clone()
            eager_ms = median_ms(step, comm.device, 0.2)
        step()
        equal = bool(torch.equal(step.output, expected))
        graph_ms = median_ms(step, comm.device, 0.2)
        return {"ok": equal, "eager_ms": eager_ms, "graph_ms": graph_ms}
    except Unsupported as why:
        return {"refused": str(why)}
    except Exception as error:
        return {"ok": False, "error": error_of(error)}
