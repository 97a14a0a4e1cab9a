"""What ranks of one machine share: a common start, and the vote that a block is void."""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

READY_S, READY_S_PER_RANK = 0.01, 0.003  # until all ranks are asleep before a start


class StartGate:
    """Made before the ranks are forked. A barrier alone lets ranks go one after the other, tens of
    ms apart at 32 ranks, so that all start at an agreed time instead."""

    def __init__(self, ranks: int, limit_s: float) -> None:
        fork = multiprocessing.get_context("fork")
        self.ranks, self.limit_s = ranks, limit_s
        self._barrier = fork.Barrier(ranks)
        self._start_s: Any = fork.RawValue("d")
        self._votes: Any = fork.RawArray("b", ranks)

    def wait(self) -> None:
        """Returns on all ranks at the same time; raises BrokenBarrierError after `limit_s`."""
        if self._barrier.wait(self.limit_s) == 0:
            ready_s = READY_S + READY_S_PER_RANK * self.ranks
            self._start_s.value = time.monotonic() + ready_s
        self._barrier.wait(self.limit_s)
        time.sleep(max(0.0, self._start_s.value - time.monotonic()))

    def any(self, rank: int, vote: bool) -> bool:
        """Whether any rank's vote is true; every rank calls it."""
        self._votes[rank] = vote
        self._barrier.wait(self.limit_s)
        found = any(self._votes)
        self._barrier.wait(self.limit_s)
        return found
