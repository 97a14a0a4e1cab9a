"""SIGTERM and Ctrl-C for the tracker, deferred while W&B's code runs.

An exception raised inside W&B leaves its locks held and its counts wrong, and its teardown then
waits forever: seen in 2 of 166 interrupted trackers, at two places.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from runners.track.client import GRACE_S, descendants, kill_all

OVERDUE_S = 0.8 * GRACE_S  # then W&B's code is no longer waited for; the launcher kills at GRACE_S


class Interrupted(BaseException):
    """The run being written is finished, then the tracker ends."""


class Interruption:
    """Handles the first signal of a process; later ones are ignored, as the end is bounded."""

    def __init__(self, overdue: Callable[[], None]) -> None:
        self._overdue = overdue  # called before a forced end, if W&B's code does not return
        self._deferring = False
        self._raised = False
        self.requested = False

    def listen(self) -> None:
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, self._handle)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defers a signal: Interrupted is raised at the end, whatever else is raised."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
            if self.requested and not self._raised:
                self._raise()

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if self.requested:
            return
        self.requested = True
        limit = threading.Timer(OVERDUE_S, self._end)
        limit.daemon = True
        limit.start()
        if not self._deferring:
            self._raise()

    def _raise(self) -> None:
        self._raised = True
        raise Interrupted

    def _end(self) -> None:
        self._overdue()
        end_children()
        os._exit(1)


def end_children() -> None:
    kill_all(descendants(os.getpid()))
