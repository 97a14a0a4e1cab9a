"""Run a blocking filesystem call with a timeout: a hung NFS mount neither returns nor raises.

The call runs in its own thread. It must not start processes: those with a parent-death signal
would die with that thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

LIMIT_S = 60.0
T = TypeVar("T")


def call_with_timeout(what: str, call: Callable[[], T], limit_s: float | None = None) -> T:
    """The result or exception of `call`; raises TimeoutError, an OSError, after `limit_s` seconds
    (default LIMIT_S). The thread is then abandoned; it does not keep the program alive."""
    results: list[T] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            raised.append(error)

    limit_s = LIMIT_S if limit_s is None else limit_s
    thread = threading.Thread(target=work, daemon=True, name=f"waits for {what}")
    thread.start()
    thread.join(limit_s)
    if raised:
        raise raised[0]
    if not results:
        raise TimeoutError(f"{what}: no answer within {limit_s:g} s; is its filesystem gone?")
    return results[0]
