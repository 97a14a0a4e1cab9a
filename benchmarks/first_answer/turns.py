"""A rank that runs a block of steps of each cell whenever it is its launch's turn, and says what a
step took: see benchmarks.first_answer.ranks.in_turns."""

from __future__ import annotations

import gc
import json
import socket
import sys
import time
from pathlib import Path

import torch

from moe.build import build
from moe.parallel import algorithms
from moe.parallel.comm import Comm
from moe.step import Step
from moe.workload import batches
from runners.host import environment
from runners.plan import load
from runners.rank import worker
from runners.rank.process_group import RankPlace, TorchRanks

SOCKET = "turns"  # in the launch's folder
WARM_UP_STEPS = 200
BLOCK_STEPS = 10

prepare = worker.prepare


def main(arguments: list[str]) -> int:
    plan = load(Path(arguments[0]))
    where = RankPlace.from_environment()
    environment.pin(where.local_rank, where.local_ranks, plan.placement.threads)
    torch.set_num_threads(plan.placement.threads)
    ranks = TorchRanks(where, plan.placement, worker.DUMP_S + 60)
    comm = Comm(ranks.device, where.world_size, where.rank)
    comm.exchanged = algorithms.table(where.world_size)
    steps = [
        Step(cell, build(cell, comm), batches.inputs(cell, comm.rank, comm.device))
        for cell in plan.cells
    ]
    for step in steps:
        for _ in range(WARM_UP_STEPS):
            step()
    gc.collect()
    gc.freeze()
    _answer_turns(Path(plan.launch_dir), ranks, steps)
    ranks.close()
    return 0


def _answer_turns(folder: Path, ranks: TorchRanks, steps: list[Step]) -> None:
    """Runs turns until the launcher closes its end of the socket; the others follow rank 0."""
    if ranks.rank:
        while ranks.broadcast(0):
            _blocks_ms(ranks, steps)
        return
    with socket.socket(socket.AF_UNIX) as turns:
        turns.connect(str(folder / SOCKET))
        while turns.recv(1):
            ranks.broadcast(1)
            turns.sendall(json.dumps(_blocks_ms(ranks, steps)).encode() + b"\n")
    ranks.broadcast(0)


def _blocks_ms(ranks: TorchRanks, steps: list[Step]) -> list[float]:
    """Time of a step of each cell in ms, from the first rank's start to the last rank's end."""
    spans = []
    for step in steps:
        step()
        ranks.barrier()
        start_ns = time.monotonic_ns()
        for _ in range(BLOCK_STEPS):
            step()
        both = ranks.gather([start_ns, time.monotonic_ns()])
        spans.append((max(end for _, end in both) - min(start for start, _ in both)) / 1e6)
    return [span / BLOCK_STEPS for span in spans]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
