"""Every way to multiply by the experts gives the same rows, whatever the layout of the weights."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from moe import build, weights
from moe.layer import onednn
from moe.layer.experts import Experts
from moe.parallel.comm import Comm
from moe.parallel.row_counts import RowCounts
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec

CPU = torch.device("cpu")
LAYER = LayerSpec(dim=16, hidden=24, dim_out=8, num_experts=4, topk=2, topk_requested=2)
LIMIT = {"float32": 2e-6, "bfloat16": 2e-2}
HALF = torch.bfloat16
COUNTS = ([3, 0, 1, 40], [2, 2, 2, 2], [0, 0, 5, 0], [0, 0, 0, 0])


def experts_of(**changes: object) -> Experts:
    layer = dataclasses.replace(LAYER, **changes)  # type: ignore[arg-type]
    made = Experts(layer, range(4), (0, layer.hidden), CPU)
    made.requires_grad_(False)
    return made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bias", ["none", "random"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "identity", "silu_gated"])
def test_all_variants_agree(activation: str, bias: str, dtype: str) -> None:
    experts = experts_of(activation=activation, bias=bias, dtype=dtype)
    held = dict(experts.named_parameters())
    x_SD = torch.randn(44, 16, generator=torch.Generator().manual_seed(1)).to(held["fc1"].dtype)
    names = experts.variants("auto", x_SD.dtype)
    assert {"loop", "loop_wx", "bmm", "bmm_t", "dense"} < set(names)
    for counts in COUNTS:
        part = x_SD[: sum(counts)]
        wanted = by_hand(held, part, counts, activation)
        for name in [*names, *names[::-1]]:
            experts.use(name)
            with torch.inference_mode():
                y_SO = experts.rows(part, RowCounts(counts)).double()
            assert y_SO.shape == (sum(counts), 8)
            error = (y_SO - wanted).norm() / wanted.norm().clamp(min=1e-9)
            assert error < LIMIT[dtype], (name, counts)


def by_hand(
    held: dict[str, torch.Tensor], x_SD: torch.Tensor, counts: list[int], activation: str
) -> torch.Tensor:
    """In float64, row by row."""
    of_row = [e for e, count in enumerate(counts) for _ in range(count)]
    rows = [torch.zeros(0, 8, dtype=torch.float64)]
    wide = {name: tensor.double() for name, tensor in held.items()}
    for x_D, e in zip(x_SD.double(), of_row, strict=True):
        h = wide["fc1"][e] @ x_D + (wide["b1"][e] if "b1" in wide else 0)
        if activation == "silu_gated":
            h = h[:24] / (1 + torch.exp(-h[:24])) * h[24:]
        elif activation == "gelu":
            h = h * (1 + torch.erf(h / 2**0.5)) / 2
        elif activation == "relu":
            h = h.clamp(min=0)
        rows.append((wide["fc2"][e] @ h + (wide["b2"][e] if "b2" in wide else 0))[None])
    return torch.cat(rows)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_packed_weights_come_back_bit_by_bit(dtype: torch.dtype) -> None:
    experts = experts_of(activation="silu_gated", dtype=str(dtype).removeprefix("torch."))
    assert ("packed" in experts.variants("auto", dtype)) == onednn.runs(dtype)
    if not onednn.runs(dtype):  # half precision on a processor without AVX-512
        return
    before = [p.clone() for p in experts.parameters()]
    nbytes = sum(p.nbytes for p in experts.parameters())
    experts.use("packed")
    assert {p.device.type for n, p in experts.named_parameters() if n[:2] == "fc"} == {"meta"}
    assert sum(p.nbytes for p in experts.parameters()) == nbytes
    other = copy.deepcopy(experts)
    x_SD = torch.randn(4, 16).to(dtype)
    one_each = RowCounts([1] * 4)
    assert torch.equal(other.rows(x_SD, one_each), experts.rows(x_SD, one_each))
    for made in (experts, other):
        made.use("loop")
        assert all(torch.equal(a, b) for a, b in zip(before, made.parameters(), strict=True))


def test_what_packed_weights_cannot_do_is_not_offered() -> None:
    offered = {}
    for name, mode in (("simple", "forward"), ("simple", "train"), ("fsdp", "forward")):
        placement = RankLayout(world_size=1)
        cell = Cell(LAYER, StrategySpec(name), WorkloadSpec(mode=mode), placement)
        layer = build.build(cell, Comm(CPU, 1, 0))
        offered[name, mode] = "packed" in layer.experts.variants("auto", torch.float32)
    assert offered == {
        ("simple", "forward"): True, ("simple", "train"): False, ("fsdp", "forward"): False
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bias", ["none", "random"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "identity", "silu_gated"])
def test_every_variant_trains_as_float64_would(activation: str, bias: str, dtype: str) -> None:
    experts = experts_of(activation=activation, bias=bias, dtype=dtype).requires_grad_()
    held = {n: p.detach().double().requires_grad_() for n, p in experts.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    x_SD, cotangent_SO = (
        torch.randn(44, n, generator=generator).to(experts.fc1.dtype) for n in (16, 8)
    )
    for counts in ([3, 0, 1, 40], [2, 2, 2, 2], [0, 0, 12, 0]):
        part, dy_SO = x_SD[: sum(counts)].requires_grad_(), cotangent_SO[: sum(counts)]
        wide = part.detach().double().requires_grad_()
        y_SO = by_hand(held, wide, counts, activation)
        wanted = torch.autograd.grad(y_SO, [wide, *held.values()], dy_SO.double())
        experts.use("loop")
        of_experts = flat(experts, dict(zip(held, wanted[1:], strict=True)))
        for name in experts.variants("auto", part.dtype):
            experts.use(name)
            for _ in range(2):  # the second time in memory that has been used
                experts.zero_grad()
                part.grad = None
                experts.rows(part, RowCounts(counts)).backward(dy_SO)
                assert off(part.grad, wanted[0]) < LIMIT[dtype], (name, counts)
                grads = {n: p.grad for n, p in experts.named_parameters()}
                for found, want in zip(flat(experts, grads), of_experts, strict=True):
                    assert off(found, want) < LIMIT[dtype], (name, counts)


def flat(experts: Experts, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [t for _, parts in experts.by_expert(tensors) for _, t in sorted(parts.items())]


def off(found: torch.Tensor | None, want: torch.Tensor) -> float:
    assert found is not None
    return float((found.double() - want).norm() / want.norm().clamp(min=1e-9))


def test_gradients_are_written_where_the_last_were_unless_somebody_has_them() -> None:
    experts = experts_of().requires_grad_()
    x_SD = torch.randn(8, 16)

    def step() -> torch.Tensor:
        experts.zero_grad()
        experts.rows(x_SD, RowCounts([2] * 4)).sum().backward()
        assert experts.fc1.grad is not None
        return experts.fc1.grad

    place = step().data_ptr()
    kept = step()
    before = kept.clone()
    assert kept.data_ptr() == place
    x_SD = x_SD + 1
    other = step()
    assert other.data_ptr() != place
    assert torch.equal(kept, before)
    assert not torch.equal(other, before)
    experts.rows(x_SD, RowCounts([2] * 4)).sum().backward()  # added to what is there
    assert torch.allclose(experts.fc1.grad, 2 * step())  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("hidden", [24, 3000])  # many small matrices at once, and one by one
def test_matrices_made_together_are_those_made_alone(hidden: int, dtype: str) -> None:
    layer = dataclasses.replace(
        LAYER, hidden=hidden, dtype=dtype, activation="silu_gated", bias="random", shared_experts=1
    )
    ids, columns = [0, 3, 4], (5, 17)
    for name in weights.names(layer):
        alone = [weights.matrix(layer, expert, name) for expert in ids]
        together = [held[name] for held in weights.by_expert(layer, ids)]
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
        parts = torch.stack([weights.cut(name, whole, columns) for whole in alone])
        assert torch.equal(weights.stacked(layer, ids, name, columns), parts)
        assert not torch.equal(alone[0], alone[1])
