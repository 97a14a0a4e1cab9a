"""The oracle held against transformers' own modules in float64, and against rules worked by hand.

So that the oracle is not right by its own account alone: our weights are copied into other people's
code, and what that computes is what the oracle must compute.
Shape letters: N tokens, D in and out, H hidden, E experts, K slots of a token.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import (
    MixtralSparseMoeBlock,
    load_balancing_loss_func,
)
from transformers.models.olmoe.configuration_olmoe import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from moe import weights
from moe.layer import balance_loss, capacity
from moe.spec import Cell, LayerSpec, RankLayout, RouterSpec, WorkloadSpec
from moe.verify import oracle
from moe.workload import batches
from runners.config.cell import job_of
from tests.unit.runners.test_cell import MACHINE, config

TOKENS = 48
EXACT = 1e-10  # of numbers near 1, all in float64


# Other people's modules.


class InFloat64(TorchFunctionMode):
    """float64 wherever the code inside asks for float32: these routers make their logits or their
    softmax in float32, whatever the weights are in. Nothing else of them is changed."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        def wide(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        if func is Tensor.float:
            func = Tensor.double
        named = {name: wide(value) for name, value in (kwargs or {}).items()}
        return func(*(wide(value) for value in args), **named)


def mixtral(layer: LayerSpec) -> Any:
    assert layer.router.normalize, "Mixtral has no other way"
    return MixtralSparseMoeBlock(
        MixtralConfig(
            hidden_size=layer.dim,
            intermediate_size=layer.hidden,
            num_local_experts=layer.num_experts,
            num_experts_per_tok=layer.topk,
        )
    )


def qwen3(layer: LayerSpec) -> Any:
    return Qwen3MoeSparseMoeBlock(
        Qwen3MoeConfig(
            hidden_size=layer.dim,
            moe_intermediate_size=layer.hidden,
            num_experts=layer.num_experts,
            num_experts_per_tok=layer.topk,
            norm_topk_prob=layer.router.normalize,
        )
    )


def olmoe(layer: LayerSpec) -> Any:
    return OlmoeSparseMoeBlock(
        OlmoeConfig(
            hidden_size=layer.dim,
            intermediate_size=layer.hidden,
            num_experts=layer.num_experts,
            num_experts_per_tok=layer.topk,
            norm_topk_prob=layer.router.normalize,
        )
    )


def deepseek(layer: LayerSpec) -> Any:
    return DeepseekV3MoE(
        DeepseekV3Config(
            hidden_size=layer.dim,
            moe_intermediate_size=layer.hidden,
            n_routed_experts=layer.num_experts,
            num_experts_per_tok=layer.topk,
            n_shared_experts=layer.shared_experts,
            n_group=layer.router.groups,
            topk_group=layer.router.group_topk,
            norm_topk_prob=layer.router.normalize,
            routed_scaling_factor=layer.router.scale,
        )
    )


def filled(made: Any, layer: LayerSpec) -> Any:
    """The module with our weights in float64: w1 is what is gated, w3 what it is multiplied by."""
    made = made.double().eval()
    with torch.no_grad():
        made.gate.weight.copy_(weights.router(layer))
        for expert in range(layer.num_experts):
            held = matrices(layer, expert)
            made.experts.gate_up_proj[expert].copy_(torch.cat([held["w1"], held["w3"]]))
            made.experts.down_proj[expert].copy_(held["w2"])
        if layer.shared_experts:
            assert layer.shared_experts == 1
            held, shared = matrices(layer, layer.num_experts), made.shared_experts
            for part, name in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
                getattr(shared, part).weight.copy_(held[name])
        if layer.router.selection_bias == "balanced":
            made.gate.e_score_correction_bias.copy_(balance_loss.selection_bias(layer))
    return made


def matrices(layer: LayerSpec, expert: int) -> dict[str, Tensor]:
    return {name: weights.matrix(layer, expert, name).double() for name in weights.names(layer)}


