"""The calibration: its fits and cache by small examples, its time by a fake clock, its measurement
by a real launch."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.parallel import algorithms
from moe.spec import RankLayout
from runners.host import environment, hardware
from runners.plan import Measure
from runners.rank import calibrate, links, probe
from runners.records import calibrations as limits
from runners.sweep import entry
from runners.sweep.activity import RankStage
from runners.sweep.progress import Progress
from tests.support import fake_group

ROOT = Path(__file__).resolve().parents[2]


def calibration(**changes: Any) -> dict[str, Any]:
    return {
        "fingerprint": "f" * 12,
        "ranks": 2,
        "threads": 1,
        "backend": "gloo",
        "read_bytes_per_s": 1e10,
        "copy_bytes_per_s": 2e10,
        "read_warm_bytes_per_s": {"1024": 5e10},
        "matmul_flops_per_s": {"float32": {"1x2x3": 1e9, "peak": 1e9}},
        "shared": {
            "read_bytes_per_s": 1e10,
            "copy_bytes_per_s": 2e10,
            "matmul_flops_per_s": {"float32": 1e9},
        },
        "collectives": {"barrier": {"alpha_s": 1e-5, "beta_s_per_byte": 0.0, "error": 0.0}},
        "exchanged": {"all_reduce": 65536, "all_gather": 65536},
        **changes,
    }


@given(
    alpha=st.floats(1e-6, 1e-2),
    beta=st.floats(0, 1e-8),
    sizes=st.lists(st.integers(1, 10**8), min_size=2, max_size=8, unique=True),
)
def test_fit_finds_the_line_that_made_the_points(
    alpha: float, beta: float, sizes: list[int]
) -> None:
    times = [alpha + beta * size for size in sizes]
    found_alpha, found_beta, error = limits.fit_line(sizes, times)
    assert error < 1e-6
    for size, time in zip(sizes, times, strict=True):
        assert math.isclose(found_alpha + found_beta * size, time, rel_tol=1e-6)


def test_fit_of_one_point_is_all_latency_and_never_negative() -> None:
    assert limits.fit_line([0.0], [5e-6]) == (5e-6, 0.0, 0.0)
    alpha, beta, error = limits.fit_line([10.0, 20.0], [1.0, 4.0])  # a line would start below 0
    assert alpha == 0.0
    assert beta > 0
    assert error > 0.1
    assert limits.fit_line([10.0, 20.0], [4.0, 1.0])[1] == 0.0  # falling times: no bandwidth


def test_cache_keeps_the_better_rate_and_the_newer_fit(tmp_path: Path) -> None:
    limits.store(tmp_path, calibration())
    shapes = {"float32": {"1x2x3": 5e8, "4x4x4": 3e9, "peak": 3e9}}
    newer = {"all_reduce": {"alpha_s": 1e-3, "beta_s_per_byte": 1e-9, "error": 0.1}}
    slower = calibration(read_bytes_per_s=9e9, matmul_flops_per_s=shapes, collectives=newer)
    best = limits.store(tmp_path, slower)
    assert best["read_bytes_per_s"] == 1e10
    assert best["matmul_flops_per_s"]["float32"] == {"1x2x3": 1e9, "4x4x4": 3e9, "peak": 3e9}
    assert best["collectives"] == {**calibration()["collectives"], **newer}
    again = {"barrier": {"alpha_s": 2e-5, "beta_s_per_byte": 0.0, "error": 0.0}}
    best = limits.store(tmp_path, calibration(collectives=again))
    assert best["collectives"] == {**again, **newer}  # the newer fit, and what it lacks
    assert limits.load_cached(tmp_path, "f" * 12, 2, 1, "gloo") == best


def test_cache_is_per_machine_ranks_threads_and_backend(tmp_path: Path) -> None:
    limits.store(tmp_path, calibration())
    assert limits.load_cached(tmp_path, "f" * 12, 2, 1, "gloo") is not None
    for other in (("0" * 12, 2, 1, "gloo"), ("f" * 12, 3, 1, "gloo"), ("f" * 12, 2, 2, "gloo")):
        assert limits.load_cached(tmp_path, *other) is None
    assert limits.load_cached(tmp_path, "f" * 12, 2, 1, "mpi") is None


def test_one_from_before_messages_were_exchanged_is_measured_anew(tmp_path: Path) -> None:
    older = calibration(read_bytes_per_s=9e10)
    del older["exchanged"]
    limits.store(tmp_path, older)
    assert limits.load_cached(tmp_path, "f" * 12, 2, 1, "gloo") is None
    limits.store(tmp_path, calibration())
    assert limits.load_cached(tmp_path, "f" * 12, 2, 1, "gloo") == calibration()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b'{"fingerprint": "ffff',
        b"[]",
        b"\xff\xfe",
        json.dumps(calibration(read_bytes_per_s="fast")).encode(),
        json.dumps(calibration(copy_bytes_per_s=-1.0)).encode(),
        json.dumps({k: v for k, v in calibration().items() if k != "shared"}).encode(),
    ],
)
def test_a_damaged_cache_is_named_and_set_aside(tmp_path: Path, damage: bytes) -> None:
    path = limits.cache_path(tmp_path, "f" * 12, 2, 1, "gloo")
    path.write_bytes(damage)
    with pytest.warns(UserWarning, match=path.name):
        assert limits.load_cached(tmp_path, "f" * 12, 2, 1, "gloo") is None
    assert not path.exists()
    assert path.with_suffix(".damaged").read_bytes() == damage
    assert limits.store(tmp_path, calibration())["ranks"] == 2


def test_the_ways_to_multiply_agree() -> None:
    x, w = torch.randn(3, 8), torch.randn(5, 8)
    one, two, three, *packed = (way(x) for way in probe.products(w))
    for other in (two, three.t(), *packed):
        torch.testing.assert_close(one, other)


def test_cold_reads_never_repeat_a_chunk_while_others_are_left() -> None:
    memory = probe.Memory(probe.Probe(torch.device("cpu")), ranks=8)
    seen = [memory.chunk().data_ptr() for _ in memory.chunks]
    assert len(set(seen)) == len(seen) >= 2
    assert memory.chunks[0].count_nonzero() > 0.99 * memory.chunks[0].numel()


class Clock:
    """A clock that only work and sleep move."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def pass_(self, seconds: float) -> None:
        self.now_s += seconds


