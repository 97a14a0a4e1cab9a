"""Liger Kernel's and moe-ops' layers in Triton's interpreter, on the processor, against the oracle.

Started by tests/system/test_triton.py: TRITON_INTERPRET=1 has to be set before triton is imported.
Layers are built on the device that their peers refuse, in float32, where the interpreter's products
are exact, and in float16; those of bfloat16 are wrong in the interpreter. Autotuners cannot measure
there, so each is left its first configuration.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from moe.layer.weight_store import FusedWeights
from moe.parallel.comm import Comm
from moe.peers import liger, moe_ops
from moe.peers.base import PeerLayer
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec
from moe.step import Step
from moe.verify.verifier import Verifier
from moe.workload import batches

CPU = torch.device("cpu")
PEERS = {"liger": liger.Peer, "moe_ops": moe_ops.Peer}
# experts, top-k, tokens, workload and its parameter; fewest and most rows of an expert
FEW = (8, 2, 6, "learned", 0.0, (0, 4))
HOT = (8, 2, 70, "k_hot", 2.0, (0, 70))  # two tiles of rows of two experts, none of the others
ALL = (4, 3, 20, "balanced", 0.0, (15, 15))  # a top-k that is no power of two
ONE = (8, 1, 1, "learned", 0.0, (0, 1))
CASES = [(FEW, "forward"), *((batch, "train") for batch in (FEW, HOT, ALL, ONE))]


@pytest.fixture(autouse=True)
def first_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pins every autotuner to its first configuration, and answers for the absent GPU."""
    assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1"
    from liger_kernel.ops import fused_moe_kernels
    from moe_ops import grouped_gemm_ops, grouped_gemm_ops_sm90, unpermute_ops

    for module in (fused_moe_kernels, grouped_gemm_ops, grouped_gemm_ops_sm90, unpermute_ops):
        pin(module, monkeypatch)
    hopper(monkeypatch, False)


@pytest.fixture(autouse=True)
def undefined_memory() -> Iterator[None]:
    """What is allocated and not written is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def pin(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.autotuner import Autotuner

    for kernel in vars(module).values():
        if isinstance(kernel, Autotuner):
            monkeypatch.setattr(kernel, "configs", kernel.configs[:1])


def hopper(monkeypatch: pytest.MonkeyPatch, tma: bool) -> None:
    """moe-ops asks the GPU's driver whether it has tensor descriptors, and how many processors."""
    from moe_ops import grouped_gemm_ops_sm90 as module

    monkeypatch.setattr(
        module, "supports_tma", lambda dtype=None: tma and dtype in (None, torch.float16)
    )
    monkeypatch.setattr(module, "num_sms", lambda: 3)


def verdict(
    peer: type[PeerLayer], name: str, dtype: str, mode: str, batch: tuple[Any, ...] = FEW
) -> tuple[bool, str]:
    """Whether the check takes the layer, and its words."""
    experts, topk, tokens, kind, parameter, rows = batch
    # 144 hidden units: several tiles that are not full.
    layer = LayerSpec(40, 144, 40, experts, topk, topk, "silu_gated", "none", dtype=dtype)
    work = WorkloadSpec(tokens, mode=mode, kind=kind, parameter=parameter)
    cell = Cell(layer, StrategySpec(f"peer_{name}"), work, RankLayout(1))
    comm = Comm(CPU, 1, 0)
    step = Step(cell, peer(cell, comm), batches.inputs(cell, 0, CPU))
    verifier = Verifier(cell, comm)
    found = verifier.prove([step], 0)
    assert verifier.seen and verifier.seen.routing
    counts = torch.bincount(verifier.seen.routing.indices_TK.flatten(), minlength=experts)
    assert (int(counts.min()), int(counts.max())) == rows
    return found.ok, found.detail


@pytest.mark.parametrize("batch, mode, dtype", [
    *((*case, "float32") for case in CASES), *((*case, "float16") for case in CASES[:3])
])  # fmt: skip
@pytest.mark.parametrize("name", list(PEERS))
def test_the_kernels_compute_this_projects_function(
    name: str, batch: tuple[Any, ...], mode: str, dtype: str
) -> None:
    assert verdict(PEERS[name], name, dtype, mode, batch) == (
        True, "agrees with the float64 oracle"
    )  # fmt: skip


@pytest.mark.parametrize("batch, mode", CASES)
def test_moe_ops_with_tensor_descriptors(
    batch: tuple[Any, ...], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopper(monkeypatch, True)
    ok, detail = verdict(moe_ops.Peer, "moe_ops", "float16", mode, batch)
    assert ok, detail


def test_liger_takes_any_number_of_experts() -> None:
    ok, detail = verdict(
        liger.Peer, "liger", "float32", "train", (6, 2, 9, "balanced", 0.0, (3, 3))
    )
    assert ok, detail


@pytest.mark.parametrize("name", list(PEERS))
def test_swapped_experts_are_caught(name: str) -> None:
    class Swapped(PEERS[name]):  # type: ignore[misc]
        def fused(self) -> FusedWeights:
            fused = super().fused()
            fused.fc2[[0, 1]] = fused.fc2[[1, 0]]
            return fused

    assert not verdict(Swapped, name, "float32", "forward")[0]


def test_gradients_of_gates_are_those_of_an_inner_product() -> None:
    """Of Liger they are added up tile by tile: 144 hidden units are three tiles."""
    from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

    torch.manual_seed(0)
    x, fc1, fc2 = torch.randn(3, 8), torch.randn(2, 288, 8), torch.randn(2, 8, 144)
    gates = torch.ones(3, 1, requires_grad=True)
    indices = torch.tensor([[1], [1], [1]], dtype=torch.int32)
    y: Tensor = LigerFusedMoEFunction.apply(x, fc1, fc2, indices, gates)
    y.backward(torch.ones_like(y))
    assert gates.grad is not None
    torch.testing.assert_close(gates.grad.flatten(), y.detach().sum(1))
