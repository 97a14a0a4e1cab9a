"""Where a step's time goes: one context manager, almost free when nothing is recorded.

Phases nest; a nested phase's time is taken out of its parent's, so the phases of a step add up to
the whole of it. Time outside every phase is called "other".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

NAMES = (
    "router", "permute", "dispatch", "wait", "experts", "combine", "unpermute",
    "backward", "gradients", "other",
)  # fmt: skip


class _Recorder:
    """Attributes the time between two marks to the innermost open phase."""

    def __init__(self, sync: Callable[[], None]) -> None:
        self.sync = sync
        self.times: dict[str, int] = {}
        self.open: list[str] = ["other"]
        self.last_ns = 0

    def mark(self) -> None:
        self.sync()
        now_ns = time.monotonic_ns()
        if self.last_ns:
            name = self.open[-1]
            self.times[name] = self.times.get(name, 0) + now_ns - self.last_ns
        self.last_ns = now_ns


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
def recording(sync: Callable[[], None]) -> Iterator[dict[str, int]]:
    """Yields {phase: ns}, filled as phases end; `sync` waits for the device before each reading."""
    global _recorder
    if _recorder is not None:
        raise RuntimeError("phases are being recorded already; end that recording first")
    recorder = _recorder = _Recorder(sync)
    try:
        recorder.mark()
        yield recorder.times
        recorder.mark()
    finally:
        _recorder = None
