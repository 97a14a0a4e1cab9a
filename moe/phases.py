"""Where a step's time goes: one context manager, almost free when nothing is recorded.

Phases nest; a nested phase's time is taken out of its parent's, so the phases of a step add up to
the whole of it. Time outside every phase is called "other".
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

NAMES = (
    "router", "permute", "dispatch", "wait", "experts", "combine", "unpermute",
    "backward", "gradients", "other",
)  # fmt: skip


class Clock(Protocol):
    """Marks points of a step, and tells the time between them when the step has ended."""

    def mark(self) -> Any: ...
    def wait(self) -> None: ...  # until all marks have passed
    def between_ns(self, start: Any, end: Any) -> int: ...


class HostClock:
    """Marks are times of the host's monotonic clock, in ns."""

    def mark(self) -> int:
        return time.monotonic_ns()

    def wait(self) -> None:
        pass

    def between_ns(self, start: int, end: int) -> int:
        return end - start


class _Recorder:
    """Attributes the time between two marks to the innermost open phase."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.open: list[str] = ["other"]
        self.marks: list[tuple[str, Any]] = []  # the phase that ends there, or begins at the first

    def mark(self) -> None:
        self.marks.append((self.open[-1], self.clock.mark()))

    def times(self) -> dict[str, int]:
        """ns by phase, once all marks have passed."""
        self.clock.wait()
        times: dict[str, int] = {}
        for (_, start), (name, end) in itertools.pairwise(self.marks):
            times[name] = times.get(name, 0) + self.clock.between_ns(start, end)
        return times


class _Span:
    def __init__(self, recorder: _Recorder, name: str) -> None:
        self.recorder, self.name = recorder, name

    def __enter__(self) -> None:
        self.recorder.mark()
        self.recorder.open.append(self.name)

    def __exit__(self, *_: object) -> None:
        self.recorder.mark()
        self.recorder.open.pop()


_OFF = nullcontext()
_recorder: _Recorder | None = None


def active() -> bool:
    return _recorder is not None


def phase(name: str) -> AbstractContextManager[None]:
    """Times the code inside under this name while `recording` is active; does nothing otherwise."""
    return _OFF if _recorder is None else _Span(_recorder, name)


@contextmanager
def recording(clock: Clock) -> Iterator[dict[str, int]]:
    """Yields {phase: ns}, filled when the block has ended."""
    global _recorder
    if _recorder is not None:
        raise RuntimeError("phases are being recorded already; end that recording first")
    recorder, times = _Recorder(clock), dict[str, int]()
    _recorder = recorder
    try:
        recorder.mark()
        yield times
        recorder.mark()
    finally:
        _recorder = None
    times.update(recorder.times())
