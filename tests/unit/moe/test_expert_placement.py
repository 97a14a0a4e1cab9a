"""Which rank holds which experts: orders written out, and what copies of hot experts must obey."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.parallel.expert_order import by_load, order_for, primary_order, with_copies
from moe.parallel.expert_placement import Places, places_of
from moe.spec import Cell, LayerSpec, StrategySpec

CPU = torch.device("cpu")


def test_orders_written_out() -> None:
    assert primary_order(StrategySpec(), 6, 3) == [0, 1, 2, 3, 4, 5]
    assert primary_order(StrategySpec(placement="round_robin"), 6, 3) == [0, 3, 1, 4, 2, 5]
    assert primary_order(StrategySpec(placement="round_robin"), 8, 2) == [0, 2, 4, 6, 1, 3, 5, 7]
    said = StrategySpec(placement="explicit", expert_order=(2, 0, 3, 1))
    assert primary_order(said, 4, 2) == [2, 0, 3, 1]


def test_hot_experts_are_copied_to_where_they_are_not_by_hand() -> None:
    # rank 0 has 0 and 1, rank 1 has 2 and 3. The hottest, 0, goes to rank 1, which is full then;
    # rank 0 has 0 and 1 already, so it gets the next in line.
    assert with_copies([0, 1, 2, 3], 2, 2, [10, 1, 1, 1]) == [0, 1, 2, 2, 3, 0]
    # 12 slots over two copies are still more than the 5 of any other: a third for expert 3
    assert with_copies([0, 1, 2, 3, 4, 5], 3, 3, [5, 0, 0, 12, 0, 0]) == [
        0, 1, 3, 2, 3, 0, 4, 5, 3
    ]  # fmt: skip


def test_a_placement_by_load_by_hand() -> None:
    # 9 to rank 0, 8 to rank 1, 3 to rank 1 (8 < 9), 2 to rank 0 (rank 1 is full)
    assert by_load([9, 2, 8, 3], 2) == [0, 1, 2, 3]
    # 6, 5 and 4 to a rank each; then 3 beside the 4, 2 beside the 5, 1 beside the 6
    assert by_load([1, 2, 3, 4, 5, 6], 3) == [5, 0, 4, 1, 3, 2]
    # as many on every rank: the three without load go where there is room, not where least is
    assert by_load([0, 7, 0, 0], 2) == [1, 3, 0, 2]
    assert by_load([3, 1], 1) == [0, 1]


def test_copies_without_load_go_to_the_lowest_ids() -> None:
    assert with_copies([0, 1], 2, 2, [0, 0]) == [0, 1, 1, 0]


@st.composite
def copied(draw: st.DrawFn) -> tuple[list[int], int, int, list[int]]:
    """Order of the experts, ranks, copies, loads."""
    ranks, per_rank = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    experts = ranks * per_rank
    order = draw(st.permutations(range(experts)))
    copies = ranks * draw(st.integers(1, experts * (ranks - 1) // ranks))
    loads = draw(st.lists(st.integers(0, 50), min_size=experts, max_size=experts))
    return list(order), ranks, copies, loads


@given(copied())
@settings(max_examples=200)
def test_ranks_hold_as_many_and_none_an_expert_twice(
    found: tuple[list[int], int, int, list[int]],
) -> None:
    order, ranks, copies, loads = found
    made = with_copies(order, ranks, copies, loads)
    assert len(made) == len(order) + copies
    size = len(made) // ranks
    before = len(order) // ranks
    for rank in range(ranks):
        held = made[rank * size : (rank + 1) * size]
        assert len(set(held)) == size
        assert held[:before] == order[rank * before : (rank + 1) * before]
    hottest = max(order, key=lambda e: (loads[e], -e))
    assert made.count(hottest) >= 2  # it is the first to get a copy


@given(copied(), st.integers(0, 20), st.integers(1, 4))
@settings(max_examples=100)
def test_every_place_holds_the_expert_that_was_asked_for(
    found: tuple[list[int], int, int, list[int]], first: int, topk: int
) -> None:
    order, ranks, copies, loads = found
    made = with_copies(order, ranks, copies, loads)
    experts = len(order)
    places = places_of(made, experts, CPU)
    draw = torch.Generator().manual_seed(first)
    indices_TK = torch.randint(0, experts, (7, topk), generator=draw)
    where_TK = places.locate(indices_TK, first)
    assert torch.tensor(places.experts)[where_TK].tolist() == indices_TK.tolist()
    assert places.copied == [e for e in range(experts) if made.count(e) > 1]


def test_tokens_take_turns_at_the_copies() -> None:
    places = places_of([0, 1, 2, 3, 0, 2, 1, 0], 4, CPU)
    indices_TK = torch.tensor([[0, 3], [0, 1], [0, 2], [0, 1]])
    # expert 0 is at 0, 4 and 7; 1 at 1 and 6; 2 at 2 and 5; 3 at 3 only
    assert places.locate(indices_TK, 0).tolist() == [[0, 3], [4, 6], [7, 2], [0, 6]]
    assert places.locate(indices_TK[1:], 1).tolist() == [[4, 6], [7, 2], [0, 6]]


def test_turns_go_by_the_global_id_so_that_any_rank_sends_a_token_to_the_same_place() -> None:
    places = places_of([0, 1, 2, 0, 3, 2], 4, CPU)
    indices_TK = torch.tensor([[0, 2]] * 9)
    whole = places.locate(indices_TK, 0)
    for start in range(9):
        assert torch.equal(places.locate(indices_TK[start:], start), whole[start:])


@given(copied())
@settings(max_examples=100)
def test_copies_of_an_expert_get_the_same_number_of_its_tokens(
    found: tuple[list[int], int, int, list[int]],
) -> None:
    order, ranks, copies, loads = found
    places = places_of(with_copies(order, ranks, copies, loads), len(order), CPU)
    for expert in places.copied:
        where = places.locate(torch.full((12, 1), expert), 5).flatten().tolist()
        counts = {where.count(place) for place in set(where)}
        assert max(counts) - min(counts) <= 1
        assert len(set(where)) == places.copies_E[expert]


def test_plain_places_are_the_experts_themselves() -> None:
    assert places_of(range(4), 4, CPU).plain
    assert not places_of([1, 0], 2, CPU).plain
    indices_TK = torch.tensor([[1, 0]])
    assert places_of([1, 0], 2, CPU).locate(indices_TK, 0).tolist() == [[0, 1]]


def test_the_order_of_a_cell() -> None:
    cell = Cell(LayerSpec(num_experts=4), StrategySpec(name="ep", placement="round_robin"))
    assert order_for(cell, 2, []) == [0, 2, 1, 3]
    hot = replace(cell, strategy=replace(cell.strategy, hot_replicas=2))
    assert order_for(hot, 2, [1, 1, 9, 1]) == [0, 2, 1, 1, 3, 2]


def test_a_mutant_that_numbers_tokens_from_the_rank_up_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = Places.locate
    monkeypatch.setattr(Places, "locate", lambda self, indices, first: right(self, indices, 0))
    with pytest.raises(AssertionError):
        test_turns_go_by_the_global_id_so_that_any_rank_sends_a_token_to_the_same_place()
