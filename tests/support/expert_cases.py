"""Cases of kernels that compute experts in tiles of rows, and what they should give, beside which
files of tests/triton put them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from moe.layer import liger
from moe.parallel.comm import Comm
from moe.parallel.permute import RowsElsewhere, Slots, _sorted_on_gpu
from moe.parallel.row_counts import RowCounts
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec
from tests.dist import gpu_ranks
from tests.support.fake_cuda import DEVICE, FakeCuda

D, H, OUT, P, K = 24, 20, 40, 5, 2  # no multiples of a block, nor of each other
LIMITS = {torch.float32: 2e-6, torch.float16: 2e-3}  # relative, root mean square

# Experts of each token's slots. P and more: on other ranks.
CHOICES = {
    "even": [[t % P, (t + 1) % P] for t in range(10)],
    "one expert has all": [[3, 3]] * 40,
    "one row": [[4, P]],
    "empty first and last": [[1, 2], [3, 1], [2, 3]] * 30,
    "more than a tile of 128": [[0, 4]] * 140,
    "elsewhere": [[0, P], [P + 1, P], [2, 4], [P, 1]] * 5,
    "all elsewhere but one": [[P, P + 1]] * 20 + [[P, 2]],
}


CASES = [
    *((case, "kept") for case, rows in CHOICES.items() if max(map(max, rows)) < P),
    *itertools.product(("one row", "elsewhere", "all elsewhere but one"), ("cut", "padded")),
]
COUNTS = ([3, 0, 1, 70, 2], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1])


@contextlib.contextmanager
def undefined_memory() -> Iterator[None]:
    """Whatever is not written is NaN."""
    new_empty, empty_like = Tensor.new_empty, torch.empty_like

    def filled(x: Tensor) -> Tensor:
        return x.fill_(torch.nan) if x.is_floating_point() else x

    with (
        mock.patch.object(Tensor, "new_empty", lambda x, *a, **k: filled(new_empty(x, *a, **k))),
        mock.patch.object(torch, "empty_like", lambda x, **k: filled(empty_like(x, **k))),
    ):
        yield


def inputs(tokens: int, dtype: torch.dtype) -> list[Tensor]:
    """Tokens, both matrices and gates."""
    draw = torch.Generator().manual_seed(tokens)
    shapes = ((tokens, D), (P, 2 * H, D), (P, OUT, H), (tokens, K))
    return [torch.randn(shape, generator=draw).mul(0.5).to(dtype) for shape in shapes]


def expected(x: Tensor, fc1: Tensor, fc2: Tensor, gates: Tensor, chosen: list[list[int]]) -> Tensor:
    """By one expert of one token after the other."""
    rows = []
    for t, experts in enumerate(chosen):
        total = torch.zeros(OUT, dtype=x.dtype)
        for k, e in enumerate(experts):
            if e < P:
                gate, other = (fc1[e] @ x[t]).chunk(2)
                total = total + gates[t, k] * (fc2[e] @ (F.silu(gate) * other))
        rows.append(total)
    return torch.stack(rows)


def error(value: Tensor | None, want: Tensor | None) -> float:
    assert value is not None and want is not None
    size = want.norm()
    difference = (value.double() - want).norm()
    return float(difference / size) if size else float(difference)


def doubled(tensors: list[Tensor]) -> list[Tensor]:
    return [x.detach().double().requires_grad_() for x in tensors]


def slots_of(chosen: list[list[int]], elsewhere: RowsElsewhere) -> Slots:
    return _sorted_on_gpu(torch.tensor(chosen), P, elsewhere)


def assert_outputs_and_gradients(
    case: str, elsewhere: RowsElsewhere, dtype: torch.dtype, by: liger.Products
) -> None:
    """Of tokens, beside float64; a pass without gradients gives the same bits."""
    chosen = CHOICES[case]
    leaves = [x.requires_grad_() for x in inputs(len(chosen), dtype)]
    slots = slots_of(chosen, elsewhere)
    y = liger.of_tokens(*leaves, slots, by)
    cotangent = torch.ones_like(y) + torch.arange(OUT, dtype=dtype) / OUT
    y.backward(cotangent)
    want_leaves = doubled(leaves)
    want = expected(*want_leaves, chosen)
    want.backward(cotangent.double())
    assert error(y.detach(), want.detach()) <= LIMITS[dtype]
    for leaf, want_leaf in zip(leaves, want_leaves, strict=True):
        assert error(leaf.grad, want_leaf.grad) <= LIMITS[dtype]
    with torch.inference_mode():
        assert torch.equal(liger.of_tokens(*leaves, slots, by), y)


def assert_rows(counts: list[int], dtype: torch.dtype, by: liger.Products) -> None:
    """Of rows in expert order, with undefined ones behind them, beside float64."""
    used = sum(counts)
    x, fc1, fc2, _ = inputs(used + 4, dtype)
    x[used:] = torch.nan
    leaves = [one.requires_grad_() for one in (x, fc1, fc2)]
    y = liger.of_rows(*leaves, RowCounts(counts), by)[:used]
    y.sum().backward()
    want_leaves = doubled(leaves)
    chosen = [[e] for e, count in enumerate(counts) for _ in range(count)]
    want = expected(want_leaves[0][:used], *want_leaves[1:], torch.ones(used, 1), chosen)
    want.sum().backward()
    assert error(y.detach(), want.detach()) <= LIMITS[dtype]
    for leaf, want_leaf in zip(leaves, want_leaves, strict=True):
        grad, want_grad = leaf.grad, want_leaf.grad
        assert grad is not None and want_grad is not None
        rows = used if leaf is leaves[0] else len(leaf)
        assert error(grad[:rows], want_grad[:rows]) <= LIMITS[dtype]


def cell_of(
    strategy: StrategySpec, batch: int, tokens: str = "sharded", mode: str = "forward",
    dtype: str = "float16",
) -> Cell:  # fmt: skip
    """A small cell for one GPU."""
    layer = LayerSpec(
        dim=32, hidden=48, dim_out=40, num_experts=8, topk=2, topk_requested=2,
        activation="silu_gated", bias="none", dtype=dtype,
    )  # fmt: skip
    work = WorkloadSpec(batch_size=batch, mode=mode, tokens=tokens)
    return Cell(layer, strategy, work, RankLayout(1, "nccl", "cuda", 1))


def checked(
    strategy: StrategySpec, tokens: str, mode: str, dtype: str = "float16"
) -> dict[str, Any]:
    """What the check says on the simulated GPU."""
    with FakeCuda() as gpu:
        cell = cell_of(strategy, 21, tokens, mode, dtype)
        return gpu_ranks.check(cell, Comm(DEVICE, 1, 0), gpu)


def assert_passes_without_waits(strategy: StrategySpec, tokens: str, mode: str) -> None:
    """The whole check, without waits of the host and without work on the processor."""
    report = checked(strategy, tokens, mode)
    assert report["ok"], report["detail"]
    assert (report["waits"], report["counted"], report["on_host"]) == ([], 0, [])


row_tiles = liger.row_tiles


def fewer_tiles(*arguments: Any) -> liger.RowTiles:
    tiles = row_tiles(*arguments)
    return liger.RowTiles(tiles.row_M[:-1], tiles.expert_M[:-1], tiles.starts_P1)


def late_tiles(*arguments: Any) -> liger.RowTiles:
    tiles = row_tiles(*arguments)
    return liger.RowTiles(tiles.row_M + 1, tiles.expert_M, tiles.starts_P1)


WRONG_TILES = (fewer_tiles, late_tiles)
