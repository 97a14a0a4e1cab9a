"""One rank of test_emulated_exchange.py: rank 0 prints one JSON line."""

from __future__ import annotations

import json
import os

import torch
import torch.distributed as dist

from benchmarks.emulate import collectives
from benchmarks.emulate.pace import Pace


class RecordedPace(Pace):
    """Notes when computing is settled, and where it begins again."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        super().__init__(1.0)

    def mark(self) -> None:
        self.calls.append("mark")
        super().mark()

    def settle(self) -> None:
        self.calls.append("settle")
        super().settle()

    def taken(self) -> list[str]:
        calls, self.calls = self.calls, []
        return calls


SETTLED = ["settle", "mark"]  # a settle ends with a mark


def main(arguments: list[str]) -> int:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    pairs = [dist.new_group([0, 2]), dist.new_group([1])]
    library = dist.all_to_all_single
    pace = RecordedPace()
    collectives.install(pace)
    pace.taken()
    same = []
    for offset in (0, 1):  # with and without empty messages
        # rank r sends r + i + offset - 1 rows to member i, not below 0
        sent = [max(0, rank + other + offset - 1) for other in range(ranks)]
        x = torch.arange(2.0 * sum(sent)).view(-1, 2) + 100 * rank
        both = [torch.full((sum(sent), 2), -1.0) for _ in range(2)]  # as many arrive: symmetric
        library(both[0], x, sent, sent)
        dist.all_to_all_single(both[1], x, sent, sent)
        same.append(torch.equal(*both))
        # settled, posted, own rows copied, settled, awaited
        same.append(pace.taken() == [*SETTLED, "mark", *SETTLED, "mark"])
        work = dist.all_to_all_single(both[1].fill_(-1), x, sent, sent, async_op=True)
        assert work is not None
        same.append(pace.taken() == [*SETTLED, "mark"])
        work.wait()
        same.append(pace.taken() == [*SETTLED, "mark"])
        same.append(torch.equal(*both))
    if rank != 1:
        out = torch.zeros(2)
        dist.all_to_all_single(out, torch.tensor([10.0 + rank, 20.0 + rank]), group=pairs[0])
        same.append(out.tolist() == ([10, 12] if rank == 0 else [20, 22]))
    total = torch.ones(3)
    pace.taken()
    dist.all_reduce(total)
    same.append(pace.taken() == [*SETTLED, "mark"])
    same.append(total.tolist() == [ranks] * 3)
    votes = torch.tensor([int(all(same))])
    dist.all_reduce(votes)
    if rank == 0:
        print(json.dumps({"right": int(votes), "ranks": ranks, "checks": len(same)}))
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main([]))
