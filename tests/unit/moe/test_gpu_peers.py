"""Peers on the simulated GPU: right, and how often their steps wait for the GPU.

Of what needs Triton a stand-in computes the function that is called, in torch, with its dtypes and
waits; tests/triton runs the real kernels.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe import waits
from moe.build import build
from moe.parallel.comm import Comm
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec
from moe.step import Step, release_graphs
from moe.verify.verifier import Verifier
from moe.workload import batches
from tests.support.fake_cuda import DEVICE, FakeCuda

EXPERTS = 4
# One for the list of experts with tokens; of each of them five: whether there are more, its rows
# (twice), and its two matrices by a number on the GPU.
LOOP = 1 + 5 * EXPERTS


def cell_of(strategy: StrategySpec, dtype: str, mode: str) -> Cell:
    layer = LayerSpec(
        dim=64, hidden=64, dim_out=64, num_experts=EXPERTS, topk=2, topk_requested=2,
        activation="silu_gated", bias="none", dtype=dtype,
    )  # fmt: skip
    work = WorkloadSpec(batch_size=32, mode=mode)  # all experts have tokens
    return Cell(layer, strategy, work, RankLayout(1, "nccl", "cuda", 1))


def waits_of(gpu: FakeCuda, cell: Cell) -> int:
    """Those of a step, which is proven right before and after."""
    comm = Comm(DEVICE, 1, 0)
    step = Step(cell, build(cell, comm), batches.inputs(cell, 0, DEVICE))
    verifier = Verifier(cell, comm)
    proven = verifier.prove([step], 0)
    assert proven.ok, proven.detail
    assert verifier.seen and verifier.seen.routing
    used = verifier.seen.routing.indices_TK.unique()
    assert len(used) == EXPERTS
    with gpu.watching(rows=64):
        step()
    number = len(gpu.waits)
    assert gpu.host_operations == []
    assert waits.count(step, DEVICE) == number
    again = verifier.prove_again([step], 1)
    assert again.ok, again.detail
    return number


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("name, variant, dtype, expected", [
    ("transformers", "grouped_mm", "bfloat16", {"forward": 0, "train": 0}),
    ("transformers", "grouped_mm", "float32", {"forward": 2, "train": 6}),  # 2 products, 4 back
    ("transformers", "batched_mm", "bfloat16", {"forward": 0, "train": 0}),
    ("transformers", "eager", "bfloat16", {"forward": LOOP, "train": LOOP}),
    ("grouped", "grouped_mm", "bfloat16", {"forward": 0, "train": 0}),
    ("grouped", "grouped_mm", "float32", {"forward": 2, "train": 6}),
])  # fmt: skip
def test_waits_of_peers(
    name: str, variant: str, dtype: str, expected: dict[str, int], mode: str
) -> None:
    cell = cell_of(StrategySpec(f"peer_{name}", variant=variant), dtype, mode)
    with FakeCuda() as gpu:
        assert waits_of(gpu, cell) == expected[mode]


class LigerFusedMoEFunction:
    """Waits once, as liger-kernel 0.8.5 does for the number of its tiles."""

    @staticmethod
    def apply(x: Tensor, fc1: Tensor, fc2: Tensor, indices: Tensor, gates: Tensor) -> Tensor:
        assert (indices.dtype, gates.dtype) == (torch.int32, torch.float32)
        indices.max().item()
        rows, places, ends = permute(x, indices, E=len(fc1))
        gate, up = grouped_gemm(rows, fc1, ends).chunk(2, dim=1)
        y = grouped_gemm(F.silu(gate) * up, fc2, ends)
        return unpermute(y, places, gates, *gates.shape)


def permute(x: Tensor, indices: Tensor, E: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows by expert; the row of each slot, all first choices first; where experts begin."""
    assert indices.dtype == torch.int32
    experts, order = indices.flatten().sort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=x.device)
    edges = torch.arange(E + 1, device=x.device, dtype=torch.int32)
    ends = torch.searchsorted(experts, edges, out_int32=True)
    return x.index_select(0, order // indices.shape[1]), places.view(indices.shape).T, ends


def grouped_gemm(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    return F.grouped_mm(rows, matrices.transpose(1, 2), offs=ends[1:])


def unpermute(rows: Tensor, places: Tensor, gates: Tensor, tokens: int, topk: int) -> Tensor:
    assert gates.dtype == torch.float32
    by_token = rows.index_select(0, places.T.flatten()).view(tokens, topk, -1)
    return (by_token * gates.unsqueeze(2)).sum(1).to(rows.dtype)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    functions: dict[str, dict[str, Any]] = {
        "liger_kernel": {},
        "liger_kernel.ops": {},
        "liger_kernel.ops.fused_moe": {"LigerFusedMoEFunction": LigerFusedMoEFunction},
        "moe_ops": {"permute": permute, "grouped_gemm": grouped_gemm, "unpermute": unpermute},
    }
    for name, content in functions.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("name, expected", [("liger", 1), ("moe_ops", 0)])
def test_waits_of_peers_of_triton(name: str, expected: int, mode: str, stand_ins: None) -> None:
    cell = cell_of(StrategySpec(f"peer_{name}"), "bfloat16", mode)
    with FakeCuda() as gpu:
        assert waits_of(gpu, cell) == expected


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("name", ["grouped", "moe_ops"])
def test_peers_that_never_wait_are_captured(name: str, mode: str, stand_ins: None) -> None:
    cell = cell_of(StrategySpec(f"peer_{name}", graph="on"), "bfloat16", mode)
    with FakeCuda() as gpu:
        assert waits_of(gpu, cell) == 0
        release_graphs()
