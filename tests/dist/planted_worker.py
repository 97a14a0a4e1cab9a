"""runners.worker with a sleep planted into the experts of rank 1."""

from __future__ import annotations

import os
import sys
import time

from torch import Tensor

from moe.layer.experts import Experts
from moe.parallel.row_counts import RowCounts
from runners.rank import worker

SLEEP_S = 0.05

rows, dense = Experts.rows, Experts.dense


prepare = worker.prepare


def sleepy_rows(self: Experts, x_SD: Tensor, counts: RowCounts) -> Tensor:
    time.sleep(SLEEP_S)
    return rows(self, x_SD, counts)


def sleepy_dense(self: Experts, x_TD: Tensor, gates_TE: Tensor) -> Tensor:
    time.sleep(SLEEP_S)
    return dense(self, x_TD, gates_TE)


def main(arguments: list[str]) -> int:
    if os.environ["RANK"] == "1":
        Experts.rows = sleepy_rows  # type: ignore[method-assign]
        Experts.dense = sleepy_dense  # type: ignore[method-assign]
    return worker.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
