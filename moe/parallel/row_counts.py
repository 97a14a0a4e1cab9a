"""How many rows each expert has, known to the host, to the device, or to both.

Shape letters: P experts.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

from moe import waits


@functools.cache  # without a limit: a CUDA graph goes on reading what it was captured with
def numbers(count: int, device: torch.device, step: int = 1) -> Tensor:
    """0, step, 2 step ..., `count` of them, int64; kept, so do not change it."""
    with torch.inference_mode(False):
        return torch.arange(0, count * step, step, device=device)


@functools.cache
def _zero(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.zeros(1, dtype=torch.int32, device=device)


class RowCounts:
    """Rows of each of P experts, which lie in expert order: `counts` on the host, `counts_P`
    (integers), their running sum `ends_P` (int32) or `starts_P1`, the same after a 0, on the
    device; at least one of them. Where padding belongs to an expert's part, `ends_P` has it and
    `counts_P`, given with it, has not.

    The host waits for the device when a kernel asks for the list and it is not known yet.
    """

    def __init__(
        self,
        counts: list[int] | None = None,
        counts_P: Tensor | None = None,
        ends_P: Tensor | None = None,
        starts_P1: Tensor | None = None,
    ) -> None:
        self._counts, self._counts_P, self._starts_P1 = counts, counts_P, starts_P1
        self._ends_P = ends_P if starts_P1 is None else starts_P1[1:]

    @property
    def on_host(self) -> list[int]:
        if self._counts is None:
            if self._counts_P is not None:
                self._counts = waits.to_host(self._counts_P)
            else:
                assert self._ends_P is not None
                ends = [0, *waits.to_host(self._ends_P)]
                self._counts = [end - start for start, end in itertools.pairwise(ends)]
        return self._counts

    def ends(self, device: torch.device) -> Tensor:
        """[P] int32: the row after each expert's last one."""
        if self._ends_P is None:
            self._ends_P = self.per_expert(device).cumsum(0).to(torch.int32)
        return self._ends_P

    def starts(self, device: torch.device) -> Tensor:
        """[P + 1] int32: each expert's first row, and the row after the last one's last."""
        if self._starts_P1 is not None:
            return self._starts_P1
        return torch.cat((_zero(device), self.ends(device)))

    def per_expert(self, device: torch.device) -> Tensor:
        """[P] int64."""
        if self._counts_P is None:
            if self._ends_P is None:
                self._counts_P = torch.tensor(self.on_host, device=device)
            else:
                self._counts_P = self._ends_P.long().diff(prepend=numbers(1, device))
        return self._counts_P

    def expert_of_rows(self, rows: int, device: torch.device) -> Tensor:
        """[rows] int64: the expert of each row; P after the last expert's rows."""
        return torch.searchsorted(self.ends(device), numbers(rows, device), right=True)
