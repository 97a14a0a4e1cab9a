"""One rank of test_algorithms.py: rank 0 prints one JSON line."""

from __future__ import annotations

import itertools
import json
import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor

from moe.parallel.algorithms import CHOSEN
from moe.parallel.comm import Comm

LIMITS = [dict.fromkeys(CHOSEN, limit) for limit in (0, 1 << 30)]  # rings, exchanges


def run(collective: str, comm: Comm, x: Tensor) -> Tensor:
    if collective == "all_reduce":
        return comm.world.all_reduce_(x.clone())
    rows = [x.shape[0] + (rank == 0) for rank in range(comm.world_size)]  # padded to rank 0's
    return comm.world.all_gather(torch.cat([x, x[:1]]) if comm.rank == 0 else x, rows)


def main(arguments: list[str]) -> int:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    comm = Comm(torch.device("cpu"), ranks, rank)
    torch.manual_seed(rank)
    differences, alike = {}, {}
    for collective, shape, dtype in itertools.product(
        CHOSEN,
        ((1, 1), (7, 3), (0, 4), (40, 64)),
        (torch.float32, torch.bfloat16, torch.int64),
    ):
        if collective == "all_gather" and not shape[0]:
            shape = (1, 4)
        x = (8 * torch.randn(shape)).to(dtype)
        both = []
        for limits in LIMITS:
            with comm.exchanging(limits):
                both.append(run(collective, comm, x))
        assert both[0].dtype == both[1].dtype == dtype
        case = f"{collective} {shape} {dtype}"
        scale = both[0].double().abs().amax().item() if both[0].numel() else 1.0
        apart = (both[0].double() - both[1].double()).abs()
        differences[case] = apart.amax().item() / max(scale, 1.0) if apart.numel() else 0.0
        bits = [torch.empty_like(both[1]) for _ in range(ranks)]
        dist.all_gather(bits, both[1])
        alike[case] = all(torch.equal(other, both[1]) for other in bits)
    counted = []
    for limits in LIMITS:
        with comm.exchanging(limits), comm.counting() as rows:
            comm.world.all_reduce_(torch.ones(300))
            comm.world.all_gather(torch.ones(300, 1), [300] * ranks)
        counted.append(rows)
    if rank == 0:
        print(json.dumps({"differences": differences, "alike": alike, "counted": counted}))
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
