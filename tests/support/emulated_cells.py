"""Cells of an emulated cluster whose times the model gives, by known coefficients."""

from __future__ import annotations

import random
from collections.abc import Callable

from analysis.predict import emulated, model
from analysis.predict.fit import Measured
from analysis.predict.model import Coefficients
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec
from runners.records.emulation import Emulation

CLUSTER = Emulation(20.0, 2, 80.0, 8.0, mtu=1500)
CALIBRATION = {
    "ranks": 4, "threads": 1, "backend": "gloo", "device": "cpu", "collectives": {},
    "read_warm_bytes_per_s": {}, "read_bytes_per_s": 5e8, "copy_bytes_per_s": 5e8,
    "matmul_flops_per_s": {"float32": {"peak": 2e9}},
    "shared": {"read_bytes_per_s": 2e9, "matmul_flops_per_s": {"float32": 8e9}},
}  # fmt: skip
MACHINE = emulated.machine(CLUSTER, CALIBRATION)
TRUTH = Coefficients({
    ("", "operations"): 1e-3, ("", "experts"): 1e-3, ("", "matrix"): 1.3, ("", "read"): 1.2,
    ("", "move"): 1.5, ("", "fresh"): 1.0, ("", "wire"): 1.03, ("", "calls"): 4e-3,
    ("", "messages"): 1e-3, ("", "hops"): 2e-3, ("", "straggle"): 0.1,
})  # fmt: skip
Change = Callable[[Cell, float], float]


def cell(name: str, ranks: int, topk: int, each: int) -> Cell:
    layer = LayerSpec(256, 512, 256, num_experts=32, topk=topk, topk_requested=topk)
    way = "local" if name in ("simple", "tp") else "alltoall"
    work = WorkloadSpec(batch_size=each * ranks, tokens="sharded")
    strategy = StrategySpec(name, way, kernel="loop")
    return Cell(layer, strategy, work, RankLayout(ranks, "gloo", "cpu", 1))


def grid() -> list[Cell]:
    return [
        cell(name, ranks, topk, each)
        for ranks in (1, 2, 4, 8, 16, 32)
        for name in (("simple",) if ranks == 1 else ("simple", "tp", "ep", "dp_ep"))
        for topk in (1, 2, 4)
        for each in (64, 256)
        if name != "dp_ep" or ranks > 2
    ]


def true_s(of: Cell) -> float:
    return model.time_s(of, MACHINE, TRUTH)[1]


def measured(change: Change = lambda _, seconds: seconds, noise: float = 0.02) -> list[Measured]:
    rng = random.Random(1)
    return [
        Measured(of, MACHINE, change(of, true_s(of)) * rng.lognormvariate(0, noise), {})
        for of in grid()
    ]
