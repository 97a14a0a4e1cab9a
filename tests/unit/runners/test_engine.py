"""The measuring engine under a fake clock, with ranks as threads' worth of plain objects."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.statistics import start_up
from benchmarks.statistics.simulated import SimulatedEngine
from runners.plan import Measure
from runners.rank.engine import CHECK_CALLS, SETTLE_S, Engine, Sample, TimedCell, precise, settled
from runners.records.record import KINDS
from runners.records.stats import COUNTED


class World:
    """R ranks in threads: real barriers, one fake clock per rank."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.gate = threading.Barrier(size)
        self.box: list[list[int]] = [[] for _ in range(size)]


class FakeRanks:
    def __init__(self, world: World, rank: int, ns_per_step: Sequence[int]) -> None:
        self.world, self.rank = world, rank
        self.clock_ns = 1_000 * rank  # ranks reach the first barrier at different times
        self.ns_per_step = list(ns_per_step)
        self.steps = 0

    def barrier(self) -> None:
        times = self.gather([self.clock_ns])
        self.clock_ns = max(t[0] for t in times) + 10 * self.rank  # exit skew

    def now_ns(self) -> int:
        return self.clock_ns

    def sync(self) -> None:
        pass

    def step(self) -> None:
        self.clock_ns += self.ns_per_step[self.steps % len(self.ns_per_step)]
        self.steps += 1

    def broadcast(self, value: int) -> int:
        return self.gather([value])[0][0]

    def gather(self, values: Sequence[int]) -> list[list[int]]:
        self.world.box[self.rank] = list(values)
        self.world.gate.wait(timeout=20)
        everyone = [list(v) for v in self.world.box]
        self.world.gate.wait(timeout=20)
        return everyone


Check = Callable[[int, int, int], bool]  # whether a cell is right, of rank, cell, calls of its own


