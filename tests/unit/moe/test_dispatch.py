"""Sending slots and bringing results back, over ranks that are threads: any routing, every
dispatcher, each kept slot computed once, by the place it names."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe.parallel import dispatch
from moe.parallel.dispatch import Way, expert_order
from moe.parallel.row_counts import RowCounts
from tests.support.fake_group import FakeGroup, on_ranks

WAYS = ("alltoall", "dedup", "overlapped 1", "overlapped 2", "overlapped 3", "overlapped 4")
DIM = 2  # of tokens: their global id, and 1


@dataclass(frozen=True)
class Case:
    """Every rank's [T, K] places, distinct within a token; `per_rank * ranks` and more is
    dropped."""

    per_rank: int
    places: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def ranks(self) -> int:
        return len(self.places)

    @property
    def total(self) -> int:
        return self.per_rank * self.ranks

    def tokens(self, rank: int) -> int:
        return len(self.places[rank])

    def first(self, rank: int) -> int:
        return sum(map(len, self.places[:rank]))

    def kept(self) -> Counter[tuple[int, int]]:
        """(place, global token id) of every slot that must be computed."""
        return Counter(
            (place, self.first(rank) + token)
            for rank, rows in enumerate(self.places)
            for token, row in enumerate(rows)
            for place in row
            if place < self.total
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    ranks, per_rank = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    total = ranks * per_rank
    topk = draw(st.integers(1, min(3, total)))
    slot = st.integers(0, total)  # `total` itself is dropped, and may occur several times

    def distinct(row: list[int]) -> bool:
        kept = [place for place in row if place < total]
        return len(kept) == len(set(kept))

    row = st.lists(slot, min_size=topk, max_size=topk).filter(distinct).map(tuple)
    table = st.lists(row, min_size=0, max_size=5).map(tuple)
    return Case(per_rank, tuple(draw(table) for _ in range(ranks)))


@dataclass
class Outcome:
    """What one rank ended with, and what it saw."""

    outputs: Tensor
    computed: list[tuple[int, int]]  # (place, global token id), row by row
    group: FakeGroup


def inputs(case: Case, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, places and gates: powers of two, so that sums in any order are the same."""
    tokens = case.tokens(rank)
    topk = max((len(row) for rows in case.places for row in rows), default=1)
    places = torch.tensor(case.places[rank], dtype=torch.int64).view(tokens, topk)
    ids = torch.arange(case.first(rank), case.first(rank) + tokens).float()
    gates = torch.tensor([[2.0 ** -(k + t % 3) for k in range(topk)] for t in range(tokens)])
    return torch.stack([ids, torch.ones_like(ids)], 1), places, gates.view(tokens, topk)


def step(case: Case, way: str, group: FakeGroup) -> Outcome:
    x_TD, places_TK, gates_TK = inputs(case, group.index)
    computed: list[tuple[int, int]] = []

    def compute(x_SD: Tensor, rows: RowCounts) -> Tensor:
        """f_place(x) = (place + 1) * x, noted down."""
        counts = rows.on_host
        assert len(counts) == case.per_rank and sum(counts) == len(x_SD)
        places = torch.arange(case.per_rank) + group.index * case.per_rank
        place_S = places.repeat_interleave(torch.tensor(counts))
        computed.extend(zip(place_S.tolist(), x_SD[:, 0].int().tolist(), strict=True))
        return x_SD * (place_S + 1).unsqueeze(1)

    name, _, chunks = way.partition(" ")
    call = getattr(dispatch, name)
    arguments = (x_TD, places_TK, gates_TK, Way(group, case.total), compute)  # type: ignore[arg-type]
    y_TO = call(*arguments, int(chunks)) if chunks else call(*arguments)
    return Outcome(y_TO, computed, group)


def outcomes(case: Case, way: str) -> list[Outcome]:
    return on_ranks(case.ranks, functools.partial(step, case, way))


def wanted(case: Case, rank: int) -> Tensor:
    """Sum over kept slots of gate * f_place(x), slot by slot."""
    x_TD, places_TK, gates_TK = inputs(case, rank)
    out = torch.zeros_like(x_TD)
    for token, row in enumerate(places_TK.tolist()):
        for slot, place in enumerate(row):
            if place < case.total:
                out[token] += gates_TK[token, slot] * (place + 1) * x_TD[token]
    return out


def examine(case: Case, way: str) -> None:
    found = outcomes(case, way)
    computed = Counter(pair for one in found for pair in one.computed)
    assert computed == case.kept()  # each once, none besides
    for rank, one in enumerate(found):
        here = range(rank * case.per_rank, (rank + 1) * case.per_rank)
        assert all(place in here for place, _ in one.computed)
        assert torch.equal(one.outputs, wanted(case, rank))
        assert all(work.waits == 1 for work in one.group.open)


@pytest.mark.parametrize("way", WAYS)
@given(case=cases())
@settings(max_examples=25)
def test_every_kept_slot_is_computed_once_and_comes_back(way: str, case: Case) -> None:
    examine(case, way)


