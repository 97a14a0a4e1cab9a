"""Calibrations: the measured limits of a machine, their cache, and line fits. Torch-free.

A calibration belongs to a machine (`fingerprint`) and to a number of ranks, threads and a backend:

    fingerprint, ranks, threads, backend, device, created, llc_bytes
    read_bytes_per_s       one rank alone, from memory (more than the last-level cache holds)
    copy_bytes_per_s       the same; a copy counts its bytes twice, read and written
    read_warm_bytes_per_s  {bytes: rate} re-reading that many bytes: what caches give
    matmul_flops_per_s     {dtype: {"MxNxK": rate, "peak": best of them}}, one rank alone; M rows by
                           a matrix of N x K, the fastest of three ways to write it
    l2_bytes               GPU: its cache
    launch_s               GPU: time of one small kernel of many that are enqueued
    wait_s                 GPU: a small kernel, and the host's wait for one number of it
    host_to_device_bytes_per_s, device_to_host_bytes_per_s   GPU: from and to pinned memory
    shared                 the same three as totals over all ranks at once:
                           {read_bytes_per_s, copy_bytes_per_s, matmul_flops_per_s: {dtype: rate}};
                           of GPUs at least as often what one rank reaches as there are ranks
    collectives            {name: {alpha_s, beta_s_per_byte, error, points}}: a call takes
                           alpha_s + beta_s_per_byte * bytes sent by a rank to others, fitted to
                           medians; error is the fit's largest relative one; points are
                           [bytes, median_s, minimum_s], two sizes or more (barrier: one)
    exchanged              gloo: {all_reduce, all_gather: bytes} of the largest message that is
                           exchanged instead (moe/parallel/algorithms.py)
    nodes, tiers           with several nodes: {intra, inter: {barrier, all_to_all}}, the same of
                           the ranks of one node, and of ranks one of each node, all at once
    limit_s, took_s        seconds allowed, and seconds taken
    left_out               what was not measured in that time, in words

Rates are the best seen, so that no cell exceeds them; a GPU that copies at a rate reads at least at
that rate. `store` keeps the higher of old and new rates, the shorter of old and new costs, and the
new fits; old fits stay for collectives that were not timed again.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe.parallel.algorithms import EXCHANGE, LIBRARY, fit_name
from moe.spec import RankLayout
from runners.host.project_paths import OUTPUTS
from runners.records.sealed import read_sealed, sealed, write_atomic

FOLDER = OUTPUTS / ".calibration"
FIELDS = {
    "fingerprint": str,
    "ranks": int,
    "threads": int,
    "backend": str,
    "read_bytes_per_s": float,
    "copy_bytes_per_s": float,
    "read_warm_bytes_per_s": dict,
    "matmul_flops_per_s": dict,
    "shared": dict,
    "collectives": dict,
}
COSTS = ("launch_s", "wait_s")
OF_GPUS = (*COSTS, "host_to_device_bytes_per_s", "device_to_host_bytes_per_s")  # may be absent


def cache_path(
    folder: Path, fingerprint: str, ranks: int, threads: int, backend: str, nodes: int = 1
) -> Path:
    spread = f"-{nodes}nodes" if nodes > 1 else ""
    return folder / f"{fingerprint}-{backend}-{ranks}ranks-{threads}threads{spread}.json"


def folder_of(sweep_dir: Path) -> Path:
    """Folder of the calibrations that a sweep uses."""
    return sweep_dir.resolve().parent / FOLDER.name


def any_cached(folder: Path, place: RankLayout) -> bool:
    """Whether a file for such ranks exists, of any machine; looks at names only."""
    path = cache_path(folder, "*", place.world_size, place.threads, place.backend, place.nodes)
    return any(folder.glob(path.name))


def load_cached(
    folder: Path, fingerprint: str, ranks: int, threads: int, backend: str, nodes: int = 1
) -> dict[str, Any] | None:
    """None where there is none, or only one of an older version (gloo without `exchanged`). A
    damaged file is renamed and named in a warning."""
    path = cache_path(folder, fingerprint, ranks, threads, backend, nodes)
    try:
        calibration = read(path)
        older = backend == "gloo" and ranks > 1 and "exchanged" not in calibration
        return None if older else calibration
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        text = str(error) if str(path) in str(error) else f"{path}: {error}"
        message = f"{text}; kept as {set_aside(path).name}, the machine is calibrated anew"
        warnings.warn(message, stacklevel=2)
        return None


def small_message_s(folder: Path, fingerprint: str, place: RankLayout) -> float | None:
    """Alpha, in s, of an all-reduce over all ranks; None where it was not timed."""
    ranks, threads, backend = place.world_size, place.threads, place.backend
    cached = load_cached(folder, fingerprint, ranks, threads, backend, place.nodes) or {}
    exchanged = cached.get("exchanged", {}).get("all_reduce", 0) > 0
    name = fit_name("all_reduce", EXCHANGE if exchanged else LIBRARY)
    fit = cached.get("collectives", {}).get(name)
    return float(fit["alpha_s"]) if fit else None


def set_aside(path: Path) -> Path:
    """Renames a damaged file to *.damaged, *.damaged-2 ...; returns the new path."""
    number, aside = 1, path.with_suffix(".damaged")
    while aside.exists():
        number += 1
        aside = path.with_suffix(f".damaged-{number}")
    return path.replace(aside)


def read(path: Path) -> dict[str, Any]:
    """A checked calibration; raises OSError or ValueError."""
    calibration = read_sealed(path)
    _check(calibration)
    return calibration


def store(folder: Path, calibration: dict[str, Any]) -> dict[str, Any]:
    """Merges with the cached calibration (`better`), writes the result and returns it."""
    _check(calibration)
    names = ("fingerprint", "ranks", "threads", "backend")
    fingerprint, ranks, threads, backend = (calibration[name] for name in names)
    nodes = int(calibration.get("nodes", 1))
    old = load_cached(folder, fingerprint, ranks, threads, backend, nodes)
    best = better(old, calibration) if old else calibration
    path = cache_path(folder, fingerprint, ranks, threads, backend, nodes)
    write_atomic(path, sealed(best, indent=1))
    return best


def better(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`new`, with every rate (fields ending in _per_s, at any depth) the larger of both, and every
    cost the smaller."""
    merged = dict(new)
    for name, value in old.items():
        if name.endswith("_per_s") or name == "shared":
            merged[name] = _larger(value, new.get(name))
        elif name in COSTS:
            merged[name] = min(value, new.get(name, value))
    merged["collectives"] = {**old["collectives"], **new["collectives"]}
    return merged