def a_probe(clock: Clock) -> probe.Probe:
    return probe.Probe(torch.device("cpu"), clock, clock.pass_)


COSTS = st.lists(  # of a way: seconds of a call, and of each row besides
    st.tuples(st.floats(1e-4, 0.2), st.floats(1e-6, 0.1)), min_size=1, max_size=5
)


@given(costs=COSTS, limit_s=st.floats(0.05, 20))
def test_products_are_timed_within_their_time_however_slow_a_way_is(
    costs: list[tuple[float, float]], limit_s: float
) -> None:
    clock, asked = Clock(), []

    def way(fixed_s: float, row_s: float) -> probe.Way:
        def step(x_MK: torch.Tensor) -> torch.Tensor:
            asked.append(len(x_MK))
            clock.pass_(fixed_s + row_s * len(x_MK))
            return x_MK

        return step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "products", lambda w: [way(*cost) for cost in costs])
        patch.setattr(probe.Probe, "random", lambda self, *shape, dtype=None: torch.empty(shape))
        found = probe.matmul_rates(a_probe(clock), torch.float32, clock() + limit_s)
    one_row_s = sum(fixed + row for fixed, row in costs)
    assert clock() - 100 <= limit_s + 2 * one_row_s + 1e-9  # of which nothing was known before
    assert len(found.way) + found.left_out == 12
    assert max(asked, default=0) == max(int(shape.split("x")[0]) for shape in found.way)
    for shape, rate in found.flops_per_s.items():
        m, n, k = map(int, shape.split("x"))
        fixed_s, row_s = costs[found.way[shape]]
        assert math.isclose(rate, 2 * m * n * k / (fixed_s + row_s * m), rel_tol=1e-6)


def test_with_time_enough_the_fastest_way_of_every_shape_is_found() -> None:
    """Among them one that is slow to begin and fastest with many rows, and one that is hopeless."""
    clock = Clock()
    costs = [(1e-3, 1e-3), (7e-3, 2e-4), (0.06, 0.06)]
    calls = [[0] * 1025 for _ in costs]

    def way(number: int) -> probe.Way:
        def step(x_MK: torch.Tensor) -> torch.Tensor:
            calls[number][len(x_MK)] += 1
            clock.pass_(costs[number][0] + costs[number][1] * len(x_MK))
            return x_MK

        return step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "products", lambda w: [way(number) for number in range(3)])
        patch.setattr(probe.Probe, "random", lambda self, *shape, dtype=None: torch.empty(shape))
        found = probe.matmul_rates(a_probe(clock), torch.float32, clock() + 20)
    assert found.left_out == 0
    for shape, chosen in found.way.items():
        assert chosen == (0 if int(shape.split("x")[0]) < 8 else 1), shape
    assert sum(calls[2][2:]) == 0


