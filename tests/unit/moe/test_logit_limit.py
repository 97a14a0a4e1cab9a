"""The limit of a router's logits: rounding, and what tensor cores cut off."""

from __future__ import annotations

import numpy as np
import pytest

from moe.verify.limits import logit_limit

BF16_ROUNDING = 2.0**-9  # of a logit of 1, at most


def test_worked_example() -> None:
    """D = 2048: 8 * 0.42 * 2**-24 * sqrt(2064) is 9.1e-6. 128 additions, each of which cuts off at
    most 2**-23 of 8, make 1.22e-4."""
    assert logit_limit(2048) == pytest.approx(9.1e-6, rel=0.01)
    assert logit_limit(2048, tensor_cores=True) - logit_limit(2048) == pytest.approx(1.22e-4, 0.01)


@pytest.mark.parametrize("dim", [2048, 4096, 7168])
def test_logits_that_were_rounded_to_bfloat16_are_over_it(dim: int) -> None:
    assert logit_limit(dim, tensor_cores=True) < BF16_ROUNDING / 4


def on_tensor_cores(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Sums of products, 16 at a time, cut off after 24 bits."""
    total = np.zeros(len(x))
    for start in range(0, x.shape[1], 16):
        total += (x[:, start : start + 16] * w[:, start : start + 16]).sum(1)
        mantissa, exponent = np.frexp(total)
        total = np.ldexp(np.trunc(mantissa * 2**24) / 2**24, exponent)
    return total


@pytest.mark.parametrize("dim", [2048, 7168])
def test_a_simulated_tensor_core_is_within_it_and_not_within_rounding(dim: int) -> None:
    draw = np.random.default_rng(dim)
    x, w = draw.standard_normal((2, 20_000, dim))
    size = np.linalg.norm(x, axis=1) * np.linalg.norm(w, axis=1) / dim**0.5
    off = np.abs(on_tensor_cores(x, w) - (x * w).sum(1)) / size
    assert off.max() < logit_limit(dim, tensor_cores=True)
    assert off.max() > logit_limit(dim)  # as on an H200, whose logits the limit of rounding refused
