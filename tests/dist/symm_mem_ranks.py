"""One rank of test_symm_mem.py, on a simulated GPU with a stand-in of torch's symmetric memory:
rank 0 prints one JSON line of what the check says of each row in a file, of how often a step makes
the host wait, of what is exchanged, and of the bytes sent and planned."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group

from moe.build import build
from moe.parallel import comm as comm_module
from moe.parallel import symm_mem
from moe.parallel.comm import Comm
from moe.parallel.row_counts import RowCounts
from moe.parallel.symm_mem import Exchange
from moe.step import Step
from moe.strategies import rules_of
from moe.workload import batches
from tests.dist import cost_ranks, gpu_ranks
from tests.support.covering import Row
from tests.support.fake_cuda import DEVICE, FakeCuda, nccl_only
from tests.support.fake_symm_mem import FakeSymmMem
from tests.support.ranks import prepare as prepare


class EndsWithoutPadding(Exchange):
    def counts(self) -> RowCounts:
        return RowCounts(counts_P=super().counts().per_expert(DEVICE))


class BackFromTheNextPlace(Exchange):
    def from_places(self, y_NO: Tensor, slots: int) -> Tensor:
        offsets_X = self.buffers.arrived_2X[1]
        offsets_X.copy_(offsets_X.roll(1))
        return super().from_places(y_NO, slots)


class GradientsOfOtherSlots(Exchange):
    def to_places(self, x_SD: Tensor, target: Tensor) -> Tensor:
        backward = target is self.buffers.passing
        return super().to_places(x_SD.flip(0) if backward else x_SD, target)


PLANTED = {one.__name__: one for one in (
    EndsWithoutPadding, BackFromTheNextPlace, GradientsOfOtherSlots
)}  # fmt: skip


def gather(group: str, mine: Any) -> list[Any]:
    pg = _resolve_process_group(group)
    everyone: list[Any] = [None] * dist.get_world_size(pg)
    dist.all_gather_object(everyone, mine, group=pg)
    return everyone


def index(group: str) -> int:
    return dist.get_rank(_resolve_process_group(group))


def sent(row: Row, ranks: int, comm: Comm) -> dict[str, Any]:
    """The kernel that is chosen, and bytes to and from others in exchanges of a step: as counted,
    and as planned."""
    cell = gpu_ranks.cell_of({**row, "kernel": "auto"}, ranks)
    layer, x = build(cell, comm), batches.inputs(cell, comm.rank, DEVICE)
    choice = layer.tune(x)
    load = cost_ranks.counted_load(cell, layer, x, comm.rank, ranks)
    step = Step(cell, layer, x)
    with comm.counting() as rows:
        step()
    calls = rules_of(cell.strategy.name).collectives(cell, load, comm.rank)
    counted = [one for one in rows if one["collective"] == "all_to_all"]
    planned = [one for one in calls if one.collective == "all_to_all"]
    return {
        "kernel": choice["name"],
        "candidates": len(choice["candidates_ms"]),
        "counted": [sum(one[key] for one in counted) for key in ("calls", "sent_bytes",
                                                                 "received_bytes")],
        "planned": [sum(getattr(one, key) for one in planned) for key in ("calls", "sent_bytes",
                                                                          "received_bytes")],
    }  # fmt: skip


def main(arguments: list[str]) -> int:
    rows: list[Row] = json.loads(Path(arguments[0]).read_text())
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    results = []
    with FakeCuda() as gpu, nccl_only(comm_module), FakeSymmMem(gather, index) as memory:
        comm = Comm(DEVICE, ranks, rank)
        for row in rows:
            memory.calls.clear()
            exchange = PLANTED.get(row.get("planted", ""), Exchange)
            try:
                with mock.patch.object(symm_mem, "Exchange", exchange):
                    report = gpu_ranks.check(gpu_ranks.cell_of(row, ranks), comm, gpu)
                report["calls"], report["counted_waits"] = memory.calls[:4], report["counted"]
                results.append(report | sent(row, ranks, comm))
            except Exception as error:
                raise RuntimeError(f"rank {rank}: {row}") from error
    return gpu_ranks.end(results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
