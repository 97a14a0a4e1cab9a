"""runners.worker with a fault of tests.support.mutants in each cell that bears its name as
label."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from moe.layer import experts
from runners.rank import cells, worker
from tests.support.mutants import MUTANTS

COLD_SETS = 8  # copies of a cold cell; as many as fill the cache would take most of the time


prepare = worker.prepare


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The fault in place; afterwards everything is as it was."""
    replaced = []
    for owner, attribute, new in MUTANTS[name].make():
        own = vars(owner)
        replaced.append((owner, attribute, own.get(attribute), attribute in own))
        setattr(owner, attribute, new)
    try:
        yield
    finally:
        for owner, attribute, old, was_there in reversed(replaced):
            if was_there:
                setattr(owner, attribute, old)
            else:
                delattr(owner, attribute)


class MutantWorker(worker.Worker):
    """Every wave is one cell."""

    def _wave(self, number: int, wave: list[int]) -> bool:
        name = self.plan.labels[wave[0]]
        if name not in MUTANTS:
            return super()._wave(number, wave)
        if MUTANTS[name].rebuilt:
            self.plan.resident[number] = False
        with planted(name):
            return super()._wave(number, wave)


def main(arguments: list[str]) -> int:
    worker.Worker = MutantWorker  # type: ignore[misc]
    cells.COLD_SETS_MAX = COLD_SETS
    experts.runs = lambda dtype: False  # whichever is faster: "packed" has code and weights apart
    return worker.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