def run_world(
    measure: Measure, schedules: list[list[list[int]]], check: Check | None = None
) -> tuple[list[list[Sample]], list[str]]:
    """schedules[rank][cell] = ns of successive steps; samples and stop rule of every rank. With
    `check`, it is asked after every block and every call that is not timed."""
    world = World(len(schedules))
    samples: list[list[Sample]] = [[] for _ in schedules]
    rules = [""] * len(schedules)
    errors: list[BaseException] = []

    def rank_main(rank: int) -> None:
        try:
            ranks = FakeRanks(world, rank, [1])
            engine = Engine(ranks, measure, samples[rank].append, lambda: None)
            engine.measure_floor(5)
            cells = []
            for index, schedule in enumerate(schedules[rank]):
                own, calls = list(schedule), [0]

                def step(own: list[int] = own, calls: list[int] = calls) -> None:
                    ranks.clock_ns += own[ranks.steps % len(own)]
                    ranks.steps += 1
                    calls[0] += 1

                cells.append(TimedCell(index, step))
                if check is not None:

                    def asked(when: str, index: int = index, calls: list[int] = calls) -> bool:
                        return check(rank, index, calls[0])

                    cells[-1].check = asked
            for cell in cells:
                engine.size_block(cell)
                engine.warm_up(cell)
            rules[rank] = engine.run(cells, "seed")
        except BaseException as error:
            errors.append(error)
            world.gate.abort()

    threads = [threading.Thread(target=rank_main, args=(r,)) for r in range(len(schedules))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors, errors
    return samples, rules


def shape(samples: list[Sample]) -> list[tuple[int, str, int, int, int]]:
    return [(s.cell, s.kind, s.round, s.position, s.steps) for s in samples]


def test_fixed_rounds_give_that_many_samples_of_every_cell() -> None:
    measure = Measure(samples=4, samples_max=4, block=3, anchors=2, warmup=1, warmup_max=1)
    samples, rules = run_world(measure, [[[100], [200]], [[150], [50]]])
    rounds = [s for s in samples[0] if s.kind in COUNTED]
    assert rules == ["fixed", "fixed"]
    assert sorted((s.round, s.cell) for s in rounds) == [(r, c) for r in range(4) for c in (0, 1)]
    assert all(s.steps == 3 for s in rounds)
    assert [s.kind for s in samples[0] if s.kind.startswith("anchor")] == [
        *["anchor-first"] * 2,
        *["anchor-middle"] * 2,
        *["anchor-last"] * 2,
    ]
    assert all(s.end_ns - s.start_ns == 3 * (100 if s.cell == 0 else 200) for s in rounds)
    assert not [s for s in samples[0] if s.kind in ("short", "long", "latency")]


def test_the_long_block_lasts_the_minimum_time_and_the_short_one_a_quarter() -> None:
    measure = Measure(samples=2, samples_max=2, block_ms=1.0, anchors=0)
    samples, _ = run_world(measure, [[[1_000]], [[1_000]]])
    steps = {k: {s.steps for s in samples[0] if s.kind == k} for k in ("short", "long", "latency")}
    assert {kind: len(found) for kind, found in steps.items()} == dict.fromkeys(steps, 1)
    short, long, latency = (found.pop() for found in steps.values())
    assert 700 <= long <= 2_000  # 1 us steps, 1 ms blocks
    assert (short, latency) == (round(long / 4), 1)


def test_long_steps_are_timed_by_two_and_eight_of_them() -> None:
    samples, _ = run_world(Measure(samples=1, samples_max=1, anchors=0), [[[50_000_000]]])
    assert [(s.kind, s.steps) for s in sorted(samples[0], key=lambda s: s.kind)
            if s.cell == 0 and s.kind in KINDS and s.kind != "warmup"] == [
        ("latency", 1), ("long", 8), ("short", 2)]  # fmt: skip


def test_ranks_that_share_a_core_get_blocks_of_two_turns_and_more() -> None:
    engine = SimulatedEngine(Measure(block_ms=1.0), random.Random(0))
    engine.turn_ms = 12.0
    cell = engine.cell(0, 1.0)
    assert (cell.short, cell.steps) == (24, 96)


@pytest.mark.parametrize("cells", [2, 3, 4, 5, 9])
def test_every_block_of_a_round_follows_one_of_another_cell(cells: int) -> None:
    measure = Measure(samples=6, samples_max=6, block_ms=0.01, anchors=0, per_round=2)
    samples, _ = run_world(measure, [[[1_000]] * cells])
    for number in range(3):
        order = [s for s in samples[0] if s.round == number and s.kind in (*KINDS[1:], "floor")]
        assert [s.position for s in order] == list(range(5 * cells + 1))
        assert sum(s.kind == "floor" for s in order) == 1
        timed = [s.cell for s in order if s.kind != "floor"]
        assert all(a != b for a, b in itertools.pairwise(timed))
        kinds = Counter((s.cell, s.kind) for s in order if s.kind != "floor")
        wanted = {"short": 2, "long": 2, "latency": 1}
        assert kinds == {(c, k): n for c in range(cells) for k, n in wanted.items()}


def test_a_cell_that_is_built_anew_has_its_blocks_of_a_round_at_once() -> None:
    engine = SimulatedEngine(Measure(anchors=0, samples=3, samples_max=3), random.Random(0))
    taken: list[Sample] = []
    engine.emit = taken.append
    built: list[int] = []
    cells = [engine.cell(index, 1.0) for index in range(2)]
    for cell in cells:
        cell.resident = False
        cell.active = lambda cell=cell: built.append(cell.index) or nullcontext()  # type: ignore[misc]
    engine.run(cells, "seed")
    assert sorted(built) == [0, 0, 0, 1, 1, 1]
    assert len({(s.cell, s.round, s.position) for s in taken if s.kind == "long"}) == 6


@pytest.mark.parametrize("step_ms", start_up.STEPS_MS)
def test_what_a_block_costs_at_its_start_is_not_in_the_time_of_a_step(step_ms: float) -> None:
    """0.5 ms a block and 30% on its first two steps; exact without noise, within 1% with it."""
    engine = SimulatedEngine(Measure(anchors=0), random.Random(0))
    cell = engine.cell(0, step_ms, start_up.START)
    engine.run([cell], "seed")
    assert cell.rounds_ms == pytest.approx([step_ms] * max(6, len(cell.rounds_ms)))
    found = start_up.bias(step_ms, 40)
    assert abs(found["bias"]) < 0.005 < found["bias_of_block_mean"]


def test_a_planted_difference_is_found_though_starts_differ_and_none_is_made_up() -> None:
    planted = Counter(start_up.comparison(0.05, seed) for seed in range(20))
    alike = Counter(start_up.comparison(0.0, seed) for seed in range(20))
    assert planted["slower"] >= 18
    assert alike["faster"] + alike["slower"] <= 1


def test_precision_ends_a_quiet_wave_at_the_minimum_and_noise_goes_to_the_maximum() -> None:
    measure = Measure(samples=6, samples_max=12, block=1, anchors=0, precision=0.01)
    _, quiet = run_world(measure, [[[1000]]])
    samples, noisy = run_world(measure, [[[1000, 5000, 200, 9000, 30]]])
    assert quiet == ["precision"]
    assert noisy == ["maximum"]
    assert len([s for s in samples[0] if s.kind in COUNTED]) == 12


def test_the_wall_limit_ends_a_wave_that_has_its_minimum() -> None:
    measure = Measure(samples=6, samples_max=99, block=1, anchors=0, wall_limit_s=1e-6, precision=0)
    samples, rules = run_world(measure, [[[1000, 5000, 200]]])
    assert rules == ["wall"]
    assert len([s for s in samples[0] if s.kind in COUNTED]) == 6


def test_random_order_differs_between_rounds_and_is_the_same_on_every_rank() -> None:
    measure = Measure(samples=6, samples_max=6, block=1, anchors=0)
    samples, _ = run_world(measure, [[[100]] * 5, [[300]] * 5])
    orders = [
        [[s.cell for s in rank if s.kind in COUNTED and s.round == r] for r in range(6)]
        for rank in samples
    ]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders[0]}) > 1
    assert all(sorted(order) == list(range(5)) for order in orders[0])


