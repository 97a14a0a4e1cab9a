"""Relative errors of rows. Shape letters: N rows, B all rows, X numbers in a row."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def largest_error(
    found_NX: Tensor,
    want_NX: Tensor,
    norms_N: Tensor,
    norms_B: Tensor,
    least: float = 0.0,
    slack_N: Tensor | None = None,
) -> float:
    """Largest relative error of a row: |found - want| / max(|want|, median of all |want|, least *
    largest |want|), after subtracting `slack_N` from the difference. 0.0 without rows."""
    if not len(found_NX):
        return 0.0
    difference_N = (found_NX.to(want_NX.dtype) - want_NX).norm(dim=1)
    if slack_N is not None:
        difference_N = (difference_N - slack_N).clamp(min=0.0)
    scale_N = norms_N.clamp(min=max(float(norms_B.median()), least * float(norms_B.max())))
    error_N = torch.where(difference_N == 0, 0.0, difference_N / scale_N)
    return float(error_N.nan_to_num(nan=math.inf).max())


def rms_error(found_NX: Tensor, want_NX: Tensor) -> float:
    """Root mean square of the difference over that of `want`; 0.0 without rows."""
    if not len(found_NX):
        return 0.0
    difference = float((found_NX.to(want_NX.dtype) - want_NX).norm())
    if difference == 0:
        return 0.0
    size = float(want_NX.norm())
    return difference / size if size > 0 and math.isfinite(difference) else math.inf
