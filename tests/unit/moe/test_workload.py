"""Prescribed workloads: who gets what, whoever asks, and refusals by name."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe import weights
from moe.layer.capacity import extents
from moe.spec import (
    Cell,
    LayerSpec,
    RankLayout,
    RouterSpec,
    Unsupported,
    WorkloadSpec,
    shard_bounds,
)
from moe.verify import definitions
from moe.workload import batches
from moe.workload.batches import allowed
from moe.workload.checks import check_workload, is_prescribed, most_imbalance, nominal_ranks
from moe.workload.routings import _best, _best_k, rank_edges, spread_order

CPU = torch.device("cpu")
KINDS = [("balanced", 0.0), ("zipf", 1.2), ("k_hot", 3.0), ("hot_rank", 0.5), ("imbalance", 1.5)]


def cell(
    kind: str, parameter: float = 0.0, experts: int = 8, topk: int = 2, ranks: int = 4,
    batch: int = 64, seed: int = 0,
) -> Cell:  # fmt: skip
    return Cell(
        layer=LayerSpec(num_experts=experts, topk=topk, topk_requested=topk),
        workload=WorkloadSpec(batch_size=batch, kind=kind, parameter=parameter, seed=seed),
        placement=RankLayout(world_size=ranks),
    )


def rows(of: Cell, first: int = 0, last: int | None = None) -> Tensor:
    end = of.workload.batch_size if last is None else last
    found = allowed(of, (first, end))
    assert found is not None and found.dtype == torch.bool
    assert (found.sum(1) == of.layer.topk).all()
    return found


def chosen(of: Cell) -> list[list[int]]:
    return [row.nonzero().view(-1).tolist() for row in rows(of)]


def per_rank(of: Cell, mask: Tensor) -> Tensor:
    return mask.sum(0).view(nominal_ranks(of), -1).sum(1)


def skew(of: Cell) -> float:
    slots = per_rank(of, rows(of)).double()
    return float(slots.max() / slots.mean())


def spread(counts: Tensor) -> int:
    return int(counts.max() - counts.min())


# What all have in common.


@given(st.sampled_from(KINDS), st.integers(0, 40), st.integers(0, 40), st.integers(0, 2**31 - 1))
def test_any_range_of_tokens_is_made_without_the_others(
    kind: tuple[str, float], first: int, more: int, seed: int
) -> None:
    of = cell(*kind, batch=80, seed=seed)
    last = first + more
    assert torch.equal(rows(of, first, last), rows(of)[first:last])


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_seed_and_the_nominal_ranks_count(kind: tuple[str, float]) -> None:
    of = cell(*kind)
    strategy = dataclasses.replace(of.strategy, name="tp")
    pinned = dataclasses.replace(of.workload, nominal_ep=4, batch_size=9, tokens="sharded")
    other = dataclasses.replace(
        of, strategy=strategy, workload=pinned, placement=RankLayout(world_size=1)
    )
    assert torch.equal(rows(other), rows(of)[:9])
    assert not torch.equal(rows(cell(*kind, seed=1)), rows(of))


def test_learned_prescribes_nothing() -> None:
    assert allowed(cell("learned"), (0, 8)) is None
    assert [is_prescribed(cell(kind)) for kind in ("learned", "balanced")] == [False, True]


# balanced


def test_balanced_written_out() -> None:
    # two ranks hold experts 0, 1 and 2, 3: the order goes to and fro between them
    assert spread_order(4, 2) == (0, 2, 1, 3)
    assert chosen(cell("balanced", experts=4, topk=1, ranks=2, batch=5)) == [
        [0],
        [2],
        [1],
        [3],
        [0],
    ]
    assert chosen(cell("balanced", experts=4, topk=2, ranks=2, batch=3)) == [[0, 2], [1, 3], [0, 2]]
    moved = cell("balanced", experts=4, topk=2, ranks=2, batch=2, seed=1)
    assert chosen(moved) == [[1, 2], [0, 3]]  # slots 1, 2 and 3, 4 of the order


def test_balanced_with_experts_that_ranks_do_not_divide() -> None:
    assert spread_order(6, 4) == (0, 3, 1, 4, 2, 5)  # the two that both have, then the rest
    assert spread_order(5, 2) == (0, 1, 2, 3, 4)


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_balanced_counts_differ_by_at_most_one_in_any_window(
    ranks: int, places: int, data: st.DataObject
) -> None:
    experts = ranks * places
    topk = data.draw(st.integers(1, experts))
    of = cell("balanced", 0, experts, topk, ranks, batch=50, seed=data.draw(st.integers(0, 99)))
    first = data.draw(st.integers(0, 50))
    part = rows(of, first, data.draw(st.integers(first, 50)))
    assert spread(part.sum(0)) <= 1
    assert spread(per_rank(of, part)) <= 1


@pytest.mark.parametrize("batch", [1, 2, 3, 16, 33, 1000])
def test_balanced_at_the_size_where_plain_order_leaves_ranks_empty(batch: int) -> None:
    of = cell("balanced", 0, experts=256, topk=8, ranks=16, batch=batch)
    assert spread(rows(of).sum(0)) <= 1
    for degree in (2, 4, 8, 16):  # whatever power of two shares the experts
        slots = rows(of).sum(0).view(degree, -1).sum(1)
        assert spread(slots) <= 1


# zipf


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.6])
def test_zipf_gives_back_its_exponent(exponent: float) -> None:
    experts, tokens = 16, 20_000
    counts = rows(cell("zipf", exponent, experts, topk=1, batch=tokens)).sum(0).double()
    ordered = counts.sort(descending=True)[0]
    weight = torch.arange(1, experts + 1).double() ** -exponent
    expected = tokens * weight / weight.sum()
    assert ((ordered - expected).abs() <= 5 * expected.sqrt()).all()  # five deviations


def test_zipf_popularity_goes_by_seed() -> None:
    hottest = {int(rows(cell("zipf", 2.0, seed=n, batch=200)).sum(0).argmax()) for n in range(20)}
    assert len(hottest) > 3


# k_hot


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 50))
def test_k_hot_slots_go_to_hot_experts_while_there_are_some(hot: int, topk: int, seed: int) -> None:
    of = cell("k_hot", float(hot), experts=12, topk=topk, batch=300, seed=seed)
    ordered = rows(of).sum(0).sort(descending=True)[0]
    if hot >= topk:
        assert int(ordered[hot:].sum()) == 0
        assert int(ordered.sum()) == 300 * topk
    else:
        assert (ordered[:hot] == 300).all()


def test_k_hot_is_even_among_the_hot() -> None:
    counts = rows(cell("k_hot", 4.0, experts=16, topk=2, batch=8000)).sum(0)
    hot = counts[counts > 0]
    assert len(hot) == 4
    assert ((hot - 4000).abs() <= 5 * 45).all()  # binomial(8000, 1/2): deviation 44.7


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), max_size=5), st.integers(1, 6))
def test_the_fast_choice_is_the_slow_one_also_with_ties(table: list[list[int]], topk: int) -> None:
    scores = torch.tensor(table, dtype=torch.float64).view(-1, 6)
    assert torch.equal(_best_k(scores, topk), _best(scores, torch.tensor(topk)))


# hot_rank


@pytest.mark.parametrize(("share", "topk"), [(0.25, 2), (0.5, 2), (0.5, 4), (0.4, 4), (1.0, 4)])
def test_hot_rank_gets_its_share(share: float, topk: int) -> None:
    tokens = 4000
    of = cell("hot_rank", share, experts=16, topk=topk, ranks=4, batch=tokens)
    hot = int(per_rank(of, rows(of))[0])
    # a coin per token: floor or ceiling of K * share, deviation at most half a slot per token
    assert abs(hot - tokens * topk * share) <= 5 * 0.5 * tokens**0.5
    if (topk * share).is_integer():
        assert hot == tokens * topk * share


def test_hot_rank_is_even_within() -> None:
    counts = rows(cell("hot_rank", 0.5, experts=8, topk=2, ranks=2, batch=4000)).sum(0)
    assert ((counts - 1000).abs() <= 5 * 28).all()  # binomial(4000, 1/4): deviation 27.4


# imbalance


@given(
    st.sampled_from([(8, 2, 8), (256, 8, 16), (8, 2, 2), (64, 6, 4), (128, 8, 8), (6, 5, 3)]),
    st.floats(0, 1),
    st.integers(1, 1500),
    st.integers(0, 1000),
)
def test_imbalance_is_met_to_a_few_slots_on_any_batch(
    sizes: tuple[int, int, int], place: float, batch: int, seed: int
) -> None:
    of = cell("imbalance", 1.0, *sizes, batch=batch, seed=seed)
    target = 1 + place * (most_imbalance(of) - 1)
    of = dataclasses.replace(of, workload=dataclasses.replace(of.workload, parameter=target))
    mean = batch * of.layer.topk / nominal_ranks(of)
    assert abs(skew(of) - target) * mean <= 4


@pytest.mark.parametrize("target", [1.0, 1.1, 1.5, 2.0, 3.0, 4.0])
def test_imbalance_hits_its_target_within_five_percent(target: float) -> None:
    of = cell("imbalance", target, experts=64, topk=8, ranks=4, batch=128)
    assert skew(of) == pytest.approx(target, rel=0.05)


def test_imbalance_falls_off_from_rank_to_rank() -> None:
    edges = rank_edges(1.5, 4, 8)
    parts = [(b - a) / 2**32 for a, b in itertools.pairwise(edges)]
    assert sum(parts) == 8
    assert parts[0] == pytest.approx(1.5 * 8 / 4)
    assert parts == sorted(parts, reverse=True)
    # parts[g] / parts[0] = (g + 1)^-s for one s
    exponent = -torch.tensor(parts).div(parts[0]).log()[1:] / torch.tensor([2, 3, 4.0]).log()
    assert exponent.tolist() == pytest.approx([float(exponent[0])] * 3, rel=1e-4)


def test_imbalance_of_one_is_even() -> None:
    assert rank_edges(1.0, 4, 2) == (0, 2**31, 2**32, 3 * 2**31, 2**33)


# trace


def test_a_trace_is_taken_row_by_row_and_from_the_start_again() -> None:
    of = cell("trace", experts=4, batch=5)
    of = dataclasses.replace(of, workload=dataclasses.replace(of.workload, trace_sha256="ab"))
    trace_NK = torch.tensor([[3, 0], [1, 2], [2, 3]])
    found = allowed(of, (1, 5), trace_NK)
    assert found is not None
    assert found.int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0]]
    for bad in (None, torch.zeros(3, 3, dtype=torch.int64)):
        with pytest.raises(Unsupported, match=r"workload\.trace"):
            allowed(of, (0, 5), bad)


# Refusals.


@pytest.mark.parametrize(
    ("kind", "parameter", "sizes", "words"),
    [
        ("tides", 0, (8, 2, 4), ("workload.kind=tides", "balanced")),
        ("learned", 1, (8, 2, 4), ("workload.parameter=1", "0 for workload=learned")),
        ("balanced", 2, (8, 2, 4), ("workload.parameter=2", "leave workload.parameter out")),
        ("zipf", 0, (8, 2, 4), ("workload.parameter=0", "above 0")),
        ("zipf", float("inf"), (8, 2, 4), ("workload.parameter=inf", "finite")),
        ("k_hot", 2.5, (8, 2, 4), ("workload.parameter=2.5", "1 to num_experts=8")),
        ("k_hot", 9, (8, 2, 4), ("workload.parameter=9", "1 to num_experts=8")),
        ("k_hot", 0, (8, 2, 4), ("workload.parameter=0", "1 to num_experts=8")),
        ("hot_rank", 0.9, (8, 4, 4), ("workload.parameter=0.9", "above 0 up to 0.5")),
        ("hot_rank", 0.1, (8, 7, 2), ("workload.parameter=0.1", "from 0.428571 up to 0.571429")),
        ("hot_rank", 1.5, (8, 1, 4), ("workload.parameter=1.5", "up to 1")),
        ("hot_rank", 0, (8, 1, 4), ("workload.parameter=0", "above 0")),
        ("hot_rank", 0.5, (8, 2, 1), ("world_size=1", "workload.nominal_ep")),
        ("hot_rank", 0.5, (8, 2, 3), ("world_size=3", "divisors above 1 of num_experts=8")),
        ("imbalance", 1.5, (8, 2, 1), ("world_size=1", "workload.nominal_ep")),
        ("imbalance", 0.9, (8, 2, 4), ("workload.parameter=0.9", "from 1 to 4")),
        ("imbalance", 2.5, (8, 4, 4), ("workload.parameter=2.5", "from 1 to 2")),
        ("trace", 0, (8, 2, 4), ("workload.trace=None", "workload.trace=FILE")),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    kind: str, parameter: float, sizes: tuple[int, int, int], words: tuple[str, ...]
) -> None:
    with pytest.raises(Unsupported) as caught:
        check_workload(cell(kind, parameter, *sizes))
    for word in words:
        assert word in str(caught.value)


@given(st.integers(2, 5), st.integers(1, 5), st.floats(0.001, 1), st.data())
def test_a_share_is_either_refused_or_kept(
    ranks: int, places: int, share: float, data: st.DataObject
) -> None:
    topk = data.draw(st.integers(1, ranks * places))
    of = cell("hot_rank", share, ranks * places, topk, ranks, batch=20)
    low, high = 1 - (ranks - 1) * places / topk, places / topk
    if low + 1e-6 < share < high - 1e-6:
        slots = rows(of)[:, :places].sum(1)
        assert ((slots - topk * share).abs() < 1).all()
    elif not low - 1e-6 < share < high + 1e-6:
        with pytest.raises(Unsupported, match=r"workload\.parameter"):
            check_workload(of)


@pytest.mark.parametrize(
    "rule",
    [{"kind": "expert_choice"}, {"groups": 2}, {"selection_bias": "balanced"}],
)
def test_routers_that_would_choose_again_are_refused(rule: dict[str, object]) -> None:
    of = cell("balanced")
    router = dataclasses.replace(RouterSpec(), **rule)  # type: ignore[arg-type]
    changed = dataclasses.replace(of, layer=dataclasses.replace(of.layer, router=router))
    with pytest.raises(Unsupported, match=f"router.{next(iter(rule))}=.*prescribes the choice"):
        check_workload(changed)
    check_workload(
        dataclasses.replace(changed, workload=dataclasses.replace(of.workload, kind="learned"))
    )


# Shards, tokens and experts.


@given(st.integers(0, 300), st.integers(1, 40))
@settings(max_examples=300)
def test_shards_are_told_twice_alike(batch: int, ranks: int) -> None:
    of = Cell(workload=WorkloadSpec(batch), placement=RankLayout(ranks))
    want = [shard_bounds(batch, ranks, rank) for rank in range(ranks)]
    assert definitions.shards(of) == want
    assert [batches.own_rows(of, rank) for rank in range(ranks)] == want
    assert definitions.extents(of) == extents(of)
    whole = dataclasses.replace(of, layer=LayerSpec(router=RouterSpec(scope="global")))
    assert definitions.extents(whole) == extents(whole) == [(0, batch)]


@given(
    st.integers(1, 60), st.integers(1, 7), st.sampled_from(["float32", "bfloat16", "float16"]),
    st.integers(0, 2**31 - 1),
)  # fmt: skip
@settings(max_examples=60)
def test_ranks_together_start_with_the_batch_and_no_two_tokens_are_alike(
    batch: int, ranks: int, dtype: str, seed: int
) -> None:
    work = WorkloadSpec(batch, tokens="sharded", seed=seed)
    of = Cell(LayerSpec(dim=12, dtype=dtype), workload=work, placement=RankLayout(ranks))
    whole_BD = batches.tokens(of, (0, batch))
    parts = [batches.inputs(of, rank, CPU) for rank in range(ranks)]
    assert torch.equal(torch.cat(parts), whole_BD)
    assert [len(part) for part in parts] == [b - a for a, b in definitions.shards(of)]
    assert definitions.tokens_differ(of, whole_BD)
    everywhere = dataclasses.replace(of, workload=dataclasses.replace(work, tokens="replicated"))
    for rank in range(ranks):
        assert torch.equal(batches.inputs(everywhere, rank, CPU), whole_BD)
        assert definitions.input_rows(everywhere, rank) == (0, batch)
        assert definitions.input_rows(of, rank) == definitions.shards(of)[rank]


def test_ranks_that_all_start_with_the_first_tokens_are_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def first(cell: Cell, rank: int) -> tuple[int, int]:
        a, b = shard_bounds(cell.workload.batch_size, cell.placement.world_size, rank)
        return 0, b - a

    of = Cell(workload=WorkloadSpec(9, tokens="sharded"), placement=RankLayout(3))
    assert definitions.tokens_differ(of, torch.cat([batches.inputs(of, r, CPU)
                                                      for r in range(3)]))  # fmt: skip
    monkeypatch.setattr(batches, "own_rows", first)
    wrong_BD = torch.cat([batches.inputs(of, rank, CPU) for rank in range(3)])
    assert not definitions.tokens_differ(of, wrong_BD)


def test_one_token_twice_is_caught() -> None:
    of = Cell(workload=WorkloadSpec(30))
    x_BD = batches.tokens(of, (0, 30))
    x_BD[17] = x_BD[4]
    assert not definitions.tokens_differ(of, x_BD)


def firsts(layer: LayerSpec) -> Tensor:
    """[E + shared, 64]: 32 numbers of the first matrix of every expert, and of the last."""
    rows = []
    for expert in range(layer.num_experts + layer.shared_experts):
        parts = [weights.matrix(layer, expert, name).flatten()[:32] for name in ("w1", "w2")]
        rows.append(torch.cat(parts))
    return torch.stack(rows).double()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("activation", ["relu", "silu_gated"])
def test_experts_differ_from_each_other(activation: str, dtype: str) -> None:
    layer = LayerSpec(num_experts=256, shared_experts=2, activation=activation, dtype=dtype)
    assert definitions.experts_differ(layer, firsts(layer))
    for name in weights.names(layer)[: 3 if activation == "silu_gated" else 2]:
        alike = [weights.matrix(layer, expert, name).flatten()[:16] for expert in range(258)]
        assert len(torch.stack(alike).unique(dim=0)) == 258


@pytest.mark.parametrize(("expert", "copied"), [(1, 0), (7, 3), (8, 2)])
def test_an_expert_that_is_another_one_is_caught(
    expert: int, copied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expert 8 is the shared one."""
    layer = LayerSpec(shared_experts=1)
    right = weights.matrix

    def wrong(layer: LayerSpec, number: int, name: str) -> Tensor:
        return right(layer, copied if number == expert else number, name)

    monkeypatch.setattr(weights, "matrix", wrong)
    assert not definitions.experts_differ(layer, firsts(layer))


