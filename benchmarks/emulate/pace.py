"""Slower computing without a quota: a thread sleeps until `dilation` times the CPU time it used has
passed. Quotas of the system's scheduler stop ranks for whole periods instead, in the middle of a
step."""

from __future__ import annotations

import time
from collections.abc import Callable

TOO_LATE = 0.05  # of a block's time: more than this and the block is void


class Pace:
    """Paces the calling thread. Computing is settled before anything that others can notice: a
    message, the end of a block, the mark of a phase."""

    def __init__(
        self,
        dilation: float,
        wall_s: Callable[[], float] = time.perf_counter,
        cpu_s: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.dilation, self.wall_s, self.cpu_s, self.sleep = dilation, wall_s, cpu_s, sleep
        self.active = True  # otherwise computing takes its own time
        self.late_s = 0.0  # behind its schedule now
        self.latest_s = 0.0  # at most when it had settled, since the last `begin`
        self.mark()

    def begin(self, late_s: float = 0.0) -> None:
        """At the start of a block, which the rank begins so much too late. That matters only if
        its first computing does not make up for it."""
        self.late_s, self.latest_s = late_s, 0.0
        self.mark()

    def mark(self) -> None:
        """Computing begins here; waiting for messages before it costs nothing."""
        self.since_s, self.used_s = self.wall_s(), self.cpu_s()

    def settle(self) -> None:
        """Sleeps until the computing since the last mark has taken its dilated time, less what the
        rank is behind. It falls behind where the cores were too busy: the time has passed already,
        or the rank wakes after it. Later computing makes up for that."""
        if self.active:
            took_s = self.dilation * (self.cpu_s() - self.used_s)
            due_s = self.since_s + max(0.0, took_s - self.late_s)
            behind_s = max(0.0, self.late_s - took_s)  # more than this piece can make up for
            left_s = due_s - self.wall_s()
            if left_s > 0:
                self.sleep(left_s)
            self.late_s = behind_s + max(0.0, self.wall_s() - due_s)
            self.latest_s = max(self.latest_s, self.late_s)
        self.mark()

    def was_late(self, block_s: float) -> bool:
        """Whether others could notice that this rank was behind: by more than TOO_LATE of a block
        of this length."""
        return self.latest_s > TOO_LATE * block_s