@functools.cache
def preset(name: str) -> LayerSpec:
    """The layer of conf/model: its own top-k and router, with at most 32 experts and few numbers
    a token."""
    sizes = ["model.scale=1", "model.dim=32", "model.dim_out=32", "model.hidden=24"]
    if name != "mixtral_8x7b":
        sizes.append("num_experts=32")
    return job_of(config(f"model={name}", *sizes), MACHINE).cell.layer


MODULES: dict[str, Callable[[LayerSpec], Any]] = {
    "mixtral_8x7b": mixtral,
    "qwen3_30b_a3b": qwen3,
    "olmoe_1b_7b": olmoe,
    "deepseek_v3": deepseek,
}
CASES: list[tuple[str, dict[str, object]]] = [
    *((name, {}) for name in MODULES),
    ("qwen3_30b_a3b", {"normalize": False}),
    ("olmoe_1b_7b", {"normalize": True}),
    ("deepseek_v3", {"normalize": False}),
    ("deepseek_v3", {"groups": 4, "group_topk": 1, "scale": 1.0}),
    ("deepseek_v3", {"groups": 1, "group_topk": 1, "selection_bias": "none"}),
]


def with_rule(layer: LayerSpec, changes: Mapping[str, object]) -> LayerSpec:
    rule = dataclasses.replace(layer.router, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(layer, router=rule)


def tokens_of(layer: LayerSpec) -> Tensor:
    """[N, D] in float64."""
    return batches.tokens(Cell(layer, workload=WorkloadSpec(TOKENS)), (0, TOKENS)).double()


def chosen(layer: LayerSpec, logits_NE: Tensor) -> Tensor:
    """[N, K] sorted: by logits, or by scores with the bias among the eligible groups."""
    rule = layer.router
    if rule.groups == 1 and rule.selection_bias == "none":
        return oracle.valid_choice(logits_NE, layer.topk)
    ranked_NE = oracle.ranking(layer, logits_NE)
    fine_NE = oracle.eligible(layer, ranked_NE)
    return oracle.valid_choice(ranked_NE.masked_fill(~fine_NE, -torch.inf), layer.topk)


def oracle_output(
    layer: LayerSpec,
    x_ND: Tensor,
    table_NK: Tensor,
    gates_NK: Tensor,
    held: Sequence[oracle.Matrices],
) -> Tensor:
    """[N, D]: every expert on every token, times its gate if the token chose it; then the shared
    ones."""
    y_ND = torch.zeros(len(x_ND), layer.dim_out, dtype=torch.float64)
    for expert in range(layer.num_experts):
        gate_N1 = ((table_NK == expert) * gates_NK).sum(1, keepdim=True)
        y_ND = y_ND + gate_N1 * oracle.expert_output(layer, held[expert], x_ND)
    for shared in held[layer.num_experts :]:
        y_ND = y_ND + oracle.expert_output(layer, shared, x_ND)
    return y_ND


def oracle_layer(layer: LayerSpec, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, sorted choice, gates and outputs."""
    logits_NE = oracle.logits(layer, x_ND)
    table_NK = chosen(layer, logits_NE)
    gates_NK = oracle.gates(layer, logits_NE, table_NK)
    held = [matrices(layer, expert) for expert in range(layer.num_experts + layer.shared_experts)]
    return logits_NE, table_NK, gates_NK, oracle_output(layer, x_ND, table_NK, gates_NK, held)


def their_layer(made: Any, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same of a transformers module."""
    with torch.no_grad():
        logits_NE, gates_NK, table_NK = made.gate(x_ND)
        y_ND = made(x_ND.unsqueeze(0)).squeeze(0)
    table_NK, order_NK = table_NK.sort(dim=1)
    return logits_NE, table_NK, gates_NK.gather(1, order_NK), y_ND


def off(found: Tensor, want: Tensor) -> float:
    assert found.shape == want.shape
    return float((found - want).abs().max())


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_the_oracle_is_what_transformers_computes(name: str, changes: dict[str, object]) -> None:
    layer = with_rule(preset(name), changes)
    made, x_ND = filled(MODULES[name](layer), layer), tokens_of(layer)
    ours = oracle_layer(layer, x_ND)
    with InFloat64():
        theirs = their_layer(made, x_ND)
    assert all(found.dtype == torch.float64 for found in (theirs[0], theirs[2], theirs[3]))
    assert torch.equal(ours[1], theirs[1])
    assert ours[1].unique().numel() > layer.topk  # tokens do not all choose the same
    assert [off(a, b) < EXACT for a, b in zip(ours, theirs, strict=True)] == [True] * 4


@pytest.mark.parametrize("name", MODULES)
def test_as_published_they_differ_by_the_rounding_of_float32_only(name: str) -> None:
    """Without the float64 of the test above, whose exactness the first line shows to be its
    doing. 1e-5: logits of 32 terms, near 1, have an error of some 1e-7, times the scale of 2.5."""
    layer = preset(name)
    made, x_ND = filled(MODULES[name](layer), layer), tokens_of(layer)
    _, table_NK, gates_NK, y_ND = their_layer(made, x_ND)
    ours = oracle_layer(layer, x_ND)
    assert off(ours[2], gates_NK) > EXACT
    assert torch.equal(ours[1], table_NK)
    assert off(ours[2], gates_NK) < 1e-5
    assert off(ours[3], y_ND) < 1e-5


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("qwen3_30b_a3b", {"normalize": False}),
        ("olmoe_1b_7b", {"normalize": True}),
        ("mixtral_8x7b", {"score": "sigmoid"}),
        ("deepseek_v3", {"score": "softmax"}),
        ("deepseek_v3", {"scale": 1.0}),
        ("deepseek_v3", {"groups": 1, "group_topk": 1}),
        ("deepseek_v3", {"selection_bias": "none"}),
    ],
)
def test_a_rule_that_is_not_the_models_is_seen(name: str, fault: dict[str, object]) -> None:
    layer, x_ND = preset(name), tokens_of(preset(name))
    with InFloat64():
        theirs = their_layer(filled(MODULES[name](layer), layer), x_ND)
    assert off(oracle_layer(with_rule(layer, fault), x_ND)[3], theirs[3]) > 1e-3