# What a workload's name promises.

SIZES = [
    (experts, topk, batch, ranks)
    for experts in (4, 8, 16)
    for topk in (1, 2, 3)
    for batch in (1, 3, 8, 64)
    for ranks in (2, 4)
]


def promised(kind: str, parameter: float, *sizes: int) -> Cell:
    of = cell(kind, parameter, *sizes)
    digest = "ab" if kind == "trace" else ""
    return dataclasses.replace(of, workload=dataclasses.replace(of.workload, trace_sha256=digest))


def parameters(kind: str, experts: int, topk: int, batch: int, ranks: int) -> list[float]:
    """Of many, those that are accepted."""
    most = most_imbalance(cell(kind, 0.0, experts, topk, ranks, batch))
    tried = {
        "zipf": [0.5, 1.0, 2.0],
        "k_hot": [1.0, 2.0, 3.0, 4.0, float(experts)],
        "hot_rank": [0.1, 1 / ranks, 0.4, 0.5, 2 / 3, 1.0],
        "imbalance": [1.0, 1.1, 1.5, 2.0, most],
    }.get(kind, [0.0])
    accepted = []
    for parameter in tried:
        with contextlib.suppress(Unsupported):
            check_workload(promised(kind, parameter, experts, topk, ranks, batch))
            accepted.append(parameter)
    return accepted


