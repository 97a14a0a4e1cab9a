"""runners.worker where a cell's label says how long its blocks are: see
benchmarks.statistics.block_length."""

from __future__ import annotations

import dataclasses
import sys

from runners.rank import worker
from runners.rank.engine import TimedCell

ALONE, ALONE_MS = "alone", 30.0


class Worker(worker.Worker):
    """`measure.block_ms` by label; a cell that is "alone" runs a block of its own first."""

    def _prepare(self, index: int, resident: bool) -> TimedCell | None:
        label = self.plan.labels[index]
        block_ms = ALONE_MS if label == ALONE else float(label.removeprefix("block"))
        self.engine.measure = dataclasses.replace(self.plan.measure, block_ms=block_ms)
        timed = super()._prepare(index, resident)
        self.engine.measure = self.plan.measure
        if timed and label == ALONE:
            active = timed.active

            def after_itself() -> object:
                for _ in range(timed.short):
                    timed.step()
                return active()

            timed.active = after_itself  # type: ignore[assignment]
        return timed


def main(arguments: list[str]) -> int:
    worker.Worker = Worker  # type: ignore[misc]
    return worker.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