def test_product_order_measures_one_cell_after_the_other() -> None:
    measure = Measure(samples=3, samples_max=3, block=1, anchors=0, order="product")
    samples, _ = run_world(measure, [[[100]] * 3])
    assert [s.cell for s in samples[0] if s.kind in COUNTED] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_cell_that_is_wrong_on_one_rank_takes_part_in_no_further_round() -> None:
    """Cell 1 is seen to be wrong by rank 1 alone, from its 14th call on."""
    measure = Measure(samples=6, samples_max=6, block=3, anchors=2, warmup=1, warmup_max=1)
    samples, rules = run_world(
        measure,
        [[[100], [20], [300]]] * 2,
        lambda rank, cell, calls: (rank, cell) != (1, 1) or calls < 14,
    )
    assert rules == ["fixed", "fixed"]
    assert shape(samples[0]) == shape(samples[1])
    rounds = {
        c: {s.round for s in samples[0] if (s.cell, s.kind) == (c, "fixed")} for c in range(3)
    }
    assert rounds[0] == rounds[2] == set(range(6))
    assert rounds[1] == {0, 1}
    places = {s.kind: s.cell for s in samples[0] if s.kind.startswith("anchor")}
    assert places == {"anchor-first": 1, "anchor-middle": 0, "anchor-last": 0}


def test_a_wave_ends_when_no_cell_is_right() -> None:
    measure = Measure(samples=6, samples_max=6, block=3, anchors=0, warmup=1, warmup_max=1)
    samples, rules = run_world(measure, [[[100]]] * 2, lambda rank, cell, calls: calls < 12)
    assert rules == ["wrong", "wrong"]
    assert {s.round for s in samples[0] if s.kind == "fixed"} == {0, 1}