def trace_of(experts: int, topk: int, rows: int = 11) -> Tensor:
    draw = torch.Generator().manual_seed(rows)
    return torch.rand(rows, experts, generator=draw).argsort(1)[:, :topk]


def right(of: Cell, allowed_BE: Tensor | None, trace_NK: Tensor | None = None) -> bool:
    assert allowed_BE is not None
    return definitions.prescribed_right(of, allowed_BE, trace_NK)


@pytest.mark.parametrize("kind", ["balanced", "zipf", "k_hot", "hot_rank", "imbalance", "trace"])
def test_what_is_prescribed_is_what_the_name_promises(kind: str) -> None:
    seen = 0
    for experts, topk, batch, ranks in SIZES:
        trace_NK = trace_of(experts, topk) if kind == "trace" else None
        for parameter in parameters(kind, experts, topk, batch, ranks):
            for seed in (0, 1, 77):
                of = promised(kind, parameter, experts, topk, ranks, batch, seed)
                found_BE = allowed(of, (0, batch), trace_NK)
                assert right(of, found_BE, trace_NK), of
                seen += 1
    assert seen >= 3 * len(SIZES)  # at least one parameter for every size and seed


def moved(allowed_BE: Tensor, token: int, away: int, to: int) -> Tensor:
    """The same choice, but one token visits `to` instead of `away`."""
    found_BE = allowed_BE.clone()
    assert bool(found_BE[token, away]) and not bool(found_BE[token, to])
    found_BE[token, away], found_BE[token, to] = False, True
    return found_BE


