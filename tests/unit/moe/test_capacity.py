"""What is dropped and what is taken, against the rule spelt out slot by slot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe.layer import capacity
from moe.layer import router as router_module
from moe.layer.capacity import Scope, extents, keep_first, places_per_expert, take_best
from moe.layer.router import Router
from moe.spec import Cell, LayerSpec, RankLayout, RouterSpec, WorkloadSpec, shard_bounds
from moe.verify import definitions, oracle

CPU = torch.device("cpu")


def layer_of(experts: int, topk: int, **rule: object) -> LayerSpec:
    return LayerSpec(dim=6, num_experts=experts, topk=topk, router=RouterSpec(**rule))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("factor", "topk", "tokens", "experts", "places"),
    [
        (1.0, 1, 8, 4, 2),  # an even share
        (1.0, 2, 8, 4, 4),
        (1.25, 2, 8, 4, 5),
        (1.0, 2, 9, 4, 5),  # 4.5 is rounded up
        (0.5, 1, 8, 8, 1),  # 0.5 as well
        (0.0, 2, 8, 4, 4),  # where experts choose, no factor is a factor of 1
        (3.0, 4, 8, 4, 8),  # no expert is given a token twice
        (1.0, 2, 0, 4, 0),
        (1.1, 2, 50, 11, 10),  # exactly 10, which floats make a little more
        (0.3, 1, 10, 3, 1),  # exactly 1
    ],
)
def test_places_of_an_expert_by_hand(
    factor: float, topk: int, tokens: int, experts: int, places: int
) -> None:
    """ceil(factor * K * T / E): GShard, arXiv 2006.16668, section 2.2, and expert choice, arXiv
    2202.09368, section 3.2."""
    layer = layer_of(experts, topk, capacity_factor=factor)
    assert places_per_expert(layer, tokens) == places
    assert definitions.places_per_expert(layer, tokens) == places


@given(st.integers(0, 800), st.integers(1, 16), st.integers(1, 512), st.integers(1, 64))
@settings(max_examples=500)
def test_places_are_told_twice_alike(hundredths: int, topk: int, tokens: int, experts: int) -> None:
    rule = RouterSpec(capacity_factor=hundredths / 100)
    layer = LayerSpec(num_experts=experts, topk=topk, router=rule)
    exact = Fraction(hundredths or 100, 100) * topk * tokens / experts
    want = min(tokens, math.ceil(exact))
    assert definitions.places_per_expert(layer, tokens) == want
    assert places_per_expert(layer, tokens) == want


def test_the_first_slots_stay_by_hand() -> None:
    indices_TK = torch.tensor([[0, 1], [0, 2], [0, 1], [1, 0]])
    assert keep_first(indices_TK, None, 3, 2).tolist() == [
        [True, True], [True, True], [False, True], [False, False]
    ]  # fmt: skip


def test_the_heaviest_slots_stay_and_of_equals_the_first_by_hand() -> None:
    indices_TK = torch.tensor([[0, 1], [0, 2], [0, 1], [1, 0]])
    weight_TK = torch.tensor([[0.5, 0.1], [0.9, 0.2], [0.5, 0.8], [0.8, 0.5]])
    # expert 0: 0.9 of token 1, then 0.5 of token 0 before those of 2 and 3; expert 1: both 0.8
    assert keep_first(indices_TK, weight_TK, 3, 2, "probability").tolist() == [
        [True, False], [True, True], [False, True], [True, False]
    ]  # fmt: skip


def test_experts_take_their_best_tokens_and_of_equals_the_first_by_hand() -> None:
    scores_TE = torch.tensor([[0.5, 0.1], [0.9, 0.3], [0.5, 0.3]])
    assert take_best(scores_TE, 2).tolist() == [[True, False], [True, True], [False, True]]
    assert not take_best(scores_TE, 0).any()


@st.composite
def choices(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """[T, K] distinct experts of every token, weights with many ties, and E."""
    experts, tokens = draw(st.integers(1, 6)), draw(st.integers(0, 12))
    topk = draw(st.integers(1, experts))
    rows = [draw(st.permutations(range(experts)))[:topk] for _ in range(tokens)]
    size = tokens * topk
    weight = draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=size, max_size=size))
    indices_TK = torch.tensor(rows, dtype=torch.int64).view(tokens, topk)
    return indices_TK, torch.tensor(weight).view(tokens, topk), experts


def counted(indices: Sequence[Sequence[int]], order: Sequence[tuple[int, int]], places: int) -> set[
    tuple[int, int]
]:  # fmt: skip
    """Slots that stay when they come one by one and a full expert turns them away."""
    taken: dict[int, int] = {}
    kept = set()
    for token, slot in order:
        expert = indices[token][slot]
        if taken.get(expert, 0) < places:
            taken[expert] = taken.get(expert, 0) + 1
            kept.add((token, slot))
    return kept


def marked(kept_TK: Tensor) -> set[tuple[int, int]]:
    return {(t, k) for t, k in kept_TK.nonzero().tolist()}


@given(choices(), st.integers(0, 4))
@settings(max_examples=150)
def test_what_is_dropped_is_what_the_rule_says(
    found: tuple[Tensor, Tensor, int], places: int
) -> None:
    indices_TK, weight_TK, experts = found
    slots = [(t, k) for t in range(indices_TK.shape[0]) for k in range(indices_TK.shape[1])]
    kept_TK = keep_first(indices_TK, None, experts, places)
    assert marked(kept_TK) == counted(indices_TK.tolist(), slots, places)
    falling = sorted(slots, key=lambda at: -float(weight_TK[at]))
    kept_TK = keep_first(indices_TK, weight_TK, experts, places, "probability")
    assert marked(kept_TK) == counted(indices_TK.tolist(), falling, places)
    choices_first = sorted(slots, key=lambda at: at[::-1])
    kept_TK = keep_first(indices_TK, None, experts, places, "first_choices")
    assert marked(kept_TK) == counted(indices_TK.tolist(), choices_first, places)


@given(choices(), st.integers(0, 4))
@settings(max_examples=100)
def test_each_expert_takes_its_best(found: tuple[Tensor, Tensor, int], places: int) -> None:
    _, scores_TE, _ = found
    taken_TE = take_best(scores_TE, places)
    for expert in range(scores_TE.shape[1]):
        column = scores_TE[:, expert].tolist()
        best = sorted(range(len(column)), key=lambda t: -column[t])[:places]
        assert taken_TE[:, expert].nonzero().flatten().tolist() == sorted(best)


# Three orders of being served. Everyone has one place; rows are tokens, first choices first.

TABLE = torch.tensor([[0, 1], [1, 0], [1, 2]])
GATES = torch.tensor([[0.6, 0.4], [0.55, 0.45], [0.7, 0.3]], dtype=torch.float64)
ORDERS = {
    # token 0 takes 0 and 1, which leaves token 1 nothing and token 2 its second choice
    # (Megatron-LM's moe_token_drop_policy=position)
    "position": [[True, True], [False, False], [False, True]],
    # first choices: token 0 takes 0, token 1 takes 1 before token 2; then token 2 takes 2
    # (GShard, arXiv 2006.16668, algorithm 1: all of g1 are given places before any of g2)
    "first_choices": [[True, False], [True, False], [False, True]],
    # expert 0 has 0.6 and 0.45, expert 1 has 0.7 of token 2 before 0.55 and 0.4, expert 2 has 0.3
    # (Megatron-LM's moe_token_drop_policy=probs)
    "probability": [[True, False], [False, False], [True, True]],
}


@pytest.mark.parametrize("drop", ORDERS)
def test_who_is_served_first_by_hand(drop: str) -> None:
    rule = RouterSpec(capacity_factor=0.5, drop=drop)  # ceil(0.5 * 2 * 3 / 3) = 1 place
    layer = LayerSpec(num_experts=3, topk=2, router=rule)
    cell = Cell(layer, workload=WorkloadSpec(3), placement=RankLayout(1))
    assert oracle.kept(cell, TABLE, GATES).tolist() == ORDERS[drop]
    assert keep_first(TABLE, GATES, 3, 1, drop).tolist() == ORDERS[drop]
    assert sum(want == ORDERS[drop] for want in ORDERS.values()) == 1


@st.composite
def tables(draw: st.DrawFn) -> tuple[Cell, Tensor, Tensor]:
    """A cell with capacity, a choice for its batch, and gates of which many are equal."""
    experts, batch = draw(st.integers(2, 6)), draw(st.integers(1, 12))
    topk, ranks = draw(st.integers(1, experts)), draw(st.integers(1, 4))
    rule = RouterSpec(
        capacity_factor=draw(st.sampled_from([0.25, 0.5, 1.0, 1.1])),
        drop=draw(st.sampled_from(list(ORDERS))),
        scope=draw(st.sampled_from(["rank", "global"])),
    )
    layer = LayerSpec(num_experts=experts, topk=topk, router=rule)
    rows = [draw(st.permutations(range(experts)))[:topk] for _ in range(batch)]
    number = st.sampled_from([0.25, 0.5, 1.0])
    gates = draw(st.lists(number, min_size=batch * topk, max_size=batch * topk))
    cell = Cell(layer, workload=WorkloadSpec(batch), placement=RankLayout(ranks))
    return cell, torch.tensor(rows), torch.tensor(gates).view(batch, topk)


@given(tables())
@settings(max_examples=200)
def test_the_layer_drops_what_the_oracle_drops(found: tuple[Cell, Tensor, Tensor]) -> None:
    cell, table_BK, gates_BK = found
    layer = cell.layer

    def rule(table: Tensor, gates: Tensor) -> Tensor:
        places = places_per_expert(layer, len(table))
        return keep_first(table, gates, layer.num_experts, places, layer.router.drop)

    scope = Scope((0, len(table_BK)), tuple(extents(cell)))
    own = scope.each(rule, table_BK, gates_BK)
    assert torch.equal(own, oracle.kept(cell, table_BK, gates_BK.double()))


# Which tokens are looked at together.


def test_extents_are_shards_or_the_whole_batch() -> None:
    work, place = WorkloadSpec(batch_size=5), RankLayout(world_size=3)
    assert extents(Cell(LayerSpec(), workload=work, placement=place)) == [(0, 2), (2, 4), (4, 5)]
    whole = LayerSpec(router=RouterSpec(scope="global"))
    assert extents(Cell(whole, workload=work, placement=place)) == [(0, 5)]
    few = WorkloadSpec(batch_size=2)
    assert extents(Cell(LayerSpec(), workload=few, placement=place)) == [(0, 1), (1, 2)]


def first_of(places: int) -> capacity.Callable[[Tensor], Tensor]:
    return lambda indices: keep_first(indices, None, 3, places)


@given(
    flat=st.lists(st.integers(0, 2), min_size=0, max_size=14),
    ranks=st.integers(1, 4),
    places=st.integers(0, 3),
)
@settings(max_examples=100)
def test_the_rule_is_the_same_whoever_routes(flat: list[int], ranks: int, places: int) -> None:
    table = torch.tensor(flat, dtype=torch.int64).view(-1, 1)
    bounds = [shard_bounds(len(flat), ranks, rank) for rank in range(ranks)]
    shards = tuple((a, b) for a, b in bounds if a < b)
    rule = first_of(places)
    by_shard = torch.cat([rule(table[a:b]) for a, b in bounds])
    assert torch.equal(Scope((0, len(flat)), shards).each(rule, table), by_shard)
    together = rule(table)
    for a, b in bounds:
        own = Scope((a, b), shards).each(rule, table[a:b])
        assert torch.equal(own, by_shard[a:b])
        whole = Scope((a, b), ((0, len(flat)),), gather=lambda part: table)
        assert torch.equal(whole.each(rule, table[a:b]), together[a:b])


def test_a_neighbour_routes_two_shards_by_the_rule_of_each() -> None:
    table = torch.tensor([[0], [0], [0], [0], [0], [0]])
    shards = ((0, 2), (2, 4), (4, 6))
    kept = Scope((2, 6), shards).each(first_of(1), table[2:])
    assert kept.flatten().tolist() == [True, False, True, False]
    assert Scope((0, 6), ((0, 6),)).each(first_of(1), table).sum() == 1


# In the router.


def routed(layer: LayerSpec, tokens: int = 24) -> router_module.Routing:
    draw = torch.Generator().manual_seed(3)
    scope = Scope((0, tokens), ((0, tokens),))
    return Router(layer, CPU, None, scope)(torch.randn(tokens, layer.dim, generator=draw))


def test_dropless_drops_nothing() -> None:
    routing = routed(layer_of(4, 2))
    assert routing.kept_TK is None
    assert bool((routing.gates_TK > 0).all())
    torch.testing.assert_close(routing.gates_TK.sum(1), torch.ones(24))


@pytest.mark.parametrize("drop", ["position", "first_choices", "probability"])
def test_the_router_drops_by_its_own_gates_and_leaves_the_others(drop: str) -> None:
    free = routed(layer_of(4, 2))
    limited = routed(layer_of(4, 2, capacity_factor=0.5, drop=drop))
    places = 6  # ceil(0.5 * 2 * 24 / 4)
    assert limited.kept_TK is not None
    assert torch.equal(limited.indices_TK, free.indices_TK)
    slots = [(t, k) for t in range(24) for k in range(2)]
    if drop == "probability":
        slots.sort(key=lambda at: -float(free.gates_TK.detach()[at]))
    elif drop == "first_choices":
        slots.sort(key=lambda at: at[1])
    assert marked(limited.kept_TK) == counted(free.indices_TK.tolist(), slots, places)
    assert torch.equal(limited.gates_TK, free.gates_TK * limited.kept_TK)
    counts = torch.bincount(limited.indices_TK[limited.kept_TK], minlength=4)
    assert counts.max() == places and not limited.kept_TK.all()


FIRST_IS_0, FIRST_IS_1 = [2.0, 1.0], [1.0, 2.0]  # logits of two experts, both of them chosen
FOUR = torch.tensor([FIRST_IS_0, FIRST_IS_1, FIRST_IS_1, FIRST_IS_1])
BY_SCOPE = {
    # a shard of two tokens has ceil(0.5 * 2 * 2 / 2) = 1 place of each expert. Tokens 0 and 1 both
    # have their first choice; token 2 has both experts, as token 3 also wants expert 1 first
    ("first_choices", "rank"): [[1, 0], [1, 0], [1, 1], [0, 0]],
    ("position", "rank"): [[1, 1], [0, 0], [1, 1], [0, 0]],
    # four tokens have 2 places of each. First choices: 0 to token 0, 1 to tokens 1 and 2; then
    # expert 0's other place goes to token 1
    ("first_choices", "global"): [[1, 0], [1, 1], [1, 0], [0, 0]],
    ("position", "global"): [[1, 1], [1, 1], [0, 0], [0, 0]],
}


@pytest.mark.parametrize(("drop", "scope"), BY_SCOPE)
def test_first_choices_first_in_the_router_by_hand(drop: str, scope: str) -> None:
    """Whoever routes: one rank all four tokens, or two ranks a shard each."""
    layer = LayerSpec(
        dim=2, num_experts=2, topk=2, router=RouterSpec(capacity_factor=0.5, drop=drop)
    )
    shards = ((0, 2), (2, 4))
    bounds = shards if scope == "rank" else ((0, 4),)
    table_TK = torch.tensor([[0, 1], [1, 0], [1, 0], [1, 0]])

    def routing(rows: tuple[int, int], gather: bool) -> router_module.Routing:
        everyones = (lambda part: table_TK) if gather else None
        made = Router(layer, CPU, None, Scope(rows, bounds, everyones))
        made.weight_ED = torch.nn.Parameter(torch.eye(2))
        found: router_module.Routing = made(FOUR[slice(*rows)])
        assert torch.equal(found.indices_TK, table_TK[slice(*rows)])
        return found

    whole = routing((0, 4), False)
    assert whole.kept_TK is not None
    assert whole.kept_TK.int().tolist() == BY_SCOPE[drop, scope]
    share = 1 / (1 + math.exp(-1))  # of the first choice
    want = torch.tensor(BY_SCOPE[drop, scope]) * torch.tensor([share, 1 - share])
    torch.testing.assert_close(whole.gates_TK.detach(), want)
    apart = [routing(rows, scope == "global") for rows in shards]
    for rows, part in zip(shards, apart, strict=True):
        assert part.kept_TK is not None
        assert torch.equal(part.kept_TK, whole.kept_TK[slice(*rows)])


def test_ample_capacity_keeps_every_slot() -> None:
    routing = routed(layer_of(4, 2, capacity_factor=4.0))
    assert routing.kept_TK is not None and bool(routing.kept_TK.all())


def test_where_experts_choose_each_takes_its_places() -> None:
    routing = routed(layer_of(4, 2, kind="expert_choice"))
    assert routing.kept_TK is not None
    assert routing.kept_TK.sum(0).tolist() == [12] * 4  # ceil(2 * 24 / 4) each
    taken = routing.kept_TK.any(1)
    torch.testing.assert_close(routing.gates_TK.sum(1), taken.float())
    assert bool((routing.gates_TK[~routing.kept_TK] == 0).all())


def test_a_mutant_that_keeps_the_last_instead_of_the_first_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def last(
        indices: Tensor, weight: Tensor | None, experts: int, places: int, drop: str
    ) -> Tensor:
        return keep_first(indices.flip(0), weight, experts, places, drop).flip(0)

    monkeypatch.setattr(router_module, "keep_first", last)
    for drop in ("position", "first_choices"):
        with pytest.raises(AssertionError):
            test_the_router_drops_by_its_own_gates_and_leaves_the_others(drop)


def test_a_mutant_that_drops_by_position_always_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def deaf(
        indices: Tensor, weight: Tensor | None, experts: int, places: int, drop: str
    ) -> Tensor:
        return keep_first(indices, weight, experts, places)

    monkeypatch.setattr(router_module, "keep_first", deaf)
    for drop in ("first_choices", "probability"):
        with pytest.raises(AssertionError):
            test_the_router_drops_by_its_own_gates_and_leaves_the_others(drop)
    for scope in ("rank", "global"):
        with pytest.raises(AssertionError):
            test_first_choices_first_in_the_router_by_hand("first_choices", scope)