def test_every_block_is_looked_at_and_calls_between_that_are_not_timed() -> None:
    asked: list[list[tuple[int, int]]] = [[], []]

    def look(rank: int, cell: int, calls: int) -> bool:
        asked[rank].append((cell, calls))
        return True

    measure = Measure(samples=8, samples_max=8, block=5, anchors=1, warmup=1, warmup_max=1)
    samples, _ = run_world(measure, [[[100], [200]]] * 2, look)
    assert asked[0] == asked[1]
    for cell in (0, 1):
        mine = [calls for index, calls in asked[0] if index == cell]
        blocks = [s for s in samples[0] if s.cell == cell]
        extra = len(mine) - len(blocks)
        assert 2 <= extra <= 2 * CHECK_CALLS  # in two of eight rounds
        steps = [later - earlier for earlier, later in itertools.pairwise(mine)]
        assert steps.count(1) >= extra - 2  # of one call each; the lead-in may come before


@settings(max_examples=40)
@given(
    st.integers(1, 3).flatmap(
        lambda cells: st.lists(
            st.lists(
                st.lists(st.integers(1, 100_000), min_size=1, max_size=7),
                min_size=cells,
                max_size=cells,
            ),
            min_size=1,
            max_size=4,
        )
    ),
    st.integers(1, 8),
    st.integers(0, 12),
    st.sampled_from([0.0, 0.05, 0.5]),
    st.sampled_from([0, 1, 5]),
)
def test_ranks_never_disagree_on_the_samples(
    schedules: list[list[list[int]]], least: int, extra: int, precision: float, block: int
) -> None:
    measure = Measure(
        samples=least, samples_max=least + extra, precision=precision, block=block, block_ms=0.05,
        anchors=1, wall_limit_s=0.001,
    )  # fmt: skip
    samples, rules = run_world(measure, schedules)
    assert len(set(rules)) == 1
    assert all(shape(rank) == shape(samples[0]) for rank in samples)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0], True), ([1.0, 1.05], True), ([2.0, 1.0], False), ([5, 1.0, 1.0, 1.02], True)],
)
def test_settled(values: list[float], expected: bool) -> None:
    assert settled(values) is expected


def test_precise_needs_six_values_and_a_narrow_interval() -> None:
    assert not precise([1.0] * 5, 0.1)
    assert precise([1.0] * 6, 0.0)
    assert not precise([1.0, 1.0, 1.0, 1.0, 1.0, 1.5], 0.1)


@given(
    slow=st.lists(st.integers(2_000_000, 90_000_000), max_size=30),
    steady_ns=st.integers(1_000_000, 5_000_000),
)
@settings(max_examples=25)
def test_control_blocks_go_on_until_they_agree(slow: list[int], steady_ns: int) -> None:
    """Steps of any length at first, then even ones: all ranks stop after the same block."""
    world, ends = World(2), [0, 0]

    def rank_main(rank: int) -> bool:
        ranks = FakeRanks(world, rank, [*slow, *[steady_ns] * 100_000])
        agreed = Engine(ranks, Measure(), lambda sample: None, lambda: None).settle(ranks.step)
        ends[rank] = ranks.steps
        return agreed

    with ThreadPoolExecutor(2) as pool:
        agreed = list(pool.map(rank_main, range(2)))
    assert agreed == [True, True]
    assert ends[0] == ends[1]


def test_a_machine_that_does_not_settle_is_not_waited_for_longer_than_said() -> None:
    world, clocks = World(2), [0, 0]

    def rank_main(rank: int) -> bool:
        ranks = FakeRanks(world, rank, [n * 1_000_000 for n in range(1, 400_000)])
        agreed = Engine(ranks, Measure(), lambda sample: None, lambda: None).settle(ranks.step)
        clocks[rank] = ranks.clock_ns
        return agreed

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(rank_main, range(2))) == [False, False]
    assert all(clock < 2 * SETTLE_S * 1e9 for clock in clocks)
