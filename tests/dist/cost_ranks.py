"""Run by torchrun from test_cost_ranks.py: rank 0 prints one JSON line of counted against computed.

Every combination that the strategies accept is stepped once while the collectives count.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from moe import cost, spec
from moe.build import build, supports
from moe.cost import load as loads
from moe.cost import work
from moe.layer import onednn
from moe.layer.base import MoELayer
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
from moe.workload import batches
from tests.support.ranks import prepare as prepare

LAYER = LayerSpec(dim=24, hidden=32, dim_out=40, num_experts=8, topk=3, topk_requested=3)
GLOBAL = {"scope": "global"}


def ruled(**rules: Any) -> LayerSpec:
    return dataclasses.replace(LAYER, router=RouterSpec(**rules))


VARIANTS: dict[str, tuple[LayerSpec, StrategySpec]] = {
    "plain": (LAYER, StrategySpec(kernel="loop")),
    "gated bfloat16": (
        dataclasses.replace(LAYER, activation="silu_gated", dtype="bfloat16", bias="none"),
        StrategySpec(kernel="loop"),
    ),
    "overlap": (LAYER, StrategySpec(kernel="loop", overlap=3)),
    "wire": (LAYER, StrategySpec(kernel="loop", comm_dtype="bfloat16")),
    "shared": (dataclasses.replace(LAYER, shared_experts=2), StrategySpec(kernel="loop")),
    "round robin": (LAYER, StrategySpec(kernel="loop", placement="round_robin")),
    "hot replicas": (LAYER, StrategySpec(kernel="loop", hot_replicas=4)),
    "capacity, rank": (ruled(capacity_factor=0.7), StrategySpec(kernel="loop")),
    "capacity, global": (ruled(capacity_factor=0.7, **GLOBAL), StrategySpec(kernel="loop")),
    "by probability, loss, global": (
        ruled(capacity_factor=0.7, drop="probability", aux_loss=0.5, **GLOBAL),
        StrategySpec(kernel="loop"),
    ),
    "expert choice, global": (ruled(kind="expert_choice", **GLOBAL), StrategySpec(kernel="loop")),
}
ONE_MODE = {  # variants that need not be stepped in both
    "round robin": "train",
    "capacity, rank": "forward",
    "capacity, global": "forward",
    "expert choice, global": "train",
}
ON_FOUR_RANKS = ("plain", "hot replicas", "by probability, loss, global")


def cells(ranks: int) -> Iterator[tuple[str, Cell]]:
    """What is accepted of the product; 11 tokens split unevenly, 2 leave ranks without tokens."""
    product = itertools.product(
        VARIANTS, names(), spec.DISPATCHERS, spec.TOKENS, spec.MODES, (11, 2)
    )
    for variant, name, dispatcher, tokens, mode, batch in product:
        if not rules_of(name).dispatchers and dispatcher != "local":
            continue
        if variant != "plain" and (batch == 2 or ranks == 3):
            continue
        if ONE_MODE.get(variant, mode) != mode:
            continue
        if ranks == 4 and variant not in ON_FOUR_RANKS:
            continue
        layer, strategy = VARIANTS[variant]
        strategy = dataclasses.replace(strategy, name=name, dispatcher=dispatcher)
        work_ = WorkloadSpec(batch_size=batch, tokens=tokens, mode=mode)
        cell = Cell(layer, strategy, work_, RankLayout(world_size=ranks))
        try:
            supports(cell)
        except Unsupported:
            continue
        yield f"{variant} | {name} {dispatcher} {tokens} {mode} {batch}", cell


def rows_to(cell: Cell, layer: MoELayer, x: torch.Tensor) -> list[list[int]]:
    """Of every token: the members of the ep group that its slots go to, without dropped ones."""
    with torch.no_grad(), layer.watching() as seen:
        layer(x)
    if seen.routing is None:
        return []
    routing, places = seen.routing, layer.places
    per_rank = len(places.experts) // loads.degrees(cell).ep
    members_TK = places.locate(routing.indices_TK, seen.rows[0]) // per_rank
    kept = routing.kept_TK
    if kept is None:
        kept = torch.ones_like(members_TK, dtype=torch.bool)
    return [row[keep].tolist() for row, keep in zip(members_TK, kept, strict=True)]


def counted_load(cell: Cell, layer: MoELayer, x: torch.Tensor, rank: int, ranks: int) -> cost.Load:
    """What really reached this rank, from the routing of all ranks."""
    found = loads.degrees(cell)
    everyone: list[Any] = [None] * ranks
    dist.all_gather_object(everyone, rows_to(cell, layer, x))
    ep = rules_of(cell.strategy.name).groups(cell).ep
    peers = ep.ranks_with(rank)
    own = peers.index(rank)
    copied = len(layer.places.copied)
    if not loads.dispatches(cell):
        slots = sum(row.count(own) if found.ep > 1 else len(row) for row in everyone[rank])
        return cost.Load(slots, copied=copied)
    dedup = cell.strategy.dispatcher == "dedup"

    def rows(source: int, member: int, once: bool) -> int:
        counts = [row.count(member) for row in everyone[source]]
        return sum(min(count, 1) if once else count for count in counts)

    sent = sum(rows(rank, member, dedup) for member in range(ep.size) if member != own)
    received = sum(rows(peer, own, dedup) for peer in peers if peer != rank)
    slots = sum(rows(peer, own, False) for peer in peers)
    return cost.Load(slots, received + rows(rank, own, dedup), sent, received, copied=copied)


def linear_flops(x: torch.Size, w: torch.Size, *rest: Any, **named: Any) -> int:
    return 2 * x.numel() * w[0]


def outer_flops(a: torch.Size, b: torch.Size, *rest: Any, out: Any = None, **named: Any) -> int:
    """Of a product that is written to a given place: a gradient of a weight by one row."""
    return 2 * a[0] * b[1] if out is not None and a[1] == b[0] == 1 else 0


UNCOUNTED = {  # products that PyTorch's counter does not know to be such
    torch.ops.mkldnn._linear_pointwise: linear_flops,
    torch.ops.aten.mul: outer_flops,
}


def products(counter: FlopCounterMode) -> int:
    """Without batched products: kernel=loop has none, but sums up a token's K results with one."""
    counts = counter.get_flop_counts().get("Global", {})
    return sum(flops for name, flops in counts.items() if "bmm" not in str(name))