def test_an_oracle_without_its_shared_expert_is_seen() -> None:
    layer = preset("deepseek_v3")
    x_ND = tokens_of(layer)
    with InFloat64():
        theirs = their_layer(filled(deepseek(layer), layer), x_ND)
    alone = dataclasses.replace(layer, shared_experts=0)
    assert off(oracle_layer(alone, x_ND)[3], theirs[3]) > 1e-3


def test_presets_have_the_rules_of_their_models() -> None:
    """Sizes and rules of the published configurations. transformers' defaults are those of
    Mixtral-8x7B, OLMoE-1B-7B and DeepSeek-V3; Qwen3-30B-A3B has its own norm_topk_prob=true."""
    own = {name: job_of(config(f"model={name}"), MACHINE).cell.layer for name in MODULES}
    mix, ol, deep = MixtralConfig(), OlmoeConfig(), DeepseekV3Config()
    layer = own["mixtral_8x7b"]
    assert (layer.num_experts, layer.topk) == (mix.num_local_experts, mix.num_experts_per_tok)
    layer = own["olmoe_1b_7b"]
    assert (layer.num_experts, layer.topk) == (ol.num_experts, ol.num_experts_per_tok)
    assert layer.router.normalize is ol.norm_topk_prob is False
    layer = own["qwen3_30b_a3b"]
    assert (layer.num_experts, layer.topk, layer.router.normalize) == (128, 8, True)
    layer, rule = own["deepseek_v3"], own["deepseek_v3"].router
    assert (layer.num_experts, layer.topk) == (deep.n_routed_experts, deep.num_experts_per_tok)
    assert (rule.groups, rule.group_topk) == (deep.n_group, deep.topk_group)
    assert (rule.scale, layer.shared_experts) == (deep.routed_scaling_factor, deep.n_shared_experts)
    assert rule.normalize is deep.norm_topk_prob is True
    assert {(each.activation, each.bias) for each in own.values()} == {("silu_gated", "none")}


