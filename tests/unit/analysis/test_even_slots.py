"""`check --submission`: forced balance that is not labelled."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest

from analysis.packing import even_slots, submission
from moe.spec import RouterSpec
from runners.records.record import Record
from tests.support import analysis_factory as factory
from tests.support.submissions import EVEN, measured, only_problem, review


def exact(tokens: int, experts: int, topk: int) -> Fraction:
    """Probability of equal slots: the ways to get them, counted token by token, over all ways."""
    choices = list(itertools.combinations(range(experts), topk))
    share, counts = tokens * topk // experts, Counter({(0,) * experts: 1})
    for _ in range(tokens):
        after: Counter[tuple[int, ...]] = Counter()
        for slots, ways in counts.items():
            for chosen in choices:
                more = sorted(n + (e in chosen) for e, n in enumerate(slots))
                if more[-1] <= share:
                    after[tuple(more)] += ways
        counts = after
    return Fraction(counts[(share,) * experts], len(choices) ** tokens)


def test_the_estimate_is_above_the_probability_and_near_it() -> None:
    assert exact(2, 2, 1) == Fraction(1, 2) and exact(4, 2, 1) == Fraction(3, 8)  # by hand
    sizes = [
        (tokens, experts, topk)
        for experts in (2, 3, 4, 5)
        for topk in range(1, experts)
        for tokens in range(1, 11)
        if tokens * topk % experts == 0
    ]
    assert len(sizes) > 20
    for size in sizes:
        assert exact(*size) < even_slots.probability(*size) < 2 * exact(*size), size


@pytest.mark.parametrize(("tokens", "experts", "topk", "suspicious"), [
    (4, 8, 2, False),  # one of a thousand such cells
    (64, 8, 2, False),  # 7e-7 by the estimate
    (1024, 8, 2, True),
    (64, 64, 8, True),
    (4096, 2, 1, False),  # two experts: one cell of 60
    (4096, 8, 8, False),  # every token visits all experts
])  # fmt: skip
def test_equal_slots_are_refused_where_chance_does_not_make_them(
    tokens: int, experts: int, topk: int, suspicious: bool
) -> None:
    slots = [tokens * topk // experts] * experts
    for kind in ("learned", "zipf", "k_hot"):
        cell = factory.cell(batch=tokens, experts=experts, topk=topk, workload=(kind, 1.0))
        assert even_slots.are_suspicious(cell, slots) is suspicious
    one_more = [slots[0] + 1, *slots[1:-1], slots[-1] - 1]
    assert not even_slots.are_suspicious(cell, one_more)


@pytest.mark.parametrize("kind", ["balanced", "imbalance", "hot_rank", "trace"])
def test_workloads_that_prescribe_counts_pass(kind: str) -> None:
    cell = factory.cell(batch=65536, workload=(kind, 1.0))
    assert not even_slots.are_suspicious(cell, EVEN["expert_slots"])


@pytest.mark.parametrize("rule", [
    {"kind": "expert_choice"}, {"capacity_factor": 1.0}, {"groups": 4},
    {"selection_bias": "balanced"},
])  # fmt: skip
def test_routers_that_make_counts_equal_pass(rule: dict[str, Any]) -> None:
    cell = factory.cell(batch=65536, router=RouterSpec(**rule))
    assert not even_slots.are_suspicious(cell, EVEN["expert_slots"])


@pytest.mark.parametrize("slots", [None, [], [0] * 8, [2] * 4, [16] * 8, [3, 1] * 3 + [3, 0]])
def test_slots_that_are_not_of_all_tokens_are_missing(slots: list[int] | None) -> None:
    """Of 8 tokens and top-k 2 of 8 experts: 8 numbers of sum 16."""
    result = review(measured(skew=slots and {"expert_slots": slots}))
    assert only_problem(result).startswith("its slots were not recorded, or not of all tokens")
    for prescribed in ({"workload": ("balanced", 0.0)}, {"topk": 8}):
        of = factory.cell("tp", **prescribed)
        assert review(measured(of=of, skew=None)).problems == ()


def small(strategy: str = "tp", batch: int = 16, seed: int = 0, **layer: Any) -> Record:
    """Equal slots, which for 16 tokens and top-k 2 of 8 experts have a probability of 8e-5."""
    of = factory.cell(strategy, batch=batch, **layer)
    of = dataclasses.replace(of, workload=dataclasses.replace(of.workload, seed=seed))
    slots = of.workload.batch_size * of.layer.topk // of.layer.num_experts
    return measured(of=of, skew={"expert_slots": [slots] * of.layer.num_experts})


def test_equal_slots_that_chance_can_make_are_remarked_on() -> None:
    one = small()
    assert even_slots.probability(16, 8, 2) == pytest.approx(8.1e-5, rel=0.01)
    assert review(one, measured()) == submission.Review((), (
        f"all experts have equally many slots under a workload that draws them: 1 attempt (tp "
        f"{one.attempt_id}); few tokens have them by chance; workload=balanced prescribes them",
    ))  # fmt: skip


def test_equal_slots_in_so_many_cells_are_refused() -> None:
    """8e-5 to the power of two is above 1e-9, to the power of three below."""
    assert review(*(small(seed=seed) for seed in range(2))).problems == ()
    records = [small(seed=seed) for seed in range(3)]
    names = ", ".join(f"tp {one.attempt_id}" for one in records)
    assert only_problem(review(*records)) == (
        "so many cells have equally many slots for all experts, which is forced balance: 3 "
        f"attempts ({names}); next: measure with workload=balanced, which is labelled so"
    )


def test_a_routing_counts_once_whatever_is_measured_with_it() -> None:
    """One draw of tokens by many strategies and sizes, and its choices of 1 and 2 experts."""
    alike = [small(name, hidden=size) for name in ("tp", "ep", "simple") for size in (64, 128)]
    assert review(*alike, small(topk=1), small(dtype="bfloat16")).problems == ()


def test_batches_of_one_seed_are_counted_by_what_they_add() -> None:
    """4, 8 and 12 tokens: three times 4 that have equal slots, each with probability p."""
    p = even_slots.probability(4, 8, 2)

    def chance(*batches: int) -> float:
        records = [small(batch=batch) for batch in batches]
        slots = [(one.skew or {})["expert_slots"] for one in records]
        routings = [even_slots.routing(one.cell, s) for one, s in zip(records, slots, strict=True)]
        return even_slots.chance([one for one in routings if one])

    assert chance(4) == pytest.approx(p)
    assert chance(4, 8) == pytest.approx(p**2) and chance(4, 8, 12) == pytest.approx(p**3)
    assert chance(8) == pytest.approx(even_slots.probability(8, 8, 2))


def test_among_many_routings_some_are_equal_by_chance() -> None:
    """Two of four: C(4, 2) = 6 pairs that could be the equal ones; none equal: certain."""
    equal, others = (
        [even_slots.Routing(("drawn", seed), 8, 2, "float32", 16, is_equal) for seed in seeds]
        for is_equal, seeds in ((True, (0, 1)), (False, (2, 3)))
    )
    p = even_slots.probability(16, 8, 2)
    assert even_slots.chance(equal) == pytest.approx(p**2)
    assert even_slots.chance([*equal, *others]) == pytest.approx(6 * p**2)
    assert even_slots.chance(others) == even_slots.chance([]) == 1.0


def test_an_even_trace_is_remarked_on() -> None:
    of = factory.cell("tp", batch=65536, workload=("trace", 0.0))
    of = dataclasses.replace(of, workload=dataclasses.replace(of.workload, trace_sha256="ab" * 32))
    result = review(measured(of=of, skew=EVEN))
    assert result.problems == ()
    assert result.remarks[0].startswith(
        "a trace gives all experts equally many slots: 1 attempt (tp "
    )
    assert review(measured(of=of)).remarks == ()
