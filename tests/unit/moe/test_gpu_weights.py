"""Weights and tokens on a simulated GPU: the bits of the CPU's, made once for layers that share
them."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace

import pytest
import torch

from moe import weights
from moe.layer import weight_store
from moe.layer.experts import Experts
from moe.spec import Cell, LayerSpec, WorkloadSpec
from moe.verify import golden
from moe.workload import batches
from tests.support.fake_cuda import DEVICE, FakeCuda

LAYER = LayerSpec(dim=48, hidden=40, dim_out=24, num_experts=6, activation="silu_gated",
                  bias="random", dtype="bfloat16", weight_seed=7)  # fmt: skip
LARGE = replace(LAYER, dim=512, hidden=300)  # one matrix is longer than a processor's chunk


@pytest.mark.parametrize("layer", [LAYER, LARGE, replace(LAYER, dtype="float32", bias="zero")])
def test_weights_have_the_same_bits(layer: LayerSpec) -> None:
    ids, columns = (0, 3, 5), (8, 32)
    with FakeCuda() as gpu:
        assert torch.equal(weights.router(layer, DEVICE).cpu(), weights.router(layer))
        for name in weights.names(layer):
            here = weights.stacked(layer, ids, name, columns, DEVICE)
            assert here.is_cuda
            assert torch.equal(here.cpu(), weights.stacked(layer, ids, name, columns))
        for one, other in zip(
            weights.by_expert(layer, ids, DEVICE), weights.by_expert(layer, ids), strict=True
        ):
            assert all(torch.equal(one[name].cpu(), other[name]) for name in other)
        with gpu.watching(rows=1000):
            weights.stacked(layer, ids, "w1", (0, layer.hidden), DEVICE)
        assert gpu.host_operations == []


def test_tokens_have_the_same_bits() -> None:
    cell = Cell(LAYER, workload=WorkloadSpec(batch_size=3000, seed=3))
    with FakeCuda():
        for make in (batches.tokens, batches.cotangent):
            assert torch.equal(make(cell, (17, 2999), DEVICE).cpu(), make(cell, (17, 2999)))


def test_the_definitions_digest_is_checked_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeCuda():
        assert golden.as_written(DEVICE)
        right = weights.uniform_

        def off(out: torch.Tensor, *of: int, **more: int) -> torch.Tensor:
            right(out, *of, **more)  # type: ignore[arg-type]
            return out.mul_(1 + 2**-20) if out.is_cuda else out

        monkeypatch.setattr(weights, "uniform_", off)
        assert golden.as_written() and not golden.as_written(DEVICE)


def experts_of(layer: LayerSpec = LAYER) -> Experts:
    return Experts(layer, range(4), (0, layer.hidden), DEVICE)


def test_layers_with_the_same_weights_share_them_while_one_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weight_store, "SHARED_BYTES", 0)
    with FakeCuda():
        one, two = experts_of(), experts_of()
        assert one.fc1.data_ptr() == two.fc1.data_ptr()
        assert one.fc1 is not two.fc1  # each has its own gradient
        assert experts_of(replace(LAYER, weight_seed=8)).fc1.data_ptr() != one.fc1.data_ptr()
        assert copy.deepcopy(one).fc1.data_ptr() != one.fc1.data_ptr()  # a cold copy is a copy
        del one, two
        gc.collect()
        assert not weight_store._kept


def test_small_weights_are_not_shared() -> None:
    with FakeCuda():
        assert experts_of().fc1.data_ptr() != experts_of().fc1.data_ptr()


def test_trying_other_layouts_makes_the_weights_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeCuda():
        experts = experts_of()
        at, fc1 = experts.fc1.data_ptr(), experts.fc1.clone()
        for kernel in ("bmm_t", "dense", "grouped"):
            experts.use(kernel)
        assert experts.fc1.data_ptr() == at and torch.equal(experts.fc1, fc1)
        experts.keep_only_used()
        assert experts.shared_weights is not None
        experts.use("bmm_t")
        experts.keep_only_used()
        assert experts.shared_weights is None
        experts.use("loop")
        assert torch.equal(experts.fc1, fc1)
