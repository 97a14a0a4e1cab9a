"""Peers on real ranks, started by tests with torchrun: `peer_ranks.py NAME...` prints one JSON
object, case -> the gate's verdict with the bytes that one step moved and the slots of each rank.

NAME is a peer, as `transformers` or `transformers:eager`; `faults` are adapters with a planted
fault; `bytes` are collectives counted from outside and by Comm itself.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moe.build import build, supports
from moe.layer.router import Routing
from moe.layer.weight_store import FusedWeights
from moe.parallel.algorithms import CHOSEN
from moe.parallel.comm import Comm
from moe.peers import limits_of, reference, transformers
from moe.peers.base import PeerLayer
from moe.peers.instrument import Listening
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, Unsupported, WorkloadSpec
from moe.step import Step
from moe.verify.verifier import Verifier
from moe.workload import batches
from tests.support.ranks import prepare as prepare

Verdicts = dict[str, dict[str, Any]]
DTYPES = ("float32", "bfloat16")


class Swapping(PeerLayer):
    """The first two experts' second matrices have changed places."""

    def weights_of(self, name: str, ids: Sequence[int] | None = None) -> Tensor:
        stacked = super().weights_of(name, ids)
        if name == "w2":
            stacked[[0, 1]] = stacked[[1, 0]]
        return stacked


class NotRenormalised(transformers.Peer):
    """Gates are the chosen experts' share of all experts, and do not sum to one."""

    def route(self, x_TD: Tensor) -> Routing:
        routing = super().route(x_TD)
        routing.gates_TK = routing.logits_TE.softmax(1).gather(1, routing.indices_TK)
        return routing


class SwappedExperts(transformers.Peer):
    def fused(self) -> FusedWeights:
        fused = super().fused()
        fused.fc2[[0, 1]] = fused.fc2[[1, 0]]
        return fused


class SwappedReference(Swapping, reference.Peer):
    pass


class GradientsOfAnother(transformers.Peer):
    """Outputs are right, but two experts' gradients are handed on under each other's name."""

    def matrices(self, of: Any) -> Any:
        for e, found in super().matrices(of):
            yield e ^ 1, found


FAULTS = {
    "swapped": (SwappedExperts, "peer_transformers"),
    "not_renormalised": (NotRenormalised, "peer_transformers"),
    "swapped_reference": (SwappedReference, "peer_reference"),
    "gradients_of_another": (GradientsOfAnother, "peer_transformers"),
}


def cell_of(strategy: StrategySpec, ranks: int, **changes: Any) -> Cell:
    limits = limits_of(strategy.name)
    dtype, mode = changes.get("dtype", "float32"), changes.get("mode", "forward")
    experts = ranks if strategy.variant == "ep" else 8
    layer = LayerSpec(32, 64, 32, experts, 2, 2, limits.activations[-1], "none", dtype=dtype)
    work = WorkloadSpec(changes.get("batch", 12), changes.get("tokens", "replicated"), mode,
                    changes.get("kind", "learned"), changes.get("parameter", 0.0))  # fmt: skip
    return Cell(layer, strategy, work, RankLayout(ranks, "gloo", "cpu", 1))


def judge(cell: Cell, layer: Any, comm: Comm) -> dict[str, Any]:
    step = Step(cell, layer, batches.inputs(cell, comm.rank, comm.device))
    verifier = Verifier(cell, comm)
    verdict = verifier.prove([step], 0).to_dict()
    assert verifier.seen is not None
    with comm.counting() as rows:
        step()
    sent = sum(row["sent_bytes"] for row in rows)
    return verdict | {"sent_bytes": sent, "rank_slots": layer.skew(verifier.seen)["rank_slots"]}


def right(name: str, comm: Comm) -> Verdicts:
    """Every dtype, mode, way of holding tokens and skew that the peer takes."""
    peer, _, variant = name.partition(":")
    strategy = StrategySpec(f"peer_{peer}", variant=variant)
    found: Verdicts = {}
    points = itertools.product(DTYPES, ("forward", "train"), ("replicated", "sharded"),
                               (("learned", 0.0), ("zipf", 1.0)), (12, 64))  # fmt: skip
    for dtype, mode, tokens, (kind, parameter), batch in points:
        cell = cell_of(strategy, comm.world_size, dtype=dtype, mode=mode, tokens=tokens,
                       kind=kind, parameter=parameter, batch=batch)  # fmt: skip
        try:
            supports(cell)
        except Unsupported:
            continue
        case = f"{name} {dtype} {mode} {tokens} {kind} {batch}"
        found[case] = judge(cell, build(cell, comm), comm)
    return found


def faults(comm: Comm) -> Verdicts:
    found: Verdicts = {}
    for name, (kind, strategy) in FAULTS.items():
        for dtype, mode in itertools.product(DTYPES, ("forward", "train")):
            cell = cell_of(StrategySpec(strategy), comm.world_size, dtype=dtype, mode=mode)
            try:
                supports(cell)
            except Unsupported:
                continue
            if (name == "gradients_of_another") == (mode == "train"):
                found[f"{name} {dtype} {mode}"] = judge(cell, kind(cell, comm), comm)
    return found


def counted(comm: Comm) -> Verdicts:
    """The same collectives as Comm counts them and as they look from outside."""
    world, size = comm.world, comm.world_size
    x_TD = torch.ones(6, 5)
    splits = [6 // size + (other == comm.rank) * (6 % size) for other in range(size)]
    rings = comm.exchanging(dict.fromkeys(CHOSEN, 0))
    with rings, comm.counting() as rows, Listening(comm, train=False):
        world.all_reduce_(x_TD)
        world.all_gather(x_TD, [6] * size)
        received = world.all_to_all(torch.tensor(splits), [1] * size, [1] * size)[0].tolist()
        world.all_to_all(x_TD[: sum(splits)], received, splits)
    return {f"{row['collective']} {row['group']}": row for row in rows}


def main(names: list[str]) -> int:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    comm = Comm(torch.device("cpu"), dist.get_world_size(), int(os.environ["RANK"]))
    found: Verdicts = {}
    for name in names:
        special = {"faults": faults, "bytes": counted}
        found |= special[name](comm) if name in special else right(name, comm)
    if comm.rank == 0:
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
