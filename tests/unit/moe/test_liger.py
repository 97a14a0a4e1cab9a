"""The kernels `liger` and `triton` without Triton: which tile computes which rows, and where they
are refused."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from importlib.util import find_spec
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe.build import supports
from moe.layer import liger, liger_support, triton_experts, triton_support
from moe.layer.out_of_memory import is_out_of_memory
from moe.parallel.comm import Comm
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, Unsupported, WorkloadSpec
from tests.support.fake_cuda import DEVICE, FakeCuda

LAYER = LayerSpec(
    dim=64, hidden=64, dim_out=64, activation="silu_gated", bias="none", dtype="bfloat16"
)
CELL = Cell(LAYER, StrategySpec(kernel="liger"), WorkloadSpec(), RankLayout(1, "nccl", "cuda", 1))


def starts_of(counts: list[int]) -> torch.Tensor:
    return torch.tensor([0, *counts]).cumsum(0).to(torch.int32)


def tiles_of(
    counts: list[int], rows: int, tile_rows: int, overlap: bool
) -> list[tuple[int, range]]:
    """(expert, its rows in the tile) of every tile, as the kernels mask them."""
    tiles = liger.row_tiles(starts_of(counts), rows, tile_rows, overlap)
    starts = tiles.starts_P1.tolist()
    return [
        (e, range(row, max(row, min(row + tile_rows, starts[e + 1]))))
        for row, e in zip(tiles.row_M.tolist(), tiles.expert_M.tolist(), strict=True)
    ]


def test_a_worked_example() -> None:
    """Three experts with 5, 0 and 2 rows, of 9 rows in all, in tiles of 4 rows."""
    tiles = tiles_of([5, 0, 2], 9, 4, overlap=False)
    assert tiles == [(0, range(0, 4)), (0, range(4, 5)), (2, range(5, 7)), (2, range(9, 9))]


def test_few_rows_have_a_tile_each() -> None:
    tiles = tiles_of([2, 0, 1, 0], 4, 16, overlap=True)
    assert tiles == [(0, range(0, 2)), (0, range(1, 2)), (2, range(2, 3)), (3, range(3, 3))]


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=12), more=st.integers(0, 9),
    tile_rows=st.sampled_from([1, 4, 16]), overlap=st.booleans(),
)  # fmt: skip
def test_every_row_is_computed_by_its_expert(
    counts: list[int], more: int, tile_rows: int, overlap: bool
) -> None:
    used = sum(counts)
    rows = max(1, used + more)
    tiles = tiles_of(counts, rows, tile_rows, overlap)
    ends = [0, *itertools.accumulate(counts)]
    computed = [row for _, part in tiles for row in part]
    assert set(computed) == set(range(used))
    assert overlap or len(computed) == used
    assert all(ends[e] <= row < ends[e + 1] for e, part in tiles for row in part)
    assert len(tiles) <= liger.most_tiles(rows, len(counts), tile_rows)


@pytest.mark.parametrize("rows, experts, tile_rows, expected", [
    (8, 128, 64, 8),  # a token of Qwen3
    (1, 1, 64, 1), (64, 1, 64, 1), (65, 1, 64, 2),
    (66, 2, 64, 3),  # 65 and 1
    (262_144, 128, 64, 4222),  # 128 + 262,016 / 64
])  # fmt: skip
def test_most_tiles(rows: int, experts: int, tile_rows: int, expected: int) -> None:
    assert liger.most_tiles(rows, experts, tile_rows) == expected


REFUSED: dict[str, tuple[Cell, str, str]] = {
    "cpu": (replace(CELL, placement=RankLayout()), "device=cpu", "cuda"),
    "relu": (replace(CELL, layer=replace(LAYER, activation="relu")), "model.activation=relu",
             "silu_gated"),
    "bias": (replace(CELL, layer=replace(LAYER, bias="zero")), "model.bias=zero", "none"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_compute_is_refused(name: str) -> None:
    cell, said, allowed = REFUSED[name]
    with pytest.raises(Unsupported) as refused:
        supports(cell)
    assert str(refused.value).startswith(
        f"{said}: allowed is {allowed} with strategy.kernel=liger; set {said.split('=')[0]} to it"
    )


def without(name: str) -> Any:
    """find_spec where a module is not installed."""
    return lambda module: None if module == name else find_spec(module)


@pytest.mark.parametrize("module", ["triton", "liger_kernel"])
def test_it_is_refused_with_the_command_that_installs_it(module: str) -> None:
    with (
        mock.patch.object(liger_support, "find_spec", without(module)),
        pytest.raises(Unsupported, match=rf"{module} is not installed.*pip install -e '.\[gpu\]'"),
    ):
        supports(CELL)


def test_another_version_is_refused() -> None:
    with (
        mock.patch.object(liger_support, "version", lambda name: "0.9.0"),
        pytest.raises(Unsupported, match=r"liger-kernel 0.9.0 is installed, not 0.8.\*"),
    ):
        supports(CELL)


OURS = replace(CELL, strategy=StrategySpec(kernel="triton"))
OURS_TRAIN = replace(OURS, workload=WorkloadSpec(mode="train"))


def test_our_kernels_are_refused_by_their_own_name() -> None:
    with pytest.raises(Unsupported, match=r"model.bias=zero: allowed is none with .*=triton; set"):
        supports(replace(OURS, layer=replace(LAYER, bias="zero")))
    with pytest.raises(Unsupported, match=r"device=cpu: allowed is cuda with .*=triton; set"):
        supports(replace(OURS, placement=RankLayout()))


def test_our_kernels_need_ligers_to_train() -> None:
    with mock.patch.object(liger_support, "find_spec", without("liger_kernel")):
        supports(OURS)
        with pytest.raises(
            Unsupported, match=r"triton and liger-kernel \(liger_kernel is not inst"
        ):
            supports(OURS_TRAIN)
        assert candidates("triton", LAYER) == list(triton_experts.PRODUCTS)
        assert candidates("triton", LAYER, "train") == []


def test_without_triton_ours_are_refused_with_the_command_that_installs_it() -> None:
    with (
        mock.patch.object(triton_support, "find_spec", without("triton")),
        pytest.raises(Unsupported, match=r"triton is not installed.*pip install -e '.\[gpu\]'"),
    ):
        supports(OURS)


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_float32_takes_asking_for_it(mode: str) -> None:
    """In float32 neither has tensor cores."""
    float32 = replace(LAYER, dtype="float32")
    for kernel, names in (("liger", liger.PRODUCTS), ("triton", triton_experts.PRODUCTS)):
        supports(replace(CELL, layer=float32, strategy=StrategySpec(kernel=kernel)))
        assert candidates(kernel, float32, mode) == list(names)
        assert not set(candidates("auto", float32, mode)) & set(names)


def test_rows_of_a_forward_blocks_are_those_of_its_backward_blocks() -> None:
    for sizes in triton_experts.BLOCKS.values():
        assert sizes.first.rows == sizes.second.rows == sizes.backward.rows


@pytest.mark.parametrize("kernel", ["liger", "triton"])
def test_they_are_accepted_with_every_strategy(kernel: str) -> None:
    for name in ("simple", "dp", "tp", "fsdp", "ep", "serial"):
        supports(replace(CELL, strategy=StrategySpec(name, kernel=kernel)))


def candidates(kernel: str, layer: LayerSpec, mode: str = "forward") -> list[str]:
    """Kernels that a GPU's layer would try."""
    from moe.build import build

    with FakeCuda():
        work = WorkloadSpec(mode=mode)
        cell = replace(CELL, layer=layer, strategy=StrategySpec(kernel="loop"), workload=work)
        experts = build(cell, Comm(DEVICE, 1, 0)).experts
        return experts.variants(kernel, getattr(torch, layer.dtype))


