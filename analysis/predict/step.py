"""The step of the rank that decides how long it takes."""

from __future__ import annotations

from dataclasses import dataclass

from moe import cost
from moe.cost import Load
from moe.cost.load import dispatches, routed_tokens
from moe.spec import Cell
from moe.strategies import degrees


@dataclass(frozen=True)
class Step:
    """The work of the busiest rank, which decides how long a step takes."""

    cell: Cell
    load: Load
    skew: float = 1.0
    dense: bool = False  # all experts on all tokens, in two products
    kernel: str = ""  # of the profile's, where the machine has one

    @property
    def slots(self) -> float:
        """Rows of expert arithmetic."""
        if not self.dense:
            return self.load.slots
        rows = self.load.rows if dispatches(self.cell) else routed_tokens(self.cell, 0)
        return rows * self.cell.layer.num_experts / degrees(self.cell).ep


def busiest(cell: Cell, skew: float = 1.0, dense: bool = False, kernel: str = "") -> Step:
    """The step of rank 0, which has the most tokens; skew is clipped to what top-k allows."""
    ep = degrees(cell).ep
    most = ep * min(1.0, cell.layer.num_experts / ep / cell.layer.topk)
    skew = max(1.0, min(skew, most))
    return Step(cell, cost.expected(cell, 0, skew), skew, dense, kernel)
