"""simple on one rank with every core against transformers' Mixtral block, on the same weights.

transformers has three ways of computing the experts, and each cell takes the fastest of those that
can run it: `batched_mm` copies the weights for every slot, so it is left out where the copy would
be over a GiB. Those over three times as slow as the best in a first call are not timed further.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.speed import store
from benchmarks.speed.alternating import call_ms, medians_ms
from moe import build, spec
from moe.layer.base import MoELayer
from moe.parallel.comm import Comm
from moe.step import Step
from moe.workload import batches
from runners.host.hardware import usable_cores

SHAPES = ((256, 512), (1024, 2048), (2048, 1024))
EXPERTS, TOPKS, TOKENS = (8, 64), (1, 2, 8), (1, 8, 128, 1024)
DTYPES = ("float32", "bfloat16")
WAYS = ("eager", "batched_mm", "grouped_mm")
COPY_LIMIT = 1 << 30
FEW = 16  # tokens per expert
AGREE = {"float32": 1e-3, "bfloat16": 5e-2}


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(usable_cores())
    deadline = time.monotonic() + args.limit_s
    done = {row["cell"] for row in store.load("peers")}
    for num, shape, dtype in itertools.product(EXPERTS, SHAPES, DTYPES):
        points = [p for p in itertools.product(TOPKS, TOKENS) if name(dtype, num, shape, p)
                  not in done]  # fmt: skip
        if not points or time.monotonic() > deadline:
            continue
        layer, block = pair(dtype, num, shape)
        for point in points:
            if time.monotonic() > deadline:
                break
            row = measure(layer, block, point)
            row["cell"] = name(dtype, num, shape, point)
            store.append("peers", [row])
            print(row, flush=True)


def name(dtype: str, num: int, shape: tuple[int, int], point: tuple[int, int]) -> str:
    return f"{dtype} {shape[0]}/{shape[1]} E{num} k{point[0]} T{point[1]}"


def cell_of(dtype: str, num: int, shape: tuple[int, int], topk: int, tokens: int) -> spec.Cell:
    layer = spec.LayerSpec(*shape, dim_out=shape[0], num_experts=num, topk=topk,
                           topk_requested=topk,
                       activation="silu_gated", bias="none", dtype=dtype)  # fmt: skip
    return spec.Cell(layer, spec.StrategySpec("simple"), spec.WorkloadSpec(batch_size=tokens),
                     spec.RankLayout(world_size=1, threads=torch.get_num_threads()))  # fmt: skip


def pair(dtype: str, num: int, shape: tuple[int, int]) -> tuple[MoELayer, Any]:
    """The project's layer and transformers' block, with weights of the same values."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    comm = Comm(torch.device("cpu"), 1, 0)
    layer = build.build(cell_of(dtype, num, shape, 1, 1), comm)
    config = MixtralConfig(hidden_size=shape[0], intermediate_size=shape[1],
                           num_local_experts=num, num_experts_per_tok=1)  # fmt: skip
    with torch.device("meta"):
        block = MixtralSparseMoeBlock(config)
    held = {"gate.weight": layer.router.weight_ED.to(layer.experts.fc1.dtype),
            "experts.gate_up_proj": layer.experts.fc1,
            "experts.down_proj": layer.experts.fc2}  # fmt: skip
    block.load_state_dict({key: value.detach().clone() for key, value in held.items()}, assign=True)
    return layer, block.eval().requires_grad_(False)


