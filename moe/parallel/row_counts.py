"""How many rows each expert has, known to the host, to the device, or to both.

Shape letters: P experts.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from moe import waits


@functools.lru_cache(maxsize=256)
def numbers(count: int, device: torch.device) -> Tensor:
    """0 .. count - 1, int64; kept, so do not change it."""
    with torch.inference_mode(False):
        return torch.arange(count, device=device)


class RowCounts:
    """Rows of each of P experts, which lie in expert order.

    Made of a list, or of the rows' ends on a device. The host waits for the device when a kernel
    asks for the list and only the ends are known.
    """

    def __init__(self, counts: list[int] | None = None, ends_P: Tensor | None = None) -> None:
        self._counts, self._ends_P = counts, ends_P

    @property
    def on_host(self) -> list[int]:
        if self._counts is None:
            assert self._ends_P is not None
            ends = [0, *waits.to_host(self._ends_P)]
            self._counts = [end - start for start, end in zip(ends, ends[1:], strict=False)]
        return self._counts

    def ends(self, device: torch.device) -> Tensor:
        """[P] int32: the row after each expert's last one."""
        if self._ends_P is None:
            self._ends_P = torch.tensor(self.on_host, device=device).cumsum(0).to(torch.int32)
        return self._ends_P

    def per_expert(self, device: torch.device) -> Tensor:
        """[P] int64 on `device`."""
        if self._ends_P is None or self._counts is not None and device.type == "cpu":
            return torch.tensor(self.on_host, device=device)
        return self._ends_P.long().diff(prepend=numbers(1, device))

    def expert_of_rows(self, rows: int, device: torch.device) -> Tensor:
        """[rows] int64: the expert of each row; P after the last expert's rows."""
        return torch.searchsorted(self.ends(device), numbers(rows, device), right=True)