class FakeWorld:
    """The ranks' group, where every collective takes a time that all ranks pass together."""

    def __init__(self, exchange: fake_group.Exchange, rank: int, call_s: float, skew_s: float):
        self.exchange, self.rank, self.size = exchange, rank, exchange.size
        self.call_s = call_s
        self.clock = Clock()
        self.clock.pass_(skew_s * rank)  # ranks do not start at once, and their clocks differ
        self.comm: Any = SimpleNamespace(
            device=torch.device("cpu"), world=self, world_size=self.size, rank=rank,
            barrier=self.barrier, exchanging=lambda limits: contextlib.nullcontext(),
        )  # fmt: skip

    def meet(self, name: str, value: Any = None, sent: float = 0.0) -> list[Any]:
        found = self.exchange.swap(self.rank, (name, value))
        assert {other for other, _ in found} == {name}, "ranks are at different collectives"
        self.clock.pass_(self.call_s * (1 + self.rank / 10) + 1e-9 * sent)
        return [one for _, one in found]

    def barrier(self) -> None:
        self.meet("barrier")

    def combine_(self, x: torch.Tensor, operation: str = "max") -> torch.Tensor:
        found = torch.stack(self.meet(operation, x.clone()))
        return x.copy_(found.sum(0) if operation == "sum" else found.max(0).values)

    def broadcast_(self, x: torch.Tensor) -> torch.Tensor:
        return x.copy_(self.meet("broadcast", x.clone())[0])

    def all_reduce_(self, x: torch.Tensor) -> object:
        return self.meet("all_reduce", None, 2 * x.nbytes)

    def all_gather(self, x: torch.Tensor, sizes: list[int]) -> object:
        return self.meet("all_gather", None, x.nbytes * self.size)

    def all_to_all(self, x: torch.Tensor, received: list[int], sent: list[int]) -> object:
        return self.meet("all_to_all", None, x.nbytes)

    def reduce_scatter(self, x: torch.Tensor, sizes: list[int]) -> object:
        return self.meet("reduce_scatter", None, x.nbytes)


def on_ranks(
    size: int, call_s: float, skew_s: float, work: Callable[[probe.Probe, FakeWorld], Any]
) -> list[Any]:
    def rank(group: fake_group.FakeGroup) -> Any:
        world = FakeWorld(group.exchange, group.index, call_s, skew_s)
        return work(a_probe(world.clock), world)

    return fake_group.on_ranks(size, rank)


@given(
    ranks=st.integers(2, 4),
    call_s=st.floats(2e-3, 0.5),
    skew_s=st.floats(0, 3),
    limit_s=st.floats(0.01, 3),
)
@settings(max_examples=30)
def test_ranks_stop_together_and_in_time(
    ranks: int, call_s: float, skew_s: float, limit_s: float
) -> None:
    ended: list[float] = [0.0] * ranks

    def work(one: probe.Probe, world: FakeWorld) -> Any:
        found = links.collective_fits(one, cast(Any, world), 100 + limit_s)
        ended[world.rank] = one.clock() - 100
        return found

    first, *others = on_ranks(ranks, call_s, skew_s, work)
    assert all(found == first for found in others)
    point_s = 18 * (call_s + 1e-2)  # what a single size takes at least: calls, barriers, exchanges
    assert ended[0] <= max(point_s, limit_s + 0.2)
    for name, fit in first.items():
        assert len(fit["points"]) >= (1 if name == "barrier" else 2)
        assert fit["points"] == sorted(fit["points"])
    missing = sum(int(said.split()[0]) for said in links.left_out(first))
    timed = sum(len(fit["points"]) for fit in first.values())
    assert missing + timed == 1 + 4 * 4
    if limit_s > 100 * point_s:
        assert missing == 0


@pytest.mark.parametrize(("step_s", "windows"), [(0.01, 3), (5.0, 1)])
def test_all_ranks_work_in_as_many_windows_as_there_is_time_for(
    step_s: float, windows: int
) -> None:
    def work(one: probe.Probe, world: FakeWorld) -> tuple[float, int]:
        steps: list[float] = []

        def step() -> None:
            steps.append(one.clock())
            cast(Clock, one.clock).pass_(step_s * (1 + world.rank))

        rate = calibrate.concurrent_rate(step, 3.0, one, world.comm, 100.9)
        gaps = [b - a for a, b in itertools.pairwise(steps)]
        taken = 1 + sum(gap > 1.5 * step_s * (1 + world.rank) for gap in gaps)
        return rate, taken

    found = on_ranks(3, 0.05, 0.0, work)
    for rate, taken in found:
        assert taken == windows
        assert math.isclose(rate, 3.0 / step_s * (1 + 1 / 2 + 1 / 3), rel_tol=0.01)


