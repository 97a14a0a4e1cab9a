"""Liger's kernels, with the tiles of moe/layer/liger.py, compiled for an H100 without one."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moe.layer import liger
from moe.parallel.permute import _sorted_on_gpu

D, H, P, K, T = 2048, 768, 2, 2, 16  # widths of Qwen3-30B's experts
SHARED_BYTES = 227 << 10  # of a block on an H100 at most
SPILLED_BYTES = 16  # for each thread
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64", torch.int32: "*i32"}
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")


class Launch(NamedTuple):
    kernel: Any
    arguments: list[Any]
    options: dict[str, int]


def launches(name: str) -> list[Launch]:
    """What a forward and a backward pass launch."""
    noted: list[Launch] = []

    def note(
        kernel: Any, grid: Any, tensors: Sequence[Tensor], widths: Any, strided: Sequence[Tensor],
        options: dict[str, int],
    ) -> None:  # fmt: skip
        strides = [stride for one in strided for stride in one.stride()]
        noted.append(Launch(kernel, [*tensors, *widths, *strides], dict(options)))

    shapes = ((T, D), (P, 2 * H, D), (P, D, H), (T, K))
    leaves = [torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    slots = _sorted_on_gpu(torch.arange(T * K).view(T, K) % P, P, "kept")
    with mock.patch.object(liger, "launch", note):
        liger.of_tokens(*leaves, slots, name).sum().backward()
    return noted


def compiled(launch: Launch) -> Any:
    """As Triton specialises the arguments: pointers and integers that 16 divides are known to be
    so."""
    options = dict(launch.options)
    compiler = {key: options.pop(key) for key in ("num_warps", "num_stages")}
    signature, constants, attributes = {}, {}, {}
    values = dict(enumerate(launch.arguments))
    for place, parameter in enumerate(launch.kernel.fn.params):
        value = values.get(place, options.get(parameter.name))
        divisible = isinstance(value, Tensor) or value % 16 == 0
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        signature[parameter.name] = TYPES[value.dtype] if isinstance(value, Tensor) else "i32"
        if divisible:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel.fn, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=compiler)


def spilled(kernel: Any, folder: Path) -> int:
    """Bytes of each thread that registers have no room for."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    done = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, timeout=60)
    (resources,) = RESOURCES.findall(done.stdout)
    return int(resources[1])


@pytest.mark.parametrize("name", liger.TILES)
def test_kernels_compile_for_an_h100_and_fit_it(name: str, tmp_path: Path) -> None:
    noted = launches(name)
    assert len(noted) == 6
    with mock.patch.dict("os.environ", TRITON_CACHE_DIR=str(tmp_path)):
        for launch in noted:
            kernel = compiled(launch)
            text, of = kernel.asm["ptx"], launch.kernel.fn.__name__
            wide = launch.options["BLOCK_M"] >= 64
            assert ("wgmma.mma_async" in text, "mma.sync" in text) == (wide, not wide), of
            assert kernel.metadata.shared <= SHARED_BYTES, of
            assert spilled(kernel, tmp_path) <= SPILLED_BYTES, of
