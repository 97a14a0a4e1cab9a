"""One rank of test_gpu.py, on a simulated GPU: rank 0 prints one JSON line of what the check says
of the rows in a file, and of how often a step makes the host wait."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from moe import waits
from moe.build import build
from moe.parallel import comm as comm_module
from moe.parallel.comm import Comm
from moe.spec import Cell, RankLayout
from moe.step import Step
from moe.verify.verifier import Verifier
from moe.workload import batches
from tests.dist import agree_ranks
from tests.support.covering import Row
from tests.support.fake_cuda import DEVICE, FakeCuda, nccl_only
from tests.support.ranks import prepare as prepare

SHARE = 9
MANY = 64  # numbers, more than the counts that the host has to know
HIDDEN = 64  # a quarter of it has 16 bytes, which F.grouped_mm asks for


def cell_of(row: Row, ranks: int) -> Cell:
    cell = agree_ranks.cell_of(row, ranks)
    return replace(
        cell,
        layer=replace(cell.layer, hidden=HIDDEN),
        strategy=replace(cell.strategy, graph=row.get("graph", "off")),
        placement=RankLayout(ranks, "nccl", "cuda", 1),
    )


def every_form(ranks: int) -> list[Row]:
    """Every strategy, dispatcher, distribution of tokens and mode in bfloat16, by kernels that need
    no counts, with overlap and in CUDA graphs; everything else plain."""
    plain = [row for row in agree_ranks.every_core(ranks) if row["dtype"] == "bfloat16"]
    forms = ({"kernel": "grouped"}, {"kernel": "dense"}, {"kernel": "grouped", "spread": "overlap"},
             {"kernel": "grouped", "graph": "on"})  # fmt: skip
    rows = [{**row, "bias": "none", **form} for row in plain for form in forms]
    rows = [row for row in rows if agree_ranks.accepted(row, ranks, cell_of)]
    return rows if ranks < 4 else rows[::2]  # they take long


def with_liger(ranks: int) -> list[Row]:
    """Every strategy and dispatcher with the kernel `liger`, and two routers that drop slots. Takes
    a Triton that interprets, which float16 needs (tests/triton/)."""
    plain = [row for row in agree_ranks.every_core(ranks) if row["dtype"] == "float16"]
    rows = [{**row, "bias": "none", "kernel": "liger"} for row in plain]
    dropping = [
        {**row, "router": router}
        for row in rows
        for router in ("capacity", "expert choice")
        if row["core"][:2] in (("simple", "local"), ("ep", "alltoall")) and row["mode"] == "train"
    ]
    rows = [*rows[::2], *dropping]
    return [row for row in rows if agree_ranks.accepted(row, ranks, cell_of)]


def mixed(ranks: int) -> list[Row]:
    """Some rows of the covering array: all values of its factors occur, not all pairs."""
    return agree_ranks.covering(ranks)[0][::SHARE]


def check(cell: Cell, comm: Comm, gpu: FakeCuda) -> dict[str, Any]:
    step = Step(cell, build(cell, comm), batches.inputs(cell, comm.rank, DEVICE))
    verifier = Verifier(cell, comm)
    proven = verifier.prove([step], 0)
    with gpu.watching(rows=max(MANY, cell.workload.batch_size * cell.layer.topk)):
        step()
    noted, on_host = [": ".join(one) for one in gpu.waits], gpu.host_operations
    counted = waits.count(step, DEVICE)
    change = verifier.compare(step)
    again = verifier.prove_again([step], 1)
    return {
        "ok": proven.ok and again.ok and change is None,
        "detail": f"{proven.detail}; {change}; {again.detail}",
        "waits": noted,
        "counted": counted,
        "on_host": on_host,
    }


def end(results: list[Any]) -> int:
    """Prints on rank 0 what every rank has, as one JSON line."""
    everybody: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, results)
    if dist.get_rank() == 0:
        print(json.dumps(everybody))
    dist.destroy_process_group()
    return 0


def main(arguments: list[str]) -> int:
    rows: list[Row] = json.loads(Path(arguments[0]).read_text())
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    results = []
    with FakeCuda() as gpu, nccl_only(comm_module) if ranks > 1 else contextlib.nullcontext():
        comm = Comm(DEVICE, ranks, rank)
        for row in rows:
            try:
                results.append(check(cell_of(row, ranks), comm, gpu))
            except Exception as error:
                raise RuntimeError(f"rank {rank}: {row}") from error
    return end(results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