NOBODY: tuple[tuple[int, ...], ...] = ()
CORNERS = {
    "fewer tokens than ranks": Case(2, (((0, 5),), NOBODY, NOBODY)),
    "all to one rank": Case(1, (((2, 3), (2, 3)), ((2, 3),), ((2, 3),))),
    "everything dropped": Case(1, (((2, 2),), ((2, 2), (2, 2)))),
    "nobody has a token": Case(1, (NOBODY, NOBODY)),
    "one rank": Case(4, (((3, 1), (0, 4)),)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CORNERS)
def test_corners(name: str, way: str) -> None:
    examine(CORNERS[name], way)


# Two ranks with two places each. Rank 0: token 0 -> places 0, 2; token 1 -> 2, 3.
# Rank 1: token 2 -> 0, 1; token 3 -> 3 and one slot dropped.
SMALL = Case(2, (((0, 2), (2, 3)), ((0, 1), (3, 4))))


def ids(parts: list[Tensor]) -> list[list[int]]:
    return [part[:, 0].int().tolist() for part in parts]


def test_alltoall_by_hand() -> None:
    first, second = outcomes(SMALL, "alltoall")
    counts, rows, back = first.group.sent
    assert [part.tolist() for part in counts] == [[[1, 0]], [[2, 1]]]
    assert ids(rows) == [[0], [0, 1, 1]]
    assert ids(back) == [[0], [2 * 1, 2 * 2]]  # f_0 and f_1 of token 2; its own 0 stays
    assert first.computed == [(0, 0), (0, 2), (1, 2)]
    assert second.computed == [(2, 0), (2, 1), (3, 1), (3, 3)]
    # token 1: gates 1/2 and 1/4, f_2 = 3x, f_3 = 4x
    assert first.outputs[1].tolist() == [0.5 * 3 + 0.25 * 4] * 2


def test_dedup_by_hand() -> None:
    first, second = outcomes(SMALL, "dedup")
    counts, rows, gates, back = first.group.sent
    # rows, and the slots that they have at each of the member's two places
    assert [part.tolist() for part in counts] == [[[1, 1, 0]], [[2, 2, 1]]]
    assert ids(rows) == [[0], [0, 1]]  # token 1 has two slots there and crosses once
    assert gates[1].tolist() == [[0.5, 0], [0.5, 0.25]]
    assert back[1].tolist() == [[(1 * 1 + 0.5 * 2) * 2, 1 * 1 + 0.5 * 2]]  # token 2, gated sum
    assert torch.equal(first.outputs, wanted(SMALL, 0))
    assert torch.equal(second.outputs, wanted(SMALL, 1))


@given(case=cases().filter(lambda case: case.ranks > 1))
@settings(max_examples=40)
def test_dedup_sends_a_token_once_to_each_rank_that_has_a_slot_of_it(case: Case) -> None:
    for rank, one in enumerate(outcomes(case, "dedup")):
        counts, rows = one.group.sent[:2]
        for member in range(case.ranks):
            want = [
                case.first(rank) + token
                for token, row in enumerate(case.places[rank])
                if any(p // case.per_rank == member for p in row if p < case.total)
            ]
            assert ids(rows)[member] == want
            assert counts[member][0, 0] == len(want)


@given(case=cases().filter(lambda case: case.ranks > 1), chunks=st.integers(1, 4))
@settings(max_examples=40)
def test_counts_that_are_sent_are_those_of_the_rows(case: Case, chunks: int) -> None:
    way = "alltoall" if chunks == 1 else f"overlapped {chunks}"
    for one in outcomes(case, way):
        counts, *rows = one.group.sent
        for member in range(case.ranks):
            announced = counts[member].view(chunks, case.per_rank).sum(1).tolist()
            assert announced == [len(parts[member]) for parts in rows[:chunks]]


def test_rows_are_brought_into_expert_order_by_hand() -> None:
    # source 0 sends 1 row for expert 0 and 2 for expert 1; source 1 sends 2 and 1
    assert expert_order(torch.tensor([[1, 2], [2, 1]]), 6).tolist() == [0, 3, 4, 1, 2, 5]


def test_a_mutant_that_leaves_rows_in_source_order_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "expert_order", lambda counts, rows: torch.arange(rows))
    crossed = Case(2, (((1, 3),), ((0, 2),)))  # what comes later is for the earlier place
    with pytest.raises(AssertionError):
        examine(crossed, "alltoall")


def test_a_mutant_that_drops_a_gate_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = dispatch._gates_by_place

    def wrong(places_TK: Tensor, gates_TK: Tensor, way: Way) -> Tensor:
        gates_TGP = right(places_TK, gates_TK, way)
        gates_TGP[:, -1, -1] = 0
        return gates_TGP

    monkeypatch.setattr(dispatch, "_gates_by_place", wrong)
    with pytest.raises(AssertionError):
        examine(SMALL, "dedup")
