"""One rank of the part `ranks`.

    python -m benchmarks.gpu.rank_worker REPORT FIRST LAST END_S cuda|cpu

Checks the forms numbered from FIRST to before LAST; rank 0 writes a row for each to REPORT. At
END_S of this machine's monotonic clock it ends, between two forms. Its place is in RANK and
WORLD_SIZE; all ranks use the first GPU.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.gpu import ranks
from benchmarks.gpu.forms import check, layer_of
from moe.parallel.comm import Comm
from moe.spec import RankLayout


def main(arguments: list[str]) -> int:
    report, first, last, end_s, kind = arguments
    left_s = float(end_s) - time.monotonic()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cuda", 0) if kind == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=max(left_s, 0) + 5))
    comm = Comm(device, world_size, rank)
    placement = RankLayout(world_size, "gloo", device.type, 1)
    tiny = device.type == "cpu"
    layer = layer_of(tiny)
    for form in ranks.forms(tiny)[int(first) : int(last)]:
        if over(time.monotonic() > float(end_s)):
            break
        row = {**form.labels(), **check(form.cell(layer, placement), comm, count=False)}
        if rank == 0:
            with Path(report).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if "error" in row:  # of one rank, perhaps: the others may wait for it
            raise SystemExit(f"rank {rank}: {row['error']}")
    dist.destroy_process_group()
    return 0


def over(here: bool) -> bool:
    """Whether the time is over on any rank. Collective."""
    mark = torch.tensor([int(here)])
    dist.all_reduce(mark, dist.ReduceOp.MAX)
    return bool(mark.item())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
