"""Liger's kernels and ours, with the blocks of moe/layer/liger.py and triton_experts.py, compiled
for an H100 without one."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moe.layer import liger, triton_experts
from moe.parallel.permute import _sorted_on_gpu

QWEN3, MIXTRAL = (2048, 768), (4096, 14336)  # widths of their experts
P, K, T = 2, 2, 16
SHARED_BYTES = 227 << 10  # of a block on an H100 at most
SPILLED_BYTES = 32  # for each thread: eight registers
TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32",
         torch.int64: "*i64", torch.int32: "*i32"}  # fmt: skip
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")


class Launch(NamedTuple):
    kernel: Any
    arguments: list[Any]
    options: dict[str, int]


def note(
    noted: list[Launch], kernel: Any, grid: Any, tensors: Sequence[Tensor], sizes: Any,
    strided: Sequence[Tensor], options: dict[str, int],
) -> None:  # fmt: skip
    """In place of `liger.launch`."""
    strides = [stride for one in strided for stride in one.stride()]
    noted.append(Launch(kernel, [*tensors, *sizes, *strides], dict(options)))


def launches(
    by: liger.Products, widths: tuple[int, int], dtype: torch.dtype, gradients: bool, backward: bool
) -> list[Launch]:
    """What a forward pass and, where asked for, a backward pass launch."""
    (inputs, hidden) = widths
    noted: list[Launch] = []
    shapes = ((T, inputs), (P, 2 * hidden, inputs), (P, inputs, hidden), (T, K))
    leaves = [torch.zeros(shape, dtype=dtype, requires_grad=backward) for shape in shapes]
    slots = _sorted_on_gpu(torch.arange(T * K).view(T, K) % P, P, "kept")
    with (
        mock.patch.object(liger, "launch", partial(note, noted)),
        torch.set_grad_enabled(gradients),
    ):
        y = liger.of_tokens(*leaves, slots, by)
        if backward:
            y.sum().backward()
    return noted


def compiled(launch: Launch) -> Any:
    """As Triton specialises the arguments: pointers and integers that 16 divides are known to be
    so."""
    options = dict(launch.options)
    compiler = {key: options.pop(key) for key in ("num_warps", "num_stages") if key in options}
    signature, constants, attributes = {}, {}, {}
    values = dict(enumerate(launch.arguments))
    for place, parameter in enumerate(launch.kernel.params):
        value = values.get(place, options.get(parameter.name))
        divisible = isinstance(value, Tensor) or (
            not parameter.do_not_specialize and value % 16 == 0
        )
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        signature[parameter.name] = TYPES[value.dtype] if isinstance(value, Tensor) else "i32"
        if divisible:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=compiler)


def spilled(kernel: Any, folder: Path) -> int:
    """Bytes of each thread that registers have no room for."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    done = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, timeout=60)
    (resources,) = RESOURCES.findall(done.stdout)
    return int(resources[1])


def resources(launch: Launch, folder: Path) -> tuple[str, str]:
    """(its name, the instruction that multiplies) of a kernel that fits an H100."""
    kernel, of = compiled(launch), launch.kernel.__name__
    text = kernel.asm["ptx"]
    assert kernel.metadata.shared <= SHARED_BYTES, of
    assert spilled(kernel, folder) <= SPILLED_BYTES, of
    instructions = [one for one in ("wgmma.mma_async", "mma.sync", "fma.rn.f32") if one in text]
    return of, instructions[0] if instructions else ""


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path) -> Iterator[None]:
    variables = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_F32_DEFAULT": "ieee"}
    with mock.patch.dict("os.environ", variables):
        yield


@pytest.mark.parametrize("name", liger.PRODUCTS)
def test_ligers_kernels_compile_for_an_h100_and_fit_it(name: str, tmp_path: Path) -> None:
    noted = launches(liger.PRODUCTS[name], QWEN3, torch.bfloat16, True, True)
    assert len(noted) == 6
    for launch in noted:
        of, instruction = resources(launch, tmp_path)
        wide = launch.options["BLOCK_M"] >= 64
        assert instruction == ("wgmma.mma_async" if wide else "mma.sync"), of


@pytest.mark.parametrize("gradients, widths", [(False, QWEN3), (True, MIXTRAL)])
@pytest.mark.parametrize("name", triton_experts.PRODUCTS)
def test_our_kernels_compile_for_an_h100_and_fit_it(
    name: str, gradients: bool, widths: tuple[int, int], tmp_path: Path
) -> None:
    by = triton_experts.PRODUCTS[name]
    noted = launches(by, widths, torch.bfloat16, gradients, False)
    product = "wgmma.mma_async" if by.tile.rows >= 64 else "mma.sync"
    assert [resources(launch, tmp_path) for launch in noted] == [
        ("first_product", product), ("second_product", product), ("sum_of_rows", "fma.rn.f32")
    ]  # fmt: skip


@pytest.mark.parametrize(("experts", "tokens", "topk"), [(128, 1, 8), (256, 32, 8), (8, 1, 1)])
def test_the_sort_of_few_slots_compiles_for_an_h100_and_fits_it(
    experts: int, tokens: int, topk: int, tmp_path: Path
) -> None:
    noted: list[Launch] = []
    chosen_TK = torch.arange(tokens * topk).view(tokens, topk) % experts
    with mock.patch.object(liger, "launch", partial(note, noted)):
        triton_experts.sort_slots(chosen_TK, experts, "padded")
    assert [resources(launch, tmp_path) for launch in noted] == [("sort_few", "")]


@pytest.mark.parametrize("name", liger.PRODUCTS)
def test_ligers_float32_is_not_rounded_to_tf32(name: str) -> None:
    for launch in launches(liger.PRODUCTS[name], QWEN3, torch.float32, True, True):
        kernel, of = compiled(launch), launch.kernel.__name__
        assert kernel.metadata.shared <= SHARED_BYTES, of
        assert "wgmma.mma_async" not in kernel.asm["ptx"], of
        assert "mma.sync" not in kernel.asm["ptx"], of


@pytest.mark.parametrize("name", ["triton", "triton_16"])
def test_float32_is_not_rounded_to_tf32(name: str, tmp_path: Path) -> None:
    noted = launches(triton_experts.PRODUCTS[name], QWEN3, torch.float32, False, False)
    assert {resources(launch, tmp_path)[1] for launch in noted} == {"fma.rn.f32"}
