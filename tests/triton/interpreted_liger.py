"""The kernel `liger` in Triton's interpreter: Liger's kernels as moe/layer/liger.py calls them,
beside float64. tests/system/test_triton.py starts this file with TRITON_INTERPRET=1.

In float32 and float16: the interpreter's products of bfloat16 are wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from moe.layer import liger
from moe.parallel.permute import RowsElsewhere, _sorted_on_gpu
from moe.spec import StrategySpec
from tests.support import expert_cases

PRODUCTS = liger.PRODUCTS
DTYPES = pytest.mark.parametrize("dtype", expert_cases.LIMITS)
NAMES = pytest.mark.parametrize("name", PRODUCTS)


@pytest.fixture(autouse=True)
def undefined() -> Iterator[None]:
    with expert_cases.undefined_memory():
        yield


@NAMES
@DTYPES
@pytest.mark.parametrize("case, elsewhere", expert_cases.CASES)
def test_outputs_and_gradients_are_those_of_float64(
    case: str, elsewhere: RowsElsewhere, dtype: torch.dtype, name: str
) -> None:
    expert_cases.assert_outputs_and_gradients(case, elsewhere, dtype, PRODUCTS[name])


@NAMES
@DTYPES
@pytest.mark.parametrize("counts", expert_cases.COUNTS)
def test_rows_in_expert_order_with_undefined_rows_behind_them(
    counts: list[int], dtype: torch.dtype, name: str
) -> None:
    expert_cases.assert_rows(counts, dtype, PRODUCTS[name])


@NAMES
def test_gradients_of_gates_are_summed_in_float32(name: str) -> None:
    """A gate's gradient is the sum of what each block of hidden units gives. In float16 the small
    ones would vanish beside the first."""
    tile = liger.TILES[name].for_gates
    units, parts = tile.columns * 9, 9
    x = torch.ones(1, 1, dtype=torch.float16)
    fc1 = torch.ones(1, 2 * units, 1, dtype=torch.float16)
    fc1[:, :units] = 20  # silu(20) is 20
    fc2 = torch.full((1, 1, units), 2.0**-12, dtype=torch.float16)
    fc2[:, :, : tile.columns] = 1
    gates = torch.ones(1, 1, dtype=torch.float16, requires_grad=True)
    y = liger.of_tokens(x, fc1, fc2, gates, _sorted_on_gpu(torch.zeros(1, 1).long(), 1, "kept"),
                        liger.PRODUCTS[name])  # fmt: skip
    y.backward(torch.ones_like(y))
    small = tile.columns * 20 * 2.0**-12 * (parts - 1)
    assert gates.grad is not None
    assert float(gates.grad) == pytest.approx(tile.columns * 20 + small, rel=2**-11)


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("name, dispatcher, tokens, graph", [
    ("simple", "local", "sharded", "off"), ("simple", "local", "sharded", "on"),
    ("ep", "local", "replicated", "off"), ("ep", "local", "replicated", "on"),
    ("ep", "alltoall", "sharded", "off"), ("tp", "local", "sharded", "off"),
    ("fsdp", "local", "sharded", "off"),
])  # fmt: skip
def test_a_cell_passes_the_whole_check_without_waits(
    name: str, dispatcher: str, tokens: str, graph: str, mode: str
) -> None:
    strategy = StrategySpec(name, dispatcher, kernel="liger", graph=graph)
    expert_cases.assert_passes_without_waits(strategy, tokens, mode)


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_the_float32_twin_of_a_cell_passes_the_check(mode: str) -> None:
    strategy = StrategySpec("simple", kernel="liger")
    report = expert_cases.checked(strategy, "sharded", mode, "float32")
    assert report["ok"], report["detail"]


@pytest.mark.parametrize("mutant", expert_cases.WRONG_TILES)
def test_the_check_catches_wrong_tiles(mutant: Any) -> None:
    strategy = StrategySpec("simple", kernel="liger")
    with mock.patch.object(liger, "row_tiles", mutant):
        assert not expert_cases.checked(strategy, "sharded", "forward")["ok"]
