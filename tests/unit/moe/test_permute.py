"""Slots into expert order and back: by hand, and what must hold of any routing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe.parallel.permute import Slots, permute, sort_slots, unpermute

ELSEWHERE = 9  # a place that no test has


def rows(tokens: int, width: int = 3) -> Tensor:
    """Whole numbers, all different, so that sums are exact."""
    return torch.arange(1.0, tokens * width + 1).view(tokens, width)


def test_slots_of_three_tokens_by_hand() -> None:
    # flat slots 0..5 name experts 2 0 | 0 1 | 2 0
    slots = sort_slots(torch.tensor([[2, 0], [0, 1], [2, 0]]), 3)
    assert slots.counts.on_host == [3, 1, 2]
    assert slots.order_S.tolist() == [1, 2, 5, 3, 0, 4]
    assert slots.token_S.tolist() == [0, 1, 2, 1, 0, 2]
    assert permute(torch.tensor([[10.0], [20.0], [30.0]]), slots).flatten().tolist() == [
        10, 20, 30, 20, 10, 30
    ]  # fmt: skip


def test_gates_weigh_each_slot_once_by_hand() -> None:
    slots = sort_slots(torch.tensor([[2, 0], [0, 1]]), 3)  # in expert order: 1, 2, 3, 0
    y_SO = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    gates_TK = torch.tensor([[0.5, 10.0], [100.0, 1000.0]])
    # token 0: 0.5 * its expert 2 (row 3) + 10 * its expert 0 (row 0)
    assert unpermute(y_SO, gates_TK, slots).flatten().tolist() == [0.5 * 4 + 10, 200 + 3000]


def test_dropped_slots_vanish_by_hand() -> None:
    slots = sort_slots(torch.tensor([[1, ELSEWHERE], [ELSEWHERE, ELSEWHERE], [0, 1]]), 2)
    assert slots.counts.on_host == [1, 2]
    assert slots.token_S.tolist() == [2, 0, 2]
    y_SO = torch.tensor([[1.0], [2.0], [3.0]])
    assert unpermute(y_SO, torch.ones(3, 2), slots).flatten().tolist() == [2, 0, 1 + 3]


@st.composite
def routings(draw: st.DrawFn) -> tuple[Tensor, int]:
    """[T, K] places of which some are elsewhere, and the number of places here."""
    tokens, topk, places = draw(st.integers(0, 9)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    size = tokens * topk
    flat = draw(st.lists(st.integers(0, places + 2), min_size=size, max_size=size))
    return torch.tensor(flat, dtype=torch.int64).view(tokens, topk), places


@given(routings())
@settings(max_examples=60)
def test_permute_then_unpermute_with_even_gates_is_the_identity(found: tuple[Tensor, int]) -> None:
    local_TK, places = found
    local_TK = local_TK % places  # all slots are here
    tokens, topk = local_TK.shape
    x_TD = rows(tokens)
    slots = sort_slots(local_TK, places)
    back = unpermute(permute(x_TD, slots), torch.full((tokens, topk), 1 / topk), slots)
    torch.testing.assert_close(back, x_TD)


@given(routings())
@settings(max_examples=60)
def test_every_slot_that_is_here_is_in_one_row(found: tuple[Tensor, int]) -> None:
    local_TK, places = found
    slots = sort_slots(local_TK, places)
    flat = local_TK.flatten().tolist()
    here = [slot for slot, place in enumerate(flat) if place < places]
    assert sorted(slots.order_S.tolist()) == here
    assert slots.counts.on_host == [flat.count(place) for place in range(places)]
    assert [flat[slot] for slot in slots.order_S.tolist()] == sorted(flat[slot] for slot in here)
    assert permute(rows(len(local_TK)), slots).shape == (len(here), 3)


@given(routings())
@settings(max_examples=60)
def test_unpermute_is_the_gated_sum_over_slots_that_are_here(found: tuple[Tensor, int]) -> None:
    local_TK, places = found
    tokens, topk = local_TK.shape
    x_TD, gates_TK = rows(tokens), rows(tokens, topk)
    slots = sort_slots(local_TK, places)
    counts = torch.tensor(slots.counts.on_host)
    factor = torch.arange(1, places + 1).repeat_interleave(counts)
    out = unpermute(permute(x_TD, slots) * factor.unsqueeze(1), gates_TK, slots)
    for token in range(tokens):
        want = torch.zeros(3)
        for slot in range(topk):
            place = int(local_TK[token, slot])
            if place < places:
                want += gates_TK[token, slot] * x_TD[token] * (place + 1)
        torch.testing.assert_close(out[token], want)


def test_a_mutant_that_mixes_up_two_rows_is_not_the_identity() -> None:
    x_TD, local_TK = rows(3), torch.tensor([[2, 0], [0, 1], [2, 0]])
    right = sort_slots(local_TK, 3)
    order_S = right.order_S[[1, 0, 2, 3, 4, 5]]
    wrong = Slots(right.counts, order_S, right.num_tokens, right.topk)
    gates_TK = torch.full((3, 2), 0.5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(unpermute(permute(x_TD, right), gates_TK, wrong), x_TD)
