"""What ranks of one machine share: a common start, and the vote that a block is void."""

from __future__ import annotations

import multiprocessing
import threading
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

    def wait(self) -> float:
        """Returns on all ranks at the same time: by how many seconds this rank is late. Raises
        TimeoutError where another rank does not come."""
        if self._meet() == 0:
            ready_s = READY_S + READY_S_PER_RANK * self.ranks
            self._start_s.value = time.monotonic() + ready_s
        self._meet()
        time.sleep(max(0.0, self._start_s.value - time.monotonic()))
        return max(0.0, time.monotonic() - self._start_s.value)

    def _meet(self) -> int:
        try:
            return self._barrier.wait(self.limit_s)
        except threading.BrokenBarrierError:
            raise TimeoutError(
                f"another rank ended, or did not come to the start within {self.limit_s:g} s"
            ) from None

    def any(self, rank: int, vote: bool) -> bool:
        """Whether any rank's vote is true; every rank calls it."""
        self._votes[rank] = vote
        self._meet()
        voted = any(self._votes)
        self._meet()
        return voted
