"""The router's rules by hand, and the balancing loss by its formula and by differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from moe import weights
from moe.layer import balance_loss
from moe.layer import router as router_module
from moe.layer.capacity import Scope
from moe.layer.router import Router, Routing, _ordered_keys, top_indices
from moe.parallel.comm import Comm, RankGroup
from moe.spec import (
    Cell,
    LayerSpec,
    RankLayout,
    RouterSpec,
    StrategySpec,
    WorkloadSpec,
    shard_bounds,
)
from moe.strategies.serial.layer import Serial
from moe.verify import oracle
from moe.workload import batches

CPU = torch.device("cpu")


def router(
    experts: int,
    topk: int,
    scope: Scope | None = None,
    allowed: Tensor | None = None,
    **rule: object,
) -> Router:
    """Of which the logits are the tokens themselves."""
    layer = LayerSpec(dim=experts, num_experts=experts, topk=topk, router=RouterSpec(**rule))  # type: ignore[arg-type]
    made = Router(layer, CPU, allowed, scope)
    made.weight_ED = nn.Parameter(torch.eye(experts))
    return made


def route(logits: Sequence[Sequence[float]], topk: int, **rule: object) -> Routing:
    """Twice: with gradients, and in the shorter way without; both must agree."""
    table = torch.tensor(logits)
    made = router(table.shape[1], topk, **rule)
    tracked = made(table)
    with torch.no_grad():
        short = made(table)
    assert torch.equal(short.indices_TK, tracked.indices_TK)
    torch.testing.assert_close(short.gates_TK, tracked.gates_TK.detach())
    return short


def close(found: Tensor, want: Sequence[Sequence[float]]) -> None:
    torch.testing.assert_close(found, torch.tensor(want), atol=1e-6, rtol=1e-6)


LN2 = math.log(2)
EIGHTHS = [[0.0, LN2, 2 * LN2, 0.0]]  # softmax: 1, 2, 4 and 1 eighths


@pytest.mark.parametrize(
    ("rule", "gates"),
    [
        ({}, [[2 / 3, 1 / 3]]),
        ({"normalize": False}, [[4 / 8, 2 / 8]]),
        ({"order": "after"}, [[2 / 3, 1 / 3]]),
        ({"order": "after", "normalize": False}, [[2 / 3, 1 / 3]]),
        ({"scale": 3.0}, [[2.0, 1.0]]),
        ({"normalize": False, "scale": 4.0}, [[2.0, 1.0]]),
    ],
)
def test_softmax_gates_by_hand(rule: dict[str, object], gates: list[list[float]]) -> None:
    routing = route(EIGHTHS, 2, **rule)
    assert routing.indices_TK.tolist() == [[2, 1]]
    close(routing.gates_TK, gates)


@pytest.mark.parametrize(
    ("rule", "gates"),
    [
        ({}, [[0.6, 0.4]]),
        ({"normalize": False}, [[0.75, 0.5]]),
        ({"scale": 2.5}, [[1.5, 1.0]]),
    ],
)
def test_sigmoid_gates_by_hand(rule: dict[str, object], gates: list[list[float]]) -> None:
    logits = [[0.0, math.log(3), -math.log(3)]]  # sigmoid: 1/2, 3/4, 1/4
    routing = route(logits, 2, score="sigmoid", **rule)
    assert routing.indices_TK.tolist() == [[1, 0]]
    close(routing.gates_TK, gates)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_only_the_best_group_is_eligible_by_hand() -> None:
    # two groups of two. Group 0: 0.88 + 0.01, group 1: 0.82 + 0.80 in all, although 0 is the best
    logits = [[2.0, -5.0, 1.5, 1.4], [2.0, 2.0, 1.5, 1.4]]
    rule = {"score": "sigmoid", "groups": 2, "group_topk": 1}
    routing = route(logits, 2, **rule)
    assert routing.indices_TK.tolist() == [[2, 3], [0, 1]]
    share = sigmoid(1.5) / (sigmoid(1.5) + sigmoid(1.4))
    close(routing.gates_TK, [[share, 1 - share], [0.5, 0.5]])
    assert route(logits, 2, score="sigmoid").indices_TK.tolist() == [[0, 2], [0, 1]]
    both = route(logits, 2, score="sigmoid", groups=2, group_topk=2)
    assert both.indices_TK.tolist() == [[0, 2], [0, 1]]


def test_of_equal_groups_the_first_is_eligible() -> None:
    routing = route([[1.0, 2.0, 2.0, 1.0]], 2, score="sigmoid", groups=2, group_topk=1)
    assert routing.indices_TK.tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("rule", "gates"),
    [
        ({}, [[2 / 3, 1 / 3]]),  # of these experts alone: 2 and 1 of 3
        ({"scale": 2.5}, [[5 / 3, 5 / 6]]),
        ({"normalize": False}, [[2 / 8, 1 / 8]]),  # shares of all experts, as where logits choose
        ({"normalize": False, "scale": 4.0}, [[1.0, 0.5]]),
        ({"order": "after"}, [[2 / 3, 1 / 3]]),
        ({"order": "after", "normalize": False}, [[2 / 3, 1 / 3]]),
        ({"score": "sigmoid"}, [[4 / 7, 3 / 7]]),  # 2/3 and 1/2
        ({"score": "sigmoid", "normalize": False}, [[2 / 3, 1 / 2]]),
    ],
)
def test_a_prescribed_choice_and_its_gates_by_hand(
    rule: dict[str, Any], gates: list[list[float]]
) -> None:
    allowed = torch.tensor([[False, True, False, True]])  # not expert 2, which is the best
    made = router(4, 2, allowed=allowed, **rule)
    tracked = made(torch.tensor(EIGHTHS))
    assert tracked.indices_TK.tolist() == [[1, 3]]
    close(tracked.gates_TK.detach(), gates)
    with torch.no_grad():
        close(made(torch.tensor(EIGHTHS)).gates_TK, gates)
    exact_NE = torch.tensor(EIGHTHS, dtype=torch.float64)
    told_NK = oracle.gates(made.layer, exact_NE, tracked.indices_TK)
    torch.testing.assert_close(told_NK, torch.tensor(gates, dtype=torch.float64))


# Ties.


def best(row: Sequence[float], topk: int) -> list[int]:
    return sorted(range(len(row)), key=lambda e: (-row[e], e))[:topk]


TIED = st.sampled_from([-0.0, 0.0, 1.0, -1.0, 2.5, -math.inf])


@given(st.data(), st.integers(2, 9))
@settings(max_examples=100)
def test_ties_go_to_the_lowest_id(data: st.DataObject, experts: int) -> None:
    """Few tokens are sorted whole; the same rows many times over take the way of large batches."""
    topk = data.draw(st.integers(1, experts - 1))
    row = st.lists(TIED, min_size=experts, max_size=experts)
    rows = data.draw(st.lists(row, min_size=1, max_size=4))
    want = [best(one, topk) for one in rows]
    few = torch.tensor(rows)
    assert top_indices(few, topk).tolist() == want
    times = router_module._SORT_LIMIT // few.numel() + 1
    many = few.repeat(times, 1)
    assert top_indices(many, topk).tolist() == want * times
    assert _ordered_keys(few).topk(topk, dim=1)[1].tolist() == want  # the way of a GPU


def test_zero_and_minus_zero_are_equal_by_hand() -> None:
    assert route([[-0.0, 0.0, 0.0, -0.0]], 3).indices_TK.tolist() == [[0, 1, 2]]
    assert route([[0.0, -0.0, -1.0, 0.0]], 2).indices_TK.tolist() == [[0, 1]]


def test_of_equal_scores_the_lowest_id_is_chosen() -> None:
    routing = route([[1.0, 2.0, 2.0, 1.0]], 3, score="sigmoid")
    assert routing.indices_TK.tolist() == [[1, 2, 0]]


def test_a_mutant_with_ties_to_the_highest_id_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def highest(scores_TE: Tensor, topk: int) -> Tensor:
        return scores_TE.shape[1] - 1 - top_indices(scores_TE.flip(1), topk)

    monkeypatch.setattr(router_module, "top_indices", highest)
    with pytest.raises(AssertionError):
        test_of_equal_scores_the_lowest_id_is_chosen()


# The bias on the choice.

UNEVEN = {"dim": 4, "num_experts": 16, "topk": 2}  # few dimensions: some rows are much longer


@pytest.mark.parametrize("groups", [1, 8])
def test_the_bias_does_not_learn_the_noise_of_many_experts(groups: int) -> None:
    """DeepSeek-V3's shape at scale 16: the bias evens out the load of other tokens too."""
    loads = {}
    for bias in ("none", "balanced"):
        rule = RouterSpec(
            score="sigmoid", groups=groups, group_topk=max(1, groups // 2), selection_bias=bias
        )
        layer = LayerSpec(dim=448, num_experts=256, topk=8, topk_requested=8, router=rule)
        x_TD = batches.tokens(Cell(layer, workload=WorkloadSpec(seed=7)), (0, 16384))
        with torch.no_grad():
            chosen = Router(layer, torch.device("cpu"), None)(x_TD).indices_TK
        counts = torch.bincount(chosen.flatten(), minlength=256).double()
        loads[bias] = float(counts.max() / counts.mean())
    assert loads["balanced"] < loads["none"]


def busiest(rule: RouterSpec) -> float:
    """Slots of the busiest expert over the mean, on tokens the bias was not found on."""
    layer = LayerSpec(**UNEVEN, router=rule)
    x_TD = batches.tokens(Cell(layer, workload=WorkloadSpec(seed=7)), (0, 4096))
    routing = Router(layer, CPU, None)(x_TD)
    counts = torch.bincount(routing.indices_TK.flatten(), minlength=16).double()
    return float(counts.max() / counts.mean())


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_the_bias_evens_out_the_load(score: str) -> None:
    skewed = busiest(RouterSpec(score=score))
    balanced = busiest(RouterSpec(score=score, selection_bias="balanced"))
    assert skewed > 1.6
    assert balanced < 1.3


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_the_bias_chooses_but_does_not_enter_the_gates(score: str) -> None:
    made = router(4, 2, score=score, selection_bias="balanced")
    made.bias_E = torch.tensor([0.0, 0.0, 5.0, 4.0])
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    routing = made(logits)
    assert routing.indices_TK.tolist() == [[2, 3]]
    raw = logits.sigmoid() if score == "sigmoid" else logits.exp()
    close(routing.gates_TK.detach(), (raw[:, 2:] / raw[:, 2:].sum()).tolist())


def test_the_bias_is_the_same_for_every_rank_and_depends_on_the_weights() -> None:
    layer = LayerSpec(**UNEVEN, router=RouterSpec(selection_bias="balanced"))
    balance_loss.selection_bias.cache_clear()
    first = balance_loss.selection_bias(layer).clone()
    balance_loss.selection_bias.cache_clear()
    assert torch.equal(balance_loss.selection_bias(layer), first)
    other = LayerSpec(**UNEVEN, weight_seed=1, router=RouterSpec(selection_bias="balanced"))
    assert not torch.equal(balance_loss.selection_bias(other), first)
    assert weights.router(layer).shape == (16, 4)


# The balancing loss.

LN3 = math.log(3)
FOUR = [[LN3, 0.0], [LN3, 0.0], [LN3, 0.0], [0.0, LN3]]  # probabilities 3/4 and 1/4, top-1 of 2
COEFFICIENT = 0.1


def by_hand(logits: Sequence[Sequence[float]], shares: Sequence[Sequence[float]]) -> float:
    """coefficient / B * sum over tokens of shares . softmax(logits), in float64."""
    total = 0.0
    for row, share in zip(logits, shares, strict=True):
        powers = [math.exp(x) for x in row]
        total += sum(f * p for f, p in zip(share, powers, strict=True)) / sum(powers)
    return COEFFICIENT * total / len(logits)


def loss_and_gradient(
    logits: Sequence[Sequence[float]], scope: Scope, rows: slice = slice(None), topk: int = 1
) -> tuple[float, Tensor]:
    """The loss of the tokens `rows`, and what a step adds to the gradient of their logits when
    the gates themselves get none."""
    table = torch.tensor(logits)[rows].requires_grad_()
    made = router(table.shape[1], topk, scope, aux_loss=COEFFICIENT)
    routing = made(table)
    (routing.gates_TK * 0).sum().backward()
    shares_TE = balance_loss.shares(made.layer, scope, routing.indices_TK)
    value = balance_loss.loss(made.layer, scope, shares_TE, table.detach().softmax(1))
    assert table.grad is not None
    return float(value), table.grad


def test_balancing_loss_of_four_tokens_by_hand() -> None:
    whole = Scope((0, 4), ((0, 4),))
    value, gradient = loss_and_gradient(FOUR, whole)
    # f = (3/4, 1/4), P = (5/8, 3/8): E * (f . P) = 2 * (15/32 + 3/32) = 9/8
    assert value == pytest.approx(COEFFICIENT * 9 / 8)
    shares = [[1.5, 0.5]] * 4
    assert by_hand(FOUR, shares) == pytest.approx(value)
    # of a token: coefficient / B * p_e * (2 f_e - sum_i 2 f_i p_i); 1.5*3/4 + 0.5/4 = 1.25
    first = COEFFICIENT / 4 * 0.75 * (1.5 - 1.25)
    close(gradient[:1], [[first, -first]])
    step = 1e-5
    for token in range(4):
        for expert in range(2):
            ends = []
            for sign in (1, -1):
                moved = [list(row) for row in FOUR]
                moved[token][expert] += sign * step
                ends.append(by_hand(moved, shares))
            slope = (ends[0] - ends[1]) / (2 * step)
            assert float(gradient[token, expert]) == pytest.approx(slope, abs=1e-8)


def test_the_loss_is_least_where_the_load_is_even() -> None:
    even = [FOUR[0], FOUR[3], FOUR[0], FOUR[3]]
    whole = Scope((0, 4), ((0, 4),))
    assert loss_and_gradient(even, whole)[0] == pytest.approx(COEFFICIENT)
    assert loss_and_gradient([FOUR[0]] * 4, whole)[0] == pytest.approx(COEFFICIENT * 1.5)


def test_balancing_loss_of_two_choices_by_hand() -> None:
    """A token has K = 2 slots, so f sums to 2: an even load has a loss of 2, not of 1."""
    eighths = [[math.log(4), math.log(2), 0.0, 0.0], [math.log(4), 0.0, math.log(2), 0.0]]
    whole = Scope((0, 2), ((0, 2),))
    value, gradient = loss_and_gradient(eighths, whole, topk=2)
    # f = (1, 1/2, 1/2, 0), P = (8, 3, 3, 2) / 16: E * (f . P) = 4 * 11/16 = 11/4
    assert value == pytest.approx(COEFFICIENT * 11 / 4)
    # of a token: coefficient / B * p_e * (4 f_e - sum_i 4 f_i p_i), which sum is
    # 4 * 4/8 + 2 * 2/8 + 2 * 1/8 = 11/4
    first = [0.5 * (4 - 2.75), 0.25 * (2 - 2.75), 0.125 * (2 - 2.75), 0.125 * (0 - 2.75)]
    close(gradient[:1], [[COEFFICIENT / 2 * each for each in first]])
    ones, twos = [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]
    even = loss_and_gradient([ones, twos], whole, topk=2)[0]
    assert even == pytest.approx(COEFFICIENT * 2)  # f and P are 1/2 and 1/4 everywhere


def test_scope_rank_and_global_differ_where_shards_do() -> None:
    uneven = [FOUR[0], FOUR[0], FOUR[3], FOUR[3]]  # one expert for each shard
    shards = ((0, 2), (2, 4))
    by_rank = loss_and_gradient(uneven, Scope((0, 4), shards))[0]
    together = loss_and_gradient(uneven, Scope((0, 4), ((0, 4),)))[0]
    assert by_rank == pytest.approx(COEFFICIENT * 1.5)  # every token on the expert with f = 1
    assert together == pytest.approx(COEFFICIENT)  # f = (1/2, 1/2)
    alike = [FOUR[0], FOUR[3], FOUR[0], FOUR[3]]
    assert loss_and_gradient(alike, Scope((0, 4), shards))[0] == pytest.approx(COEFFICIENT)


@pytest.mark.parametrize("copies", [1, 3])
def test_parts_of_the_ranks_add_up_to_the_loss_of_the_batch(copies: int) -> None:
    chosen = torch.tensor([[0], [0], [0], [1]])
    shards = [shard_bounds(4, 3, rank) for rank in range(3)]
    whole, gradient = loss_and_gradient(FOUR, Scope((0, 4), ((0, 4),)))
    parts = [
        loss_and_gradient(
            FOUR, Scope((a, b), ((0, 4),), gather=lambda part: chosen, copies=copies), slice(a, b)
        )
        for a, b in shards
    ]
    assert copies * sum(value for value, _ in parts) == pytest.approx(whole)
    torch.testing.assert_close(torch.cat([part for _, part in parts]) * copies, gradient)


def test_serial_has_the_whole_loss_on_its_one_rank() -> None:
    """Nothing adds up its gradients, so no part of them may be left out."""
    comm = Comm.__new__(Comm)
    comm.device, comm.world_size, comm.rank, comm.backend = CPU, 2, 0, "none"
    comm.world = RankGroup(comm, "world", (0, 1))
    cell = Cell(
        LayerSpec(router=RouterSpec(aux_loss=COEFFICIENT)), StrategySpec("serial"),
        WorkloadSpec(mode="train"),
        RankLayout(world_size=2),
    )  # fmt: skip
    found = Serial(cell, comm).router.scope
    assert found is not None and found.copies == 1


def test_without_gradients_there_is_no_loss() -> None:
    made = router(2, 1, Scope((0, 4), ((0, 4),)), aux_loss=COEFFICIENT)
    with torch.no_grad():
        assert not made(torch.tensor(FOUR)).gates_TK.requires_grad


def test_a_mutant_that_counts_the_loss_on_every_rank_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right: Callable[..., Tensor] = balance_loss.loss

    def wrong(
        layer: LayerSpec, scope: Scope, shares_TE: Tensor, probabilities_TE: Tensor
    ) -> Tensor:
        return right(layer, scope, shares_TE, probabilities_TE) * scope.copies

    monkeypatch.setattr(balance_loss, "loss", wrong)
    with pytest.raises(AssertionError):
        test_parts_of_the_ranks_add_up_to_the_loss_of_the_batch(3)
