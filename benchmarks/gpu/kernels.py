"""Expert kernels beside other systems' layers, for two models, in time.

    forward   many tokens, few, and one
    graph     one token, from a CUDA graph
    train     forward and backward
    rivals    where there is time: other systems that use Triton, which compile for longer

A wave has the cells of one model and batch: what a sweep has timed is kept when it is cut.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from benchmarks.gpu import packages
from benchmarks.gpu.bench import PEER
from benchmarks.gpu.rows import Part
from benchmarks.gpu.sweep import SweepCase, one_sweep

QWEN, MIXTRAL = "qwen3_30b_a3b", "mixtral_8x7b"
LIGER, TRITON, GROUPED = "simple_liger", "simple_triton", "simple_grouped"
PEER_GROUPED = "peer_grouped"
RIVALS = (PEER_GROUPED, "peer_liger", "peer_moe_ops")
MANY = 32_768  # tokens
SHARES = {"forward": 80, "graph": 38, "train": 60}  # of the part; `rivals` has what they leave
LEAST_S = 25.0  # for the rivals
# As in the part `bench`, with fewer samples.
MEASURE = {
    "samples": 4, "samples_max": 8, "wall_limit_s": 0.5, "warmup_max": 4, "phases": 0,
    "anchors": 0, "calibration_limit_s": 4, "cell_limit_s": 40,
    "wave_cells": 5,
}  # fmt: skip


def cases(tiny: bool) -> list[SweepCase]:
    if tiny:
        peers = (PEER,) if find_spec("transformers") else ()
        kernels = ",".join((GROUPED, "simple_loop", *peers))
        return [SweepCase("forward", settings(model=MIXTRAL, strategy=kernels, batch_size="1,16"))]
    ours = f"{LIGER},{TRITON},{GROUPED}"
    both = {"model": f"{QWEN},{MIXTRAL}"}
    beside = f"{ours},{PEER_GROUPED},{PEER}"
    triton = ",".join((LIGER, TRITON, *RIVALS))
    return [
        SweepCase("forward", settings(**both, strategy=beside, batch_size=f"{MANY},4096,128,1")),
        SweepCase("graph", settings(**both, strategy=ours, batch_size=1) | {"measure.graph": "on"}),
        SweepCase("train", settings(**both, strategy=beside, batch_size=4096, mode="train")),
        SweepCase("rivals", settings(strategy=triton, batch_size=f"{MANY},128")),
    ]


def settings(**changed: Any) -> dict[str, Any]:
    return {"model": QWEN, "workload": "balanced", **changed}


def run(part: Part) -> None:
    variables = packages.variables(part)
    if variables is None:
        return None
    left = sum(SHARES.values())
    for case in cases(part.tiny):
        share = SHARES.get(case.name, left)
        seconds = part.left_s() * (share / left if left else 1.0)
        if not left and seconds < LEAST_S:
            return part.add(cut=True, sweeps_left=[case.name])
        left -= share
        one_sweep(part, case, MEASURE, seconds, variables)
    return None