def gradients(
    layer: LayerSpec,
    x_ND: Tensor,
    into_ND: Tensor,
    weight_ED: Tensor,
    held: list[dict[str, Tensor]],
) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Of <y, into>, through the oracle: by the tokens, the router's weight and every matrix.
    `oracle.router_weight` must give the leaf `weight_ED`."""
    logits_NE = oracle.logits(layer, x_ND)
    table_NK = chosen(layer, logits_NE.detach())
    gates_NK = oracle.gates(layer, logits_NE, table_NK)
    y_ND = oracle_output(layer, x_ND, table_NK, gates_NK, held)
    leaves = [matrix for of_expert in held for matrix in of_expert.values()]
    found = torch.autograd.grad((y_ND * into_ND).sum(), [x_ND, weight_ED, *leaves])
    rest = iter(found[2:])
    return found[0], found[1], [{name: next(rest) for name in of_expert} for of_expert in held]


@pytest.mark.parametrize("name", ["mixtral_8x7b", "olmoe_1b_7b"])
def test_gradients_are_what_transformers_computes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without gates that are renormalised."""
    layer = preset(name)
    made = filled(MODULES[name](layer), layer)
    into_ND = batches.cotangent(Cell(layer, workload=WorkloadSpec(TOKENS)), (0, TOKENS)).double()
    theirs_ND = tokens_of(layer).requires_grad_()
    with InFloat64():
        (made(theirs_ND.unsqueeze(0)).squeeze(0) * into_ND).sum().backward()
    weight_ED = weights.router(layer).double().requires_grad_()
    monkeypatch.setattr(oracle, "router_weight", lambda layer, device: weight_ED)
    held = [matrices(layer, expert) for expert in range(layer.num_experts)]
    held = [{n: matrix.requires_grad_() for n, matrix in each.items()} for each in held]
    x_ND = tokens_of(layer).requires_grad_()
    dx_ND, dw_ED, of_experts = gradients(layer, x_ND, into_ND, weight_ED, held)
    assert theirs_ND.grad is not None
    assert off(dx_ND, theirs_ND.grad) < EXACT
    assert off(dw_ED, made.gate.weight.grad) < EXACT
    for expert, found in enumerate(of_experts):
        both = made.experts.gate_up_proj.grad[expert]
        assert off(torch.cat([found["w1"], found["w3"]]), both) < EXACT
        assert off(found["w2"], made.experts.down_proj.grad[expert]) < EXACT
    assert min(float(each["w2"].norm()) for each in of_experts) > 1e-2  # every expert has tokens


# The balancing loss.

ROWS = 40


def loss_cell(topk: int, coefficient: float = 1.0, ranks: int = 1, scope: str = "global") -> Cell:
    rule = RouterSpec(aux_loss=coefficient, scope=scope)
    layer = LayerSpec(dim=8, num_experts=8, topk=topk, topk_requested=topk, router=rule)
    return Cell(layer, workload=WorkloadSpec(ROWS, mode="train"), placement=RankLayout(ranks))


def some_logits() -> Tensor:
    draw = torch.Generator().manual_seed(5)
    logits_NE = torch.randn(ROWS, 8, generator=draw, dtype=torch.float64)
    return logits_NE + torch.linspace(0, 1, 8, dtype=torch.float64)  # some experts are favoured