def test_auto_tries_every_tile_on_a_gpu_and_needs_no_package() -> None:
    ligers, ours = list(liger.PRODUCTS), list(triton_experts.PRODUCTS)
    tiles = ligers + ours
    assert candidates("liger", LAYER) == ligers
    assert candidates("auto", LAYER)[-len(tiles) :] == tiles
    assert not set(candidates("auto", replace(LAYER, bias="zero"))) & set(tiles)
    assert not set(candidates("auto", replace(LAYER, activation="relu"))) & set(tiles)
    with (
        mock.patch.object(liger_support, "find_spec", without("triton")),
        mock.patch.object(triton_support, "find_spec", without("triton")),
    ):
        assert not set(candidates("auto", LAYER)) & set(tiles)


def test_nothing_of_triton_is_imported_before_a_kernel_runs() -> None:
    import subprocess

    code = (
        "import sys, moe.build, moe.layer.triton_experts, moe.strategies.simple.layer; "
        "print([m for m in ('triton', 'liger_kernel', 'moe_ops') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_block_larger_than_shared_memory_leaves_the_choice() -> None:
    class OutOfResources(Exception):
        """As triton.runtime.errors.OutOfResources, which is no RuntimeError."""

    said = "out of resource: shared memory, Required: 147456, Hardware limit: 101376."
    assert is_out_of_memory(OutOfResources(said))
    assert not is_out_of_memory(ValueError("another matter"))