def one_hot(experts: int, rows: Sequence[Sequence[int]]) -> Tensor:
    found = torch.zeros(len(rows), experts, dtype=torch.bool)
    return found.scatter_(1, torch.tensor(rows), True)


def right_rows(of: Cell) -> Tensor:
    found = rows(of)
    assert right(of, found)
    return found


@pytest.mark.parametrize("kind", ["balanced", "zipf", "k_hot", "hot_rank", "imbalance"])
def test_a_token_with_too_many_or_too_few_experts_is_caught(kind: str) -> None:
    parameter = {"balanced": 0.0, "zipf": 1.0, "k_hot": 3.0, "hot_rank": 0.5, "imbalance": 1.5}
    of = cell(kind, parameter[kind])
    found_BE = right_rows(of)
    less_BE, more_BE = found_BE.clone(), found_BE.clone()
    less_BE[5, int(found_BE[5].int().argmax())] = False
    more_BE[5, int(found_BE[5].int().argmin())] = True
    assert not right(of, less_BE)
    assert not right(of, more_BE)
    assert not right(of, found_BE[:-1])
    assert not right(of, torch.cat([found_BE, found_BE[:, :1]], 1))


@pytest.mark.parametrize("batch", [3, 8, 64])
def test_balanced_on_the_first_experts_is_caught(batch: int) -> None:
    of = cell("balanced", batch=batch)
    assert not right(of, one_hot(8, [[0, 1]] * batch))


