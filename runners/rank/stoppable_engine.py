"""The engine of a launch: it stops when it is asked to, and outlives cells that fail."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from runners.rank.engine import Engine, TimedCell


class StoppableEngine(Engine):
    """Ends a wave after the round in which the launcher's stop file appears. `outlives` is called
    around what steps of a cell do between its preparation and its last check; a block in which the
    cell failed is no sample."""

    def __init__(self, *arguments: Any) -> None:
        *rest, self.stop_file = arguments
        super().__init__(*rest)
        self.outlives: Callable[[TimedCell, Callable[[], Any]], Any] = lambda cell, call: call()

    def take(
        self, cell: TimedCell, kind: str, round_: int, position: int = 0, steps: int = 0
    ) -> tuple[int, int]:
        call = partial(super().take, cell, kind, round_, position, steps)
        if cell.index < 0 or kind in ("sizing", "warmup"):
            return call()
        now = self.ranks.now_ns()
        return self.outlives(cell, call) or (now, now)

    def _call_untimed(self, cell: TimedCell, calls: int, number: int) -> None:
        self.outlives(cell, partial(super()._call_untimed, cell, calls, number))

    def _lead_in(self, last: TimedCell) -> None:
        self.outlives(last, partial(super()._lead_in, last))

    def interrupted(self) -> bool:
        return bool(self.stop_file.exists())
