"""The machine of an emulated cluster: its links by hand, and a fit that finds them again."""

from __future__ import annotations

import dataclasses
from statistics import NormalDist

import pytest

from analysis.predict import emulated, features, model, network
from analysis.predict.fit import fit
from moe.cost import Call
from moe.parallel.traffic import GroupShape
from tests.support.emulated_cells import CLUSTER, MACHINE, cell, grid, measured, true_s

SHARE = 1448 / 1514
INTRA, INTER = 1e7 * SHARE, 1e6 * SHARE  # bytes/s of data


def world(size: int) -> GroupShape:
    return GroupShape("world", size, 1)


def test_a_rank_of_the_cluster_keeps_its_rates() -> None:
    assert MACHINE.matrix_rate("float32") == pytest.approx(2e9)
    assert MACHINE.read_bytes_per_s == pytest.approx(5e8)
    assert (MACHINE.intra.bytes_per_s, MACHINE.inter.bytes_per_s) == pytest.approx((INTRA, INTER))
    with pytest.raises(KeyError):
        emulated.machine(CLUSTER, {"ranks": 4})


def test_an_all_to_all_uses_both_links_at_once() -> None:
    """4 ranks in nodes of 2: of 3 MB one goes inside the node."""
    call = Call("all_to_all", world(4), "dispatch", 3e6, 3e6)
    assert network.call_times(call, MACHINE).wire_s == pytest.approx(2e6 / INTER)
    near = Call("all_to_all", world(2), "dispatch", 3e6, 3e6)
    assert network.call_times(near, MACHINE).wire_s == pytest.approx(3e6 / INTRA)
    assert network.counts(call) == {"calls": 1, "messages": 3}


def test_a_ring_that_leaves_the_node_waits_for_the_slow_link() -> None:
    for ranks, rate, turns in ((2, INTRA, 2), (4, INTER, 6), (32, INTER, 62)):
        ring = Call("all_reduce", world(ranks), "combine", 2e6, 2e6, 1, "library")
        assert network.call_times(ring, MACHINE).wire_s == pytest.approx(2e6 / rate)
        assert network.counts(ring) == {"calls": 1, "hops": turns}
    gathered = Call("all_gather", world(8), "combine", 7e6, 7e6, 1, "library")
    assert network.counts(gathered) == {"calls": 1, "hops": 7}


def test_small_and_scattered_messages_are_sent_to_all_at_once() -> None:
    for call in (
        Call("all_reduce", world(4), "combine", 3e6, 3e6, 2, "exchange"),
        Call("reduce_scatter", world(4), "combine", 3e6, 3e6, 2),
    ):
        assert network.call_times(call, MACHINE).wire_s == pytest.approx(2e6 / INTER)
        assert network.counts(call) == {"calls": 2, "messages": 6}


@pytest.mark.parametrize("ranks", [2, 4, 8, 32])
def test_the_last_of_many_ranks_is_later(ranks: int) -> None:
    """E max of n normals: n times the integral of x phi(x) Phi(x)^(n-1), here by sums."""
    normal = NormalDist()
    points = [-8 + 0.002 * i for i in range(8001)]
    exact = 0.002 * sum(ranks * x * normal.pdf(x) * normal.cdf(x) ** (ranks - 1) for x in points)
    assert features.latest(ranks) == pytest.approx(exact, abs=0.03)
    assert features.latest(1) == 0.0


def test_ranks_that_straggle_wait_for_their_work_alone() -> None:
    """At 2 GFLOP/s and 0.5 GB/s: bytes on links are in no rank's own work."""
    terms = features.terms(features.busiest(cell("ep", 4, 2, 64)), MACHINE)
    own = sum(v for (phase, term), v in terms.items() if term in ("matrix", "read", "move"))
    assert terms["wait", "straggle"] == pytest.approx(own * features.latest(4))
    alone = features.terms(features.busiest(cell("simple", 1, 2, 64)), MACHINE)
    assert ("wait", "straggle") not in alone
    on_one_machine = dataclasses.replace(MACHINE, own_links=False)
    of = features.busiest(cell("ep", 4, 2, 64))
    assert ("wait", "straggle") not in features.terms(of, on_one_machine)


def test_emulated_ranks_keep_freed_memory() -> None:
    """4,096 tokens of a rank in and out of its experts are beyond 32 MiB: on ranks that share this
    machine's links they would be mapped anew."""
    of = features.busiest(cell("ep", 4, 2, 4096))
    shared = features.terms(of, dataclasses.replace(MACHINE, own_links=False))
    assert shared["experts", "fresh"] > 0
    assert not [term for _, term in features.terms(of, MACHINE) if term == "fresh"]


def test_a_fit_on_few_ranks_finds_what_made_the_times() -> None:
    few = [m for m in measured(noise=0.0) if m.cell.placement.world_size <= 4]
    made = fit(few)
    assert made.values["", "wire"] == pytest.approx(1.03, rel=0.03)
    assert set(made.values) >= {("", "calls"), ("", "messages"), ("", "hops")}
    errors = [abs(model.time_s(of, MACHINE, made)[1] / true_s(of) - 1) for of in grid()]
    assert max(errors) < 0.05


def test_noise_makes_no_known_link_faster() -> None:
    """At 10% noise a fit without that knowledge has it 20% faster."""
    few = [m for m in measured(noise=0.1) if m.cell.placement.world_size <= 4]
    assert fit(few, folds=0).values["", "wire"] == pytest.approx(1.03, abs=0.15)
