"""Time that a GPU takes for work, without the host's time to launch it."""

from __future__ import annotations

from collections.abc import Callable

import torch

_HOLD_CYCLES = 4_000_000  # about 2 ms
_MOST_CYCLES = 32 * _HOLD_CYCLES


class HeldQueue:
    """Times work that is enqueued while the GPU is held, so that its kernels follow each other as
    in a CUDA graph. A hold that is over too soon is doubled, for later calls too, up to 64 ms.

    Work must fit the GPU's queue, which has room for about 1,000 launches.
    """

    def __init__(self) -> None:
        self._cycles = _HOLD_CYCLES

    def ms(self, enqueue: Callable[[], object]) -> float:
        """Milliseconds that the GPU takes for all that `enqueue` launches on the current stream."""
        while True:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(self._cycles)
            start.record()
            enqueue()
            end.record()
            begun = start.query()  # before everything was enqueued
            end.synchronize()
            if not begun or self._cycles >= _MOST_CYCLES:
                return float(start.elapsed_time(end))
            self._cycles *= 2