def _larger(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {name: _larger(old.get(name), new.get(name)) for name in {**old, **new}}
    return max((value for value in (old, new) if value is not None), default=None)


def _check(calibration: Any) -> None:
    """Raises ValueError naming the field that is missing or malformed."""
    if not isinstance(calibration, dict):
        raise ValueError("not a calibration")
    for name, kind in FIELDS.items():
        value = calibration.get(name)
        if not isinstance(value, kind):
            raise ValueError(f"{name}={value!r}: not of type {kind.__name__}")
        if isinstance(value, float) and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value}: not a rate")
    for name in OF_GPUS:
        value = calibration.get(name, 1.0)
        if not (isinstance(value, float) and math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value!r}: not a time or rate")


def fit_line(sizes: Sequence[float], times: Sequence[float]) -> tuple[float, float, float]:
    """(alpha, beta, largest relative error) of time = alpha + beta * size, both at least 0.

    Least squares with weights 1/time^2, that is, of relative errors: unweighted, the largest
    message would dominate, and alpha, which small messages pay, would be noise.
    """
    weights = [1 / time**2 for time in times]
    total = sum(weights)
    mean_size = sum(w * s for w, s in zip(weights, sizes, strict=True)) / total
    mean_time = sum(w * t for w, t in zip(weights, times, strict=True)) / total
    spread = sum(w * (s - mean_size) ** 2 for w, s in zip(weights, sizes, strict=True))
    rows = list(zip(weights, sizes, times, strict=True))
    slope = sum(w * (s - mean_size) * (t - mean_time) for w, s, t in rows)
    beta = max(0.0, slope / spread) if spread else 0.0
    alpha = mean_time - beta * mean_size
    if alpha < 0:  # then fit through the origin
        alpha = 0.0
        beta = sum(w * s * t for w, s, t in rows) / sum(w * s * s for w, s, _ in rows)
    error = max(abs(alpha + beta * s - t) / t for _, s, t in rows)
    return alpha, beta, error


def describe(calibration: dict[str, Any]) -> str:
    """A few lines for a person."""
    c = calibration
    shared = c["shared"]
    lines = [
        f"{c['ranks']} ranks x {c['threads']} threads, {c['backend']}, machine {c['fingerprint']}",
        f"  one rank: read {c['read_bytes_per_s'] / 1e9:.1f} GB/s,"
        f" copy {c['copy_bytes_per_s'] / 1e9:.1f}",
        f"  all ranks: read {shared['read_bytes_per_s'] / 1e9:.1f} GB/s,"
        f" copy {shared['copy_bytes_per_s'] / 1e9:.1f}",
    ]
    if "launch_s" in c:
        lines.append(
            f"  a launch {c['launch_s'] * 1e6:.1f} us, a wait {c['wait_s'] * 1e6:.1f} us; from the"
            f" host {c['host_to_device_bytes_per_s'] / 1e9:.1f} GB/s,"
            f" to it {c['device_to_host_bytes_per_s'] / 1e9:.1f}"
        )
    for dtype, rates in c["matmul_flops_per_s"].items():
        shapes = ", ".join(f"{shape} {rate / 1e9:.0f}" for shape, rate in rates.items())
        together = shared["matmul_flops_per_s"][dtype] / 1e9
        lines.append(f"  {dtype} GFLOP/s: {shapes}; all ranks {together:.0f}")
    for name, fit in c["collectives"].items():
        rate = f"{1e-9 / fit['beta_s_per_byte']:.2f} GB/s" if fit["beta_s_per_byte"] else "-"
        lines.append(
            f"  {name}: {fit['alpha_s'] * 1e6:.0f} us + bytes at {rate},"
            f" fit of {len(fit['points'])} sizes within {fit['error']:.0%}"
        )
    if limits := c.get("exchanged"):
        sizes = ", ".join(f"{name} up to {size >> 10} KiB" for name, size in limits.items())
        lines.append(f"  one exchange instead of a ring: {sizes}")
    if c.get("left_out"):
        lines.append(
            f"  not measured within {c['limit_s']:g} s: {', '.join(c['left_out'])}; give it longer:"
            f" python -m runners.calibrate --ranks {c['ranks']} --threads {c['threads']}"
            f" --backend {c['backend']} --limit 60"
        )
    return "\n".join(lines)
