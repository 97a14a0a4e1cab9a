"""Waiting for a filesystem, but not for ever: one that is dead lets a call neither return nor fail.

A thread of its own waits for the answer. Processes are never started in one: what dies with its
parent dies with the thread that started it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

LIMIT_S = 60.0
T = TypeVar("T")


def call_with_timeout(what: str, call: Callable[[], T], limit_s: float | None = None) -> T:
    """What `call` returns or raises; TimeoutError, an OSError, when it does neither in time. The
    thread is left behind then, and does not keep the program from ending."""
    found: list[T] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:
            raised.append(error)

    limit_s = LIMIT_S if limit_s is None else limit_s
    thread = threading.Thread(target=work, daemon=True, name=f"waits for {what}")
    thread.start()
    thread.join(limit_s)
    if raised:
        raise raised[0]
    if not found:
        raise TimeoutError(f"{what}: no answer within {limit_s:g} s; is its filesystem gone?")
    return found[0]