def examine(cell: Cell, comm: Comm) -> dict[str, Any]:
    rank, ranks = comm.rank, comm.world_size
    layer, x = build(cell, comm), batches.inputs(cell, comm.rank, comm.device)
    load = counted_load(cell, layer, x, rank, ranks)
    step = Step(cell, layer, x)
    counter = FlopCounterMode(display=False, custom_mapping=UNCOUNTED)
    with counter as flops, comm.counting() as counted:
        if cell.workload.mode == "forward":
            with torch.no_grad():  # the counter does not see into inference mode
                layer(x)
        else:
            step()
    measured = {
        f"{row['collective']} {row['group']}": [
            row["calls"], row["sent_bytes"], row["received_bytes"]
        ]
        for row in counted
    }  # fmt: skip
    computed = cost.totals(cost.collectives(cell, load, rank, comm.exchanged))
    return {
        "measured": measured,
        "computed": {f"{name} {group}": list(v) for (name, group), v in computed.items()},
        "flops": [products(flops), cost.step_flops(cell, load, rank)],
        "weights": [layer.weights_bytes(), work.weight_bytes(cell, rank)],
    }


def main(arguments: list[str]) -> int:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    onednn.runs(torch.float32)  # tries a product once, which is none of the layer's
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    comm = Comm(torch.device("cpu"), ranks, rank)
    mine = {name: examine(cell, comm) for name, cell in cells(ranks)}
    everyone: list[Any] = [None] * ranks
    dist.gather_object(mine, everyone if rank == 0 else None)
    if rank == 0:
        print(json.dumps({name: [found[name] for found in everyone] for name in mine}))
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
