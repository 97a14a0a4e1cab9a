"""The calibration: its fits and cache by small examples, its measurement by a real launch."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runners import limits, probe

ROOT = Path(__file__).parent.parent


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
    slower = calibration(read_bytes_per_s=9e9, matmul_flops_per_s=shapes, collectives={})
    best = limits.store(tmp_path, slower)
    assert best["read_bytes_per_s"] == 1e10
    assert best["matmul_flops_per_s"]["float32"] == {"1x2x3": 1e9, "4x4x4": 3e9, "peak": 3e9}
    assert best["collectives"] == {}
    assert limits.load_cached(tmp_path, "f" * 12, 2, 1, "gloo") == best


def test_cache_is_per_machine_ranks_threads_and_backend(tmp_path: Path) -> None:
    limits.store(tmp_path, calibration())
    assert limits.load_cached(tmp_path, "f" * 12, 2, 1, "gloo") is not None
    for other in (("0" * 12, 2, 1, "gloo"), ("f" * 12, 3, 1, "gloo"), ("f" * 12, 2, 2, "gloo")):
        assert limits.load_cached(tmp_path, *other) is None
    assert limits.load_cached(tmp_path, "f" * 12, 2, 1, "mpi") is None


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


@pytest.mark.dist
@pytest.mark.parametrize("backend", ["gloo", "mpi"])
def test_calibrating_two_ranks_from_the_command_line(tmp_path: Path, backend: str) -> None:
    command = [sys.executable, "-m", "runners.calibrate", "--ranks", "2", "--backend", backend]
    command += ["--budget", "0.3", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.json")
    found = limits.read(path)
    assert (found["ranks"], found["backend"]) == (2, backend)
    assert set(found["collectives"]) == {
        *("barrier", "all_reduce", "all_gather", "all_to_all", "reduce_scatter"),
    }
    for fit in found["collectives"].values():
        assert fit["alpha_s"] >= 0
        assert all(median >= minimum > 0 for _, median, minimum in fit["points"])
    sent = [point[0] for point in found["collectives"]["all_to_all"]["points"]]
    assert sent == [512, 8192, 65536, 524288]  # half of each message stays on its rank
    shared, alone = found["shared"], found
    assert shared["read_bytes_per_s"] >= alone["read_bytes_per_s"] > 0
    for dtype, rates in alone["matmul_flops_per_s"].items():
        assert rates["peak"] == max(rates.values())
        assert shared["matmul_flops_per_s"][dtype] >= rates["peak"]
    assert "GB/s" in done.stdout