@pytest.mark.parametrize("topk", [1, 2, 4])
def test_the_balancing_loss_is_that_of_transformers(topk: int) -> None:
    """Value and gradient; the layer's own too, in float32."""
    cell = loss_cell(topk)
    theirs_NE = some_logits().requires_grad_()
    with InFloat64():
        want = load_balancing_loss_func((theirs_NE,), 8, topk)
    assert isinstance(want, Tensor)
    want.backward()
    logits_NE = some_logits().requires_grad_()
    table_NK = oracle.valid_choice(logits_NE.detach(), topk)
    found = oracle.balancing_loss(cell, logits_NE, table_NK, (0, ROWS))
    found.backward()
    assert theirs_NE.grad is not None and logits_NE.grad is not None
    assert float(found.detach()) == pytest.approx(float(want.detach()), rel=1e-12)
    assert off(logits_NE.grad, theirs_NE.grad) < 1e-12
    assert float(found.detach()) > 1.05 * topk  # not even, where it is K

    own_NE = some_logits().float().requires_grad_()
    scope = capacity.Scope((0, ROWS), ((0, ROWS),))
    shares_NE = balance_loss.shares(cell.layer, scope, table_NK)
    own = balance_loss.loss(
        cell.layer, scope, shares_NE, balance_loss.normalized(own_NE, "softmax")
    )
    own.backward()
    assert own_NE.grad is not None
    assert float(own.detach()) == pytest.approx(float(want.detach()), rel=1e-6)
    assert off(own_NE.grad.double(), theirs_NE.grad) < 1e-7


@pytest.mark.parametrize("topk", [1, 2, 4])
def test_an_even_load_has_a_loss_of_k_by_hand(topk: int) -> None:
    """Every expert is chosen by K / E of the tokens and equally probable: E * E * K/E * 1/E."""
    cell = loss_cell(topk, coefficient=0.5)
    table_NK = (torch.arange(ROWS * topk) % 8).view(ROWS, topk)
    even_NE = torch.zeros(ROWS, 8, dtype=torch.float64)
    found = oracle.balancing_loss(cell, even_NE, table_NK, (0, ROWS))
    assert float(found) == pytest.approx(0.5 * topk, rel=1e-12)


@pytest.mark.parametrize("scope", ["rank", "global"])
def test_parts_of_the_loss_add_up_to_the_mean_over_extents(scope: str) -> None:
    """Shards of 14, 13 and 13 tokens count by their tokens; so do parts of a shard."""
    cell = loss_cell(2, ranks=3, scope=scope)
    logits_NE = some_logits()
    table_NK = oracle.valid_choice(logits_NE, 2)
    parts = [(0, 5), (5, 20), (20, 20), (20, 40)]
    found = sum(float(oracle.balancing_loss(cell, logits_NE[a:b], table_NK, (a, b)))
                for a, b in parts)  # fmt: skip
    want = 0.0
    for a, b in [(0, 14), (14, 27), (27, 40)] if scope == "rank" else [(0, 40)]:
        with InFloat64():
            of_extent = load_balancing_loss_func((logits_NE[a:b],), 8, 2)
        want += (b - a) / ROWS * float(of_extent)
    assert found == pytest.approx(want, rel=1e-12)


# Experts that choose (Zhou et al., arXiv 2202.09368, section 3.2): S = softmax over experts, every
# expert takes its k = tokens * capacity / E best tokens, and the gates are those values of S.

CHOOSING = [[0.5, 0.4, 0.1], [0.3, 0.1, 0.6], [0.4, 0.35, 0.25]]  # S; token 2 is nobody's best


