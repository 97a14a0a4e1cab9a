"""One rank of test_agree.py: rank 0 prints one JSON line of what the check says of the rows in a
file, which `save` has written.

What is crossed: every accepted combination of strategy, dispatcher, tokens, mode and dtype; with
it, pairwise, routers, workloads, kernels, activations, biases, batches and ways to spread experts.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from moe import spec
from moe.build import build, supports
from moe.parallel.comm import Comm
from moe.spec import (
    Cell,
    LayerSpec,
    RankLayout,
    RouterSpec,
    StrategySpec,
    Unsupported,
    WorkloadSpec,
)
from moe.step import Step
from moe.strategies import names, rules_of
from moe.verify.verifier import verify
from moe.workload import batches
from tests.support.covering import Pair, Row, pairwise
from tests.support.ranks import prepare as prepare

EXPERTS, TOPK, DIM, HIDDEN, OUT = 12, 3, 16, 48, 32
ROUTERS = {
    "plain": RouterSpec(),
    "after": RouterSpec(order="after"),
    "not normalised": RouterSpec(normalize=False, scale=1.5),
    "sigmoid": RouterSpec(score="sigmoid", scale=2.5),
    "groups": RouterSpec(score="sigmoid", groups=4, group_topk=2, selection_bias="balanced"),
    "bias": RouterSpec(selection_bias="balanced"),
    "capacity": RouterSpec(capacity_factor=0.8),
    "capacity by probability": RouterSpec(capacity_factor=0.8, drop="probability", scope="global"),
    "expert choice": RouterSpec(kind="expert_choice"),
    "expert choice, global": RouterSpec(kind="expert_choice", scope="global", normalize=False),
    "loss": RouterSpec(aux_loss=1.0),
    "loss, global": RouterSpec(aux_loss=1.0, scope="global", score="sigmoid"),
}
WORKLOADS = {
    "learned": 0.0, "balanced": 0.0, "zipf": 1.2, "k_hot": 4.0, "hot_rank": 0.7, "imbalance": 1.3,
}  # fmt: skip
SPREADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "round robin": {"placement": "round_robin"},
    "explicit": {"placement": "explicit", "expert_order": (5, 0, 7, 2, 9, 4, 11, 6, 1, 8, 3, 10)},
    "copies": {"hot_replicas": -1},  # as many as there are ranks
    "overlap": {"overlap": 3},
    "wire": {"comm_dtype": "bfloat16"},
}
CORE = tuple(
    (name, dispatcher, tokens)
    for name, dispatcher, tokens in itertools.product(names(), spec.DISPATCHERS, spec.TOKENS)
    if dispatcher == "local" or rules_of(name).dispatchers
    if dispatcher not in spec.EXPERIMENTAL
)
CROSSED = ("core", "mode", "dtype")
FACTORS: dict[str, tuple[Any, ...]] = {
    "core": CORE,
    "mode": spec.MODES,
    "dtype": spec.DTYPES,
    "router": tuple(ROUTERS),
    "workload": tuple(WORKLOADS),
    "spread": tuple(SPREADS),
    "kernel": ("loop", "bmm", "dense", "grouped"),
    "activation": spec.ACTIVATIONS,
    "bias": spec.BIASES,
    "shared": (0, 2),
    "batch": (1, 3, 29),
}


def cell_of(row: Row, ranks: int) -> Cell:
    name, dispatcher, tokens = row["core"]
    layer = LayerSpec(
        DIM, HIDDEN, OUT, EXPERTS, TOPK, TOPK, row["activation"], row["bias"], row["shared"],
        row["dtype"], 0, ROUTERS[row["router"]],
    )  # fmt: skip
    spread = dict(SPREADS[row["spread"]])
    if "hot_replicas" in spread:
        spread["hot_replicas"] = ranks
    strategy = StrategySpec(name, dispatcher, kernel=row["kernel"], **spread)
    parameter = WORKLOADS[row["workload"]]
    work = WorkloadSpec(row["batch"], tokens, row["mode"], row["workload"], parameter)
    return Cell(layer, strategy, work, RankLayout(world_size=ranks))


def accepted(row: Row, ranks: int, make: Callable[[Row, int], Cell] = cell_of) -> bool:
    """Whether the cell that `make` makes of the row can be run."""
    if row["core"][0] == "serial" and ranks > 1:
        return False
    try:
        supports(make(row, ranks))
    except Unsupported:
        return False
    return True


def every_core(ranks: int) -> Iterator[Row]:
    """All of strategy, dispatcher, tokens, mode and dtype; the rest as plain as it can be."""
    plain = {
        "router": "plain", "workload": "learned", "spread": "plain", "kernel": "loop",
        "activation": "silu_gated", "bias": "random", "shared": 0, "batch": 29,
    }  # fmt: skip
    for core, mode, dtype in itertools.product(CORE, spec.MODES, spec.DTYPES):
        row = {**plain, "core": core, "mode": mode, "dtype": dtype}
        if accepted(row, ranks):
            yield row


def rows_for(kind: str, ranks: int) -> list[Row]:
    if kind == "full":
        kept = ("core", "mode", "dtype", "router", "workload", "spread")
        found = []
        for number, values in enumerate(itertools.product(*(FACTORS[name] for name in kept))):
            others = {
                name: choices[(number * 7 + place) % len(choices)]
                for place, (name, choices) in enumerate(FACTORS.items())
                if name not in kept
            }
            row = dict(zip(kept, values, strict=True)) | others
            if accepted(row, ranks):
                found.append(row)
        return found
    return covering(ranks)[0]


def covering(ranks: int) -> tuple[list[Row], set[Pair]]:
    """Rows with every accepted pair of values and every accepted combination of strategy,
    dispatcher, tokens, mode and dtype; and the pairs that are never accepted."""
    known = list(every_core(ranks))
    return pairwise(FACTORS, lambda row: accepted(row, ranks), ranks, known, CROSSED)


def save(rows: list[Row], path: Path) -> Path:
    """Once for all ranks: to find the rows takes as long as to check them."""
    path.write_text(json.dumps(rows))
    return path


def main(arguments: list[str]) -> int:
    rows: list[Row] = json.loads(Path(arguments[0]).read_text())
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    comm = Comm(torch.device("cpu"), ranks, rank)
    wrong, worst = [], {"error": 0.0, "gradient_error": 0.0}
    for row in rows:
        cell = cell_of(row, ranks)
        layer = build(cell, comm)
        step = Step(cell, layer, batches.inputs(cell, rank, comm.device))
        found = verify(cell, step, comm).to_dict()
        if cell.layer.dtype == "float32" and not cell.strategy.comm_dtype:
            worst = {name: max(value, found[name] or 0.0) for name, value in worst.items()}
        if not found["ok"]:
            wrong.append([row, found])
    if rank == 0:
        print(json.dumps({"cells": len(rows), "wrong": wrong, "worst_float32": worst}))
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
