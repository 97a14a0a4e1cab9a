"""Whole models: parameters and bytes of a rank, each by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest

from moe.cost.whole_memory import MemoryPlan, MemoryUse, whole_memory
from moe.cost.whole_model import Share, WholeModel, parameter_count, parameter_groups
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec

# D 8, expert of 96 numbers, 4 heads and 2 of keys and values of 2 numbers each, 10 words
MODEL = WholeModel(3, 2, 10, 4, 2, 2, dense_hidden=12)
LAYER = LayerSpec(8, 4, 8, 4, 2, 2, "silu_gated", "none", dtype="bfloat16")
LATENT = WholeModel(3, 3, 10, 4, 4, 2, q_rank=3, kv_rank=5, rope_dim=1, value_dim=2)


def cell(name: str = "ep", ranks: int = 4, mode: str = "train") -> Cell:
    strategy = StrategySpec(name, "alltoall" if name == "ep" else "local")
    work = WorkloadSpec(batch_size=2 * ranks, tokens="sharded", mode=mode)
    return Cell(LAYER, strategy, work, RankLayout(ranks, "nccl", "cuda"))


def parts(
    plan: MemoryPlan, made: Cell | None = None, model: WholeModel = MODEL
) -> dict[str, float]:
    return whole_memory(model, made or cell(), plan).parts


def test_parameters_of_a_rank_by_group() -> None:
    groups = {group.name: (group.total, group.copies) for group in parameter_groups(MODEL, cell())}
    assert groups == {
        "experts": (2 * 96, 1), "router": (2 * 4 * 8, 4), "attention": (3 * 2 * 8 * 8, 4),
        "keys and values": (3 * 2 * 8 * 4, 4), "norms and latents": (3 * 2 * 8, 4),
        "dense MLP": (3 * 8 * 12, 4), "embeddings": (2 * 10 * 8, 4), "last norm": (8, 4),
    }  # fmt: skip


def test_tensor_parallel_attention_has_a_head_of_keys_and_values_at_least() -> None:
    groups = {g.name: (g.total, g.copies) for g in parameter_groups(MODEL, cell("tp"))}
    assert groups["attention"] == (3 * 2 * 8 * 2, 1)
    assert groups["keys and values"] == (3 * 2 * 8 * 2, 2)
    assert groups["dense MLP"] == (3 * 8 * 3, 1)
    assert groups["experts"] == (2 * 4 * 24, 1)


@pytest.mark.parametrize("name", ["ep", "tp", "simple", "fsdp"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_parameters_counted_once_are_the_models(name: str, ranks: int) -> None:
    # 8 experts and 2 routers of 32, 3 layers of 128 + 64 + 16, a dense MLP, words, the last norm
    expected = 8 * 96 + 2 * 32 + 3 * 208 + 288 + 160 + 8
    assert parameter_count(parameter_groups(MODEL, cell(name, ranks)), ranks) == expected


def test_latent_attention_and_norms_of_queries_and_keys() -> None:
    groups = {g.name: g.elements for g in parameter_groups(LATENT, cell())}
    # down: 8 (3 + 5 + 1), and norms of 2 D and the latents; up: 3 4 3, 5 4 4; output 4 2 8
    assert groups["attention"] == 36 + 80 + 64
    assert groups["norms and latents"] == 72 + 16 + 8
    headed = dataclasses.replace(MODEL, qk_norm="head")
    every = dataclasses.replace(MODEL, qk_norm="all")
    norms = [parameter_groups(model, cell())[4].elements for model in (MODEL, headed, every)]
    assert norms == [16, 16 + 4, 16 + 8 + 4]


def test_weights_gradients_and_states_by_stage_of_zero() -> None:
    whole, shards = 1336, 192 + 1144 / 4
    assert parts(MemoryPlan(zero=0))["optimizer"] == 12 * whole
    first = parts(MemoryPlan(zero=1))
    assert (first["weights"], first["gradients"]) == (2 * whole, 4 * whole)
    assert first["optimizer"] == 12 * shards
    assert parts(MemoryPlan(zero=2))["gradients"] == 4 * shards
    third = parts(MemoryPlan(zero=3))
    assert (third["weights"], third["optimizer"]) == (4 * shards, 8 * shards)
    # the largest layer, twice in bfloat16, and its gradients in bfloat16 and fp32
    assert third["gathered"] == (128 + 64 + 16 + 288) * (2 * 2 + 2 + 4)


@pytest.mark.parametrize(("plan", "gradient", "state"), [
    (MemoryPlan(master="bf16"), 2, 4), (MemoryPlan(optimizer="sgd"), 4, 4),
    (MemoryPlan(optimizer="adamw8bit"), 4, 4 + 2 * (1 + 4 / 256)),
    (MemoryPlan(optimizer="adamw8bit", master="bf16"), 2, 2 * (1 + 4 / 256)),
])  # fmt: skip
def test_bytes_of_a_parameter(plan: MemoryPlan, gradient: float, state: float) -> None:
    found = parts(plan)
    assert found["gradients"] == gradient * 1336
    assert found["optimizer"] == pytest.approx(state * (192 + 1144 / 4))


def test_no_optimizer_has_no_states() -> None:
    assert "optimizer" not in parts(MemoryPlan(optimizer="none"))


def test_fsdp_keeps_shards_whatever_the_stage() -> None:
    found = parts(MemoryPlan(zero=0), cell("fsdp"))
    everything = 8 * 96 + 64 + 624 + 288 + 160 + 8
    assert found["weights"] == 4 * everything / 4
    assert found["gathered"] == (208 + 4 * 96 + 32) * 10
    assert "messages" not in found


def test_activations_of_training() -> None:
    # 2 tokens: 24 + 16 + 8 numbers of attention, 4 of softmax in fp32; 4 slots: 4 x 4 hidden ones
    attention = 2 * (2 * 48 + 4 * 4)
    experts = 2 * (4 * 8 + 2 * 8 + 4 * 16 + 2 * 2 * 8) + 2 * (4 * 4 + 4 * 8 * 2 + 4 * 8)
    dense = 2 * 2 * (8 + 4 * 12)
    inputs = 2 * 2 * 8
    found = parts(MemoryPlan())
    assert found["activations"] == 3 * attention + 2 * experts + dense + inputs
    assert found["transient"] == 2 * 10 * (2 + 4 + 4)
    assert found["messages"] == 2 * 3 * 8 * 2  # 3 of 4 rows of 16 bytes, there and back
    again = parts(MemoryPlan(recompute="full"))
    assert again["activations"] == 3 * inputs + attention + experts + inputs
    unfused = parts(MemoryPlan(flash=False, context=6))
    assert unfused["activations"] - found["activations"] == 3 * 2 * 2 * 4 * 6
    fused = parts(MemoryPlan(fused=True))
    less = 2 * (2 * 4 * 4 + 2 * (2 * 2 * 8 + 4 * 8)) + 2 * 2 * 12
    assert found["activations"] - fused["activations"] == less
    assert fused["transient"] == 2 * 10 * (2 + 4)


def test_a_part_of_the_layers_is_a_stage_of_a_pipeline() -> None:
    moe = 2 * (2 * 48 + 4 * 4) + 512  # a layer's, as above
    first = parts(MemoryPlan(share=Share(layers=1)))
    assert first["weights"] == 2 * (96 + 32 + 208 + 80 + 8)  # one matrix of words
    assert first["activations"] == 3 * moe + 32  # of three microbatches
    assert first["transient"] == 4 * 8 * 2  # no logits, but gradients of hidden rows
    many_words = dataclasses.replace(MODEL, vocab=1000)
    last = parts(MemoryPlan(share=Share(layers=1)), model=many_words)
    assert last["activations"] == moe + 32
    assert last["transient"] == 2 * 1000 * 10


def test_inference_has_weights_activations_and_a_cache() -> None:
    decode = parts(MemoryPlan("decode", context=16), cell(mode="forward"))
    assert set(decode) == {"weights", "activations", "transient", "cache", "messages"}
    assert decode["weights"] == 2 * 1336
    assert decode["cache"] == 2 * 16 * 3 * 2 * (2 * 2 * 2)  # sequences, tokens, layers, bytes
    assert decode["transient"] == 2 * 10 * (2 + 4)
    prefill = parts(MemoryPlan("prefill", context=2), cell(mode="forward"))
    assert prefill["cache"] == 2 * 3 * 2 * 8
    split = parts(MemoryPlan("decode", context=16), cell("tp", mode="forward"))
    assert split["cache"] == 2 * decode["cache"]  # 4 ranks, but 2 heads of keys and values
    latent = parts(MemoryPlan("decode", context=16), cell(mode="forward"), LATENT)
    assert latent["cache"] == 2 * 16 * 3 * 2 * (5 + 1)


def test_what_fits_and_what_is_missing() -> None:
    use = MemoryUse({"weights": 3.0, "cache": 4.0}, 5.0)
    assert (use.total, use.fits, use.missing) == (7.0, False, 2.0)
    assert dataclasses.replace(use, available=7.0).missing == 0.0
    assert MemoryUse({"weights": 3.0}).available == math.inf


def test_the_busiest_rank_has_more_slots() -> None:
    even = whole_memory(MODEL, cell(), MemoryPlan())
    skewed = whole_memory(MODEL, cell(), MemoryPlan(), skew=1.5)
    more = skewed.parts["activations"] - even.parts["activations"]
    assert more == pytest.approx(2 * 2 * 2 * (8 + 16))  # half of 4 slots more, in both MoE layers


@pytest.mark.parametrize(("dtype", "master"), [("bfloat16", 4), ("float32", 0)])
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_weights_in_fp32_have_no_master_beside_them(dtype: str, master: int, zero: int) -> None:
    one = dataclasses.replace(cell(), layer=dataclasses.replace(LAYER, dtype=dtype))
    elements = 1336 if zero == 0 else 192 + 1144 / 4  # as above
    assert parts(MemoryPlan(zero=zero), one)["optimizer"] == (master + 8) * elements


def test_parameters_of_one_rank_alone_are_not_gathered() -> None:
    """Without dense layers the largest layer is attention, norms and the MoE layer, whose 96 of
    experts are gathered where the other ranks have shards of them."""
    moe = dataclasses.replace(MODEL, moe_layers=3)
    each = 2 * 2 + 2 + 4
    same = 128 + 64 + 16 + 32  # attention, keys and values, norms, router
    assert parts(MemoryPlan(zero=3), cell("ep"), moe)["gathered"] == same * each
    assert parts(MemoryPlan(zero=3), cell("fsdp"), moe)["gathered"] == (same + 4 * 96) * each