@pytest.mark.parametrize(
    ("normalize", "gates"),
    [
        (False, [[0.5, 0.4, 0.0], [0.0, 0.0, 0.6], [0.0, 0.0, 0.0]]),  # as in the paper
        (True, [[5 / 9, 4 / 9, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]),
    ],
)
def test_experts_choose_by_hand(normalize: bool, gates: list[list[float]]) -> None:
    rule = RouterSpec(kind="expert_choice", normalize=normalize)  # 1 * 1 * 3 / 3 = 1 token each
    layer = LayerSpec(num_experts=3, topk=1, topk_requested=1, router=rule)
    cell = Cell(layer, workload=WorkloadSpec(3), placement=RankLayout(1))
    logits_NE = torch.tensor(CHOOSING, dtype=torch.float64).log()
    table_NE = torch.arange(3).expand(3, 3)
    kept_NE = oracle.kept(cell, table_NE, oracle.probabilities(layer, logits_NE))
    assert kept_NE.int().tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    found = oracle.gates(layer, logits_NE, table_NE, kept_NE)
    assert off(found, torch.tensor(gates, dtype=torch.float64)) < 1e-12


# Who is eligible, and what a bias is for (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).


def test_groups_are_ranked_by_their_two_best_by_hand() -> None:
    rule = RouterSpec(score="sigmoid", groups=2, group_topk=1)
    layer = LayerSpec(num_experts=6, topk=2, router=rule)
    ranked_NE = torch.tensor(
        [
            [0.5, 0.4, 0.0, 0.45, 0.4, 0.4],  # 0.9 before 0.85, although the sums are 0.9 and 1.25
            [0.9, 0.1, 0.1, 0.6, 0.5, 0.0],  # 1.0 before 1.1, although 0.9 is the best of all
            [0.2, 0.3, 0.1, 0.3, 0.2, 0.0],  # of equal groups the first
        ],
        dtype=torch.float64,
    )
    fine_NE = oracle.eligible(layer, ranked_NE).int().tolist()
    assert fine_NE == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0]]
    assert balance_loss.eligible(ranked_NE, rule).int().tolist() == fine_NE


def test_a_bias_chooses_but_is_in_no_gate_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    bias_E = torch.tensor([0.0, -0.5, 0.4])
    monkeypatch.setattr(balance_loss, "selection_bias", lambda layer: bias_E)
    rule = RouterSpec(score="sigmoid", selection_bias="balanced")
    layer = LayerSpec(num_experts=3, topk=2, router=rule)
    logits_NE = torch.tensor([[0.0, math.log(3), -math.log(3)]], dtype=torch.float64)
    # scores 1/2, 3/4, 1/4; with the bias 0.5, 0.25, 0.65
    ranked_NE = torch.tensor([[0.5, 0.25, 0.65]], dtype=torch.float64)
    assert off(oracle.ranking(layer, logits_NE), ranked_NE) < 1e-7  # 0.4 is a float32
    table_NK = chosen(layer, logits_NE)
    assert table_NK.tolist() == [[0, 2]]
    gates_NK = oracle.gates(layer, logits_NE, table_NK)
    assert off(gates_NK, torch.tensor([[2 / 3, 1 / 3]], dtype=torch.float64)) < 1e-12


@pytest.mark.parametrize(
    ("rule", "gates"),
    [
        ({}, [[0.5, 0.5]]),  # of the prescribed experts
        ({"normalize": False}, [[1 / 8, 1 / 8]]),  # of all experts
        ({"order": "after", "normalize": False}, [[0.5, 0.5]]),
        ({"normalize": False, "scale": 4.0}, [[0.5, 0.5]]),
    ],
)
def test_gates_of_a_prescribed_choice_by_hand(
    rule: dict[str, object], gates: list[list[float]]
) -> None:
    layer = with_rule(LayerSpec(num_experts=4, topk=2), rule)
    eighths_NE = torch.tensor([[1.0, 2.0, 4.0, 1.0]], dtype=torch.float64).log()
    found = oracle.gates(layer, eighths_NE, torch.tensor([[0, 3]]))
    assert off(found, torch.tensor(gates, dtype=torch.float64)) < 1e-12


@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), max_size=4), st.integers(1, 5))
def test_the_oracle_chooses_the_best_and_of_equals_the_first(
    rows: list[list[int]], topk: int
) -> None:
    scores_NE = torch.tensor(rows, dtype=torch.float64).view(-1, 5)
    want = [sorted(sorted(range(5), key=lambda e: (-row[e], e))[:topk]) for row in rows]
    assert oracle.valid_choice(scores_NE, topk).tolist() == want