def test_rows_of_all_ranks_at_once_fit_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "usable_cores", lambda: 2)
    n, k = probe.MATRICES[0]
    found = probe.Products({f"{m}x{n}x{k}": 2 * n * k / 1e-3 for m in (1, 8, 64)})  # 1 ms a row
    assert calibrate.rows_within(found, 2, 0.1) == 64
    assert calibrate.rows_within(found, 8, 0.1) == 8  # four ranks a core
    assert calibrate.rows_within(found, 1, 1e-6) == 1


def test_what_was_left_out_is_told_with_how_to_measure_it() -> None:
    fit = {"alpha_s": 1e-5, "beta_s_per_byte": 1e-9, "error": 0.1, "points": [[1, 1, 1]] * 3}
    whole = {**calibration(), "collectives": {"all_reduce": fit}, "limit_s": 7.5, "left_out": []}
    assert "--limit" not in limits.describe(whole)
    told = limits.describe({**whole, "left_out": ["4 of 4 sizes of all_gather"]})
    assert "within 7.5 s: 4 of 4 sizes of all_gather" in told
    assert "--ranks 2 --threads 1 --backend gloo --limit" in told
    assert "fit of 3 sizes" in told


def test_a_calibration_is_said_while_it_runs_and_what_bounds_it() -> None:
    said = io.StringIO()
    plan = cast(
        Any, SimpleNamespace(placement=RankLayout(world_size=6, backend="mpi"),
                             measure=Measure(calibration_limit_s=9.0), waves=[]),
    )  # fmt: skip
    shown = Progress(said)
    for stage in ("environment", "calibrate", "calibrate", "settle"):
        shown.update(plan, RankStage(stage=stage))
    assert said.getvalue().count("calibrating") == 1
    assert "calibrating, once for 6 ranks on mpi, at most 9 s" in said.getvalue()


@pytest.mark.dist
@pytest.mark.parametrize("backend", ["gloo", "mpi"])
def test_calibrating_two_ranks_from_the_command_line(tmp_path: Path, backend: str) -> None:
    command = [sys.executable, "-m", "runners.calibrate", "--ranks", "2", "--backend", backend]
    command += ["--limit", "2", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.json")
    found = limits.read(path)
    assert (found["ranks"], found["backend"]) == (2, backend)
    timed = {name: len(fit["points"]) for name, fit in found["collectives"].items()}
    missing = sum(int(text.split()[0]) for text in found["left_out"] if "sizes of" in text)
    assert set(timed) <= set(links.COLLECTIVES)
    assert sum(timed.values()) + missing == 1 + 4 * 4  # a busy machine may leave some out
    for fit in found["collectives"].values():
        assert fit["alpha_s"] >= 0
        assert all(median >= minimum > 0 for _, median, minimum in fit["points"])
    sent = {point[0] for point in found["collectives"].get("all_to_all", {"points": []})["points"]}
    assert sent <= {512, 8192, 65536, 524288}  # half of each message stays on its rank
    assert found["limit_s"] == 2
    limited = found.get("exchanged", {})
    assert set(limited) == ({"all_reduce", "all_gather"} if backend == "gloo" else set())
    assert set(limited.values()) <= {0, *algorithms.SIZES_BYTES}
    shared, alone = found["shared"], found
    assert shared["read_bytes_per_s"] >= alone["read_bytes_per_s"] > 0
    for dtype, rates in alone["matmul_flops_per_s"].items():
        assert rates["peak"] == max(rates.values())
        assert shared["matmul_flops_per_s"][dtype] >= rates["peak"]
    assert "GB/s" in done.stdout


def test_the_note_on_crowded_cores_has_this_machines_own_figures(tmp_path: Path) -> None:
    here = environment.fingerprint(environment.capture())
    asked = cast(Any, [SimpleNamespace(cell=SimpleNamespace(placement=RankLayout(8)), notes=[])])

    def said() -> str:
        shown = io.StringIO()
        entry.announce(asked, Progress(shown), 2, tmp_path)
        return shown.getvalue()

    fits = {
        name: {"alpha_s": alpha, "beta_s_per_byte": 0.0, "error": 0.0}
        for name, alpha in (("all_reduce", 2e-4), ("all_to_all", 4e-3))
    }
    of = {"ranks": 8, "collectives": fits}
    limits.store(tmp_path, calibration(fingerprint=here, backend="gloo", **of))
    assert "runners.calibrate --ranks 8 --threads 1 --backend mpi measures how much" in said()
    limits.store(tmp_path, calibration(fingerprint="0" * 12, backend="mpi", exchanged={}, **of))
    assert "how much" in said()  # another machine's
    limits.store(tmp_path, calibration(fingerprint=here, backend="mpi", exchanged={}, **of))
    assert "a small all-reduce of 8 ranks took 0.2 ms here, on gloo 4 ms" in said()
