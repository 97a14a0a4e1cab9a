"""runners.worker where a cell labelled "rings" has its messages passed round, whatever their size:
see benchmarks.first_answer.exchanges."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from moe.parallel.algorithms import CHOSEN
from runners.rank import worker
from runners.rank.engine import TimedCell

RINGS = "rings"


prepare = worker.prepare


class Worker(worker.Worker):
    def _as_labelled(self, index: int) -> AbstractContextManager[None]:
        never = dict.fromkeys(CHOSEN, 0)
        rings = self.plan.labels[index] == RINGS
        return self.comm.exchanging(never if rings else self.comm.exchanged)

    def _prepare(self, index: int, resident: bool) -> TimedCell | None:
        with self._as_labelled(index):
            return super()._prepare(index, resident)

    @contextmanager
    def _active(self, timed: TimedCell, resident: bool) -> Iterator[None]:
        with self._as_labelled(timed.index), super()._active(timed, resident):
            yield

    def _verify_again(self, cell: TimedCell) -> None:
        with self._as_labelled(cell.index):
            super()._verify_again(cell)


def main(arguments: list[str]) -> int:
    worker.Worker = Worker  # type: ignore[misc]
    return worker.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