def measure(layer: MoELayer, block: Any, point: tuple[int, int]) -> store.Row:
    topk, tokens = point
    shape = (layer.layer.dim, layer.layer.hidden)
    cell = cell_of(layer.layer.dtype, layer.layer.num_experts, shape, topk, tokens)
    layer.cell, layer.layer, layer.total = cell, cell.layer, tokens
    layer.rows, layer.router.layer = (0, tokens), cell.layer
    x_TD = batches.inputs(cell, 0, torch.device("cpu"))
    kernel = layer.tune(x_TD)["name"]
    block.gate.top_k = block.top_k = topk
    ways = theirs(block, x_TD, topk)
    with torch.inference_mode():
        agree(layer(x_TD), block(x_TD[None])[0], cell.layer.dtype)
    found = medians_ms({"ours": Step(cell, layer, x_TD), **ways})
    ours = found.pop("ours")
    best = min(found, key=lambda way: found[way])
    return {
        "dtype": cell.layer.dtype, "shape": shape, "experts": cell.layer.num_experts, "topk": topk,
        "tokens": tokens, "kernel": kernel, "ours_ms": ours, "theirs_ms": found, "best": best,
        "ratio": found[best] / ours, "per_expert": tokens * topk / cell.layer.num_experts,
    }  # fmt: skip


def theirs(block: Any, x_TD: torch.Tensor, topk: int) -> dict[str, Any]:
    """transformers' ways that are worth timing."""
    weights = block.experts.gate_up_proj[0].nbytes + block.experts.down_proj[0].nbytes
    ways: dict[str, Any] = {}
    first_ms: dict[str, float] = {}
    for way in WAYS:
        if way == "batched_mm" and x_TD.shape[0] * topk * weights > COPY_LIMIT:
            continue
        ways[way] = step_of(block, way, x_TD[None])
        ways[way]()
        first_ms[way] = call_ms(ways[way])
    limit = 3 * min(first_ms.values())
    return {way: step for way, step in ways.items() if first_ms[way] <= limit}


def step_of(block: Any, way: str, x_1TD: torch.Tensor) -> Any:
    def step() -> None:
        block.experts.config._experts_implementation = way
        with torch.inference_mode():
            block(x_1TD)

    return step


def agree(ours: torch.Tensor, other: Any, dtype: str) -> None:
    """Most tokens, because a router in half precision chooses other experts for a few."""
    other = other[0] if isinstance(other, tuple) else other
    other = other.reshape(ours.shape).float()
    gap = (ours.float() - other).norm(dim=1) / other.norm(dim=1).median()
    if not float((gap < AGREE[dtype]).float().mean()) > 0.85:
        raise SystemExit(f"transformers computes something else: {gap}")


def table() -> str:
    rows = store.load("peers")
    lines = [
        ("x".join(map(str, row["shape"])), row["experts"], row["topk"], row["tokens"], row["dtype"],
         row["kernel"], row["best"], f"{row['theirs_ms'][row['best']]:.3f}",
         f"{row['ours_ms']:.3f}", f"{row['ratio']:.2f}", said(row))
        for row in rows
    ]  # fmt: skip
    head = ("shape", "E", "k", "tokens", "dtype", "kernel", "their best", "ms", "ours ms", "ratio",
            "target")  # fmt: skip
    return "\n".join(summaries(rows)) + "\n\n" + store.markdown(head, lines)


def said(row: store.Row) -> str:
    return "" if row["per_expert"] < FEW else store.verdict(row["ratio"] >= 0.97)


def summaries(rows: list[store.Row]) -> Iterator[str]:
    for dtype in (*DTYPES, ""):
        mine = [row for row in rows if dtype in ("", row["dtype"])]
        few = [row["ratio"] for row in mine if row["per_expert"] < FEW]
        many = [row["ratio"] for row in mine if row["per_expert"] >= FEW]
        if few and many:
            mean, least = store.geometric_mean(few), min(many)
            yield (
                f"- {dtype or 'both'}: under {FEW} tokens per expert ({len(few)} cells) geometric "
                f"mean {mean:.2f}, least {min(few):.2f} (mean >= 1.5: "
                f"{store.verdict(mean >= 1.5)}); above ({len(many)} cells) geometric mean "
                f"{store.geometric_mean(many):.2f}, least {least:.2f}, "
                f"{sum(r < 0.97 for r in many)} cells under 0.97: {store.verdict(least >= 0.97)}"
            )