@pytest.mark.parametrize("batch", [8, 64])
def test_one_slot_that_is_not_balanced_is_caught(batch: int) -> None:
    """8 experts have batch / 4 slots each; with one slot moved, one has more and one has less."""
    of = cell("balanced", batch=batch)
    even_BE = right_rows(of)
    assert even_BE.sum(0).tolist() == [batch // 4] * 8
    away, to = int(even_BE[0].int().argmax()), int(even_BE[0].int().argmin())
    assert not right(of, moved(even_BE, 0, away, to))


@pytest.mark.parametrize("hot", [1, 2, 4])
def test_another_hot_expert_for_one_token_is_caught(hot: int) -> None:
    of = cell("k_hot", float(hot))
    found_BE = right_rows(of)
    hottest_E = found_BE.sum(0).sort(descending=True)[1]
    token = 20
    away = next(int(e) for e in hottest_E[:hot] if found_BE[token, e])
    to = next(int(e) for e in hottest_E[hot:] if not found_BE[token, e])
    assert not right(of, moved(found_BE, token, away, to))


def test_a_hot_rank_that_is_another_one_is_caught() -> None:
    """With K * share whole, every token has so many slots on rank 0: 2 * 0.5 = 1."""
    of = cell("hot_rank", 0.5)
    found_BE = right_rows(of)
    assert not right(of, found_BE.roll(2, dims=1))  # the same, one rank of 2 experts further
    assert not right(of, one_hot(8, [[2, 3]] * 64))
    assert not right(of, one_hot(8, [[0, 1]] * 64))  # all of it, not half
    one = cell("hot_rank", 1.0)
    assert not right(one, moved(right_rows(one), 9, 0, 7))


def test_a_load_that_is_even_where_it_should_not_be_is_caught() -> None:
    of = cell("imbalance", 1.5)
    even_BE = right_rows(cell("balanced"))
    assert int(even_BE[:, :2].sum()) == 32  # 128 slots over 4 ranks, where 48 should be here
    assert not right(of, even_BE)
    assert not right(of, right_rows(cell("imbalance", 2.0)))
    even = cell("imbalance", 1.0)
    assert not right(even, right_rows(of))


@pytest.mark.parametrize("batch", [3, 8, 64])
def test_a_trace_that_is_shifted_is_caught(batch: int) -> None:
    of = promised("trace", 0.0, 8, 2, 4, batch)
    trace_NK = trace_of(8, 2)
    right_BE = allowed(of, (0, batch), trace_NK)
    assert right(of, right_BE, trace_NK)
    assert not right(of, allowed(of, (1, batch + 1), trace_NK), trace_NK)
    assert not right(of, allowed(of, (0, batch), trace_NK.roll(1, 0)), trace_NK)
