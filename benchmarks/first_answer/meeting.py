"""A rank that meets the others, says when, and how much memory all of them take."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

import torch

from runners.plan import load
from runners.rank import worker
from runners.rank.process_group import RankPlace, TorchRanks

PSS = re.compile(r"^Pss:\s+(\d+) kB", re.M)


def pss_bytes(pid: int) -> int:
    return sum(int(kb) << 10 for kb in PSS.findall(Path(f"/proc/{pid}/smaps_rollup").read_text()))


def main(arguments: list[str]) -> int:
    plan = load(Path(arguments[0]))
    torch.set_num_threads(1)
    ranks = TorchRanks(RankPlace.from_environment(), plan.placement, worker.DUMP_S + 60)
    ranks.barrier()
    met_s = time.monotonic()
    gathered = ranks.gather([os.getpid(), int(met_s * 1e6)])
    if ranks.rank == 0:
        pids = [pid for pid, _ in gathered]
        meeting = {
            "met_s": max(met_us for _, met_us in gathered) / 1e6,
            "bytes": sum(map(pss_bytes, [*pids, os.getppid()])),
        }
        (Path(plan.launch_dir) / "met.json").write_text(json.dumps(meeting))
    ranks.barrier()
    ranks.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
