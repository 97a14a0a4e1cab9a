"""What is dropped and what is taken, against the rule spelt out slot by slot."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe import capacity
from moe import router as router_module
from moe.capacity import Scope, extents, keep_first, places_per_expert, take_best
from moe.router import Router
from moe.spec import Cell, Layer, Placement, Workload, shard_bounds
from moe.spec import Router as Rule

CPU = torch.device("cpu")


def layer_of(experts: int, topk: int, **rule: object) -> Layer:
    return Layer(dim=6, num_experts=experts, topk=topk, router=Rule(**rule))  # type: ignore[arg-type]


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
    ],
)
def test_places_of_an_expert_by_hand(
    factor: float, topk: int, tokens: int, experts: int, places: int
) -> None:
    assert places_per_expert(layer_of(experts, topk, capacity_factor=factor), tokens) == places


def test_the_first_slots_stay_by_hand() -> None:
    indices_TK = torch.tensor([[0, 1], [0, 2], [0, 1], [1, 0]])
    assert keep_first(indices_TK, None, 3, 2).tolist() == [
        [True, True], [True, True], [False, True], [False, False]
    ]  # fmt: skip


def test_the_heaviest_slots_stay_and_of_equals_the_first_by_hand() -> None:
    indices_TK = torch.tensor([[0, 1], [0, 2], [0, 1], [1, 0]])
    weight_TK = torch.tensor([[0.5, 0.1], [0.9, 0.2], [0.5, 0.8], [0.8, 0.5]])
    # expert 0: 0.9 of token 1, then 0.5 of token 0 before those of 2 and 3; expert 1: both 0.8
    assert keep_first(indices_TK, weight_TK, 3, 2).tolist() == [
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
@settings(max_examples=150, deadline=None)
def test_what_is_dropped_is_what_the_rule_says(
    found: tuple[Tensor, Tensor, int], places: int
) -> None:
    indices_TK, weight_TK, experts = found
    slots = [(t, k) for t in range(indices_TK.shape[0]) for k in range(indices_TK.shape[1])]
    kept_TK = keep_first(indices_TK, None, experts, places)
    assert marked(kept_TK) == counted(indices_TK.tolist(), slots, places)
    falling = sorted(slots, key=lambda at: -float(weight_TK[at]))
    kept_TK = keep_first(indices_TK, weight_TK, experts, places)
    assert marked(kept_TK) == counted(indices_TK.tolist(), falling, places)


@given(choices(), st.integers(0, 4))
@settings(max_examples=100, deadline=None)
def test_each_expert_takes_its_best(found: tuple[Tensor, Tensor, int], places: int) -> None:
    _, scores_TE, _ = found
    taken_TE = take_best(scores_TE, places)
    for expert in range(scores_TE.shape[1]):
        column = scores_TE[:, expert].tolist()
        best = sorted(range(len(column)), key=lambda t: -column[t])[:places]
        assert taken_TE[:, expert].nonzero().flatten().tolist() == sorted(best)


# Which tokens are looked at together.


def test_extents_are_shards_or_the_whole_batch() -> None:
    work, place = Workload(batch_size=5), Placement(world_size=3)
    assert extents(Cell(Layer(), workload=work, placement=place)) == [(0, 2), (2, 4), (4, 5)]
    whole = Layer(router=Rule(scope="global"))
    assert extents(Cell(whole, workload=work, placement=place)) == [(0, 5)]
    few = Workload(batch_size=2)
    assert extents(Cell(Layer(), workload=few, placement=place)) == [(0, 1), (1, 2)]


def first_of(places: int) -> capacity.Callable[[Tensor], Tensor]:
    return lambda indices: keep_first(indices, None, 3, places)


@given(
    flat=st.lists(st.integers(0, 2), min_size=0, max_size=14),
    ranks=st.integers(1, 4),
    places=st.integers(0, 3),
)
@settings(max_examples=100, deadline=None)
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


def routed(layer: Layer, tokens: int = 24) -> router_module.Routing:
    draw = torch.Generator().manual_seed(3)
    scope = Scope((0, tokens), ((0, tokens),))
    return Router(layer, CPU, None, scope)(torch.randn(tokens, layer.dim, generator=draw))


def test_dropless_drops_nothing() -> None:
    routing = routed(layer_of(4, 2))
    assert routing.kept_TK is None
    assert bool((routing.gates_TK > 0).all())
    torch.testing.assert_close(routing.gates_TK.sum(1), torch.ones(24))


@pytest.mark.parametrize("drop", ["position", "probability"])
def test_the_router_drops_by_its_own_gates_and_leaves_the_others(drop: str) -> None:
    free = routed(layer_of(4, 2))
    limited = routed(layer_of(4, 2, capacity_factor=0.5, drop=drop))
    places = 6  # ceil(0.5 * 2 * 24 / 4)
    assert limited.kept_TK is not None
    assert torch.equal(limited.indices_TK, free.indices_TK)
    slots = [(t, k) for t in range(24) for k in range(2)]
    if drop == "probability":
        slots.sort(key=lambda at: -float(free.gates_TK.detach()[at]))
    assert marked(limited.kept_TK) == counted(free.indices_TK.tolist(), slots, places)
    assert torch.equal(limited.gates_TK, free.gates_TK * limited.kept_TK)
    counts = torch.bincount(limited.indices_TK[limited.kept_TK], minlength=4)
    assert counts.max() == places and not limited.kept_TK.all()


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
    def last(indices: Tensor, order: Tensor | None, experts: int, places: int) -> Tensor:
        return keep_first(indices.flip(0), order, experts, places).flip(0)

    monkeypatch.setattr(router_module, "keep_first", last)
    with pytest.raises(AssertionError):
        test_the_router_drops_by_its_own_gates_and_leaves_the_others("position")
