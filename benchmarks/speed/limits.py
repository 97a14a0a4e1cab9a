"""How much of the memory bandwidth and of the matrix rate the experts reach, on one rank.

Cold: every call takes the next of several layers, which together are over twice the last-level
cache. The limits are calibrated in the same run, between the samples: a matrix by a vector over the
same cold weights, and products of one expert's sizes in every way `runners.probe` knows, whichever
is best in any turn.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable

import torch

from benchmarks.speed import store
from benchmarks.speed.pairs import Step, call_ms
from moe import spec, strategies
from moe.comm import Comm
from moe.experts import Experts
from runners.hardware import llc_bytes, usable_cores
from runners.probe import products

DIM, HIDDEN, NUM = 1024, 2048, 8
ROWS = (1, 2, 4, 16, 64, 128, 512)
DTYPES = ("float32", "bfloat16")
READ_TARGETS = {"float32 M1": 0.7, "float32 M2": 0.5, "float32 M4": 0.5}
RATE_TARGET, RATE_FROM = 0.85, 64
LLC_UNKNOWN = 32 << 20
FLOPS_PER_ROW = 2 * 3 * DIM * HIDDEN


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(usable_cores())
    for dtype in DTYPES:
        rows = measure(dtype, max(5, args.rounds // 2))
        store.append("limits", rows)
        for row in rows:
            print(row, flush=True)


def measure(dtype: str, turns: int) -> list[store.Row]:
    sets = cold_sets(dtype)
    weight_bytes = sets[0].fc1.nbytes + sets[0].fc2.nbytes
    reader = reading(sets)
    read_ms, peak = [call_ms(reader)], 0.0
    taken: dict[int, list[float]] = {}
    kernels: dict[int, str] = {}
    for rows in ROWS:
        kernels[rows], step = fastest(sets, rows)
        for _ in range(turns):
            taken.setdefault(rows, []).append(call_ms(step))
            read_ms.append(call_ms(reader))
        peak = max(peak, matrix_rate(rows, sets[0].fc1.dtype))
    bandwidth = weight_bytes / min(read_ms) * 1e3
    return [
        {
            "cell": f"{dtype} M{rows}", "dtype": dtype, "rows": rows, "kernel": kernels[rows],
            "ms": statistics.median(taken[rows]), "bandwidth": bandwidth, "peak": peak,
            "read": weight_bytes / statistics.median(taken[rows]) * 1e3 / bandwidth,
            "rate": NUM * rows * FLOPS_PER_ROW / statistics.median(taken[rows]) * 1e3 / peak,
            "read_most": weight_bytes / min(taken[rows]) * 1e3 / bandwidth,
            "rate_most": NUM * rows * FLOPS_PER_ROW / min(taken[rows]) * 1e3 / peak,
        }
        for rows in ROWS
    ]  # fmt: skip


def cold_sets(dtype: str) -> list[Experts]:
    """Experts of several layers, together over twice the last-level cache."""
    layer = spec.Layer(DIM, HIDDEN, DIM, NUM, 1, 1, "silu_gated", "none", dtype=dtype)
    cell = spec.Cell(layer, spec.Strategy("simple"), spec.Workload(), spec.Placement(world_size=1))
    first = strategies.build(cell, Comm(torch.device("cpu"), 1, 0))
    count = -(-2 * (llc_bytes() or LLC_UNKNOWN) // first.weights_bytes()) + 1
    return [first.experts, *(first.clone().experts for _ in range(count - 1))]


def turning(ways: list[Callable[[], object]]) -> Step:
    following = itertools.cycle(ways).__next__

    def step() -> None:
        with torch.inference_mode():
            following()()

    return step


def fastest(sets: list[Experts], rows: int) -> tuple[str, Step]:
    """The kernel whose median over cold calls is least, and a call with it."""
    x_SD = torch.randn(NUM * rows, DIM).to(sets[0].fc1.dtype)
    counts = [rows] * NUM
    step = turning([lambda e=e: e.rows(x_SD, counts) for e in sets])  # type: ignore[misc]
    found: dict[str, float] = {}
    for name in sets[0].variants("auto", x_SD.dtype):
        if name == "dense":  # computes all experts for every row
            continue
        for experts in sets:
            experts.use(name)
        step()
        found[name] = statistics.median(call_ms(step) for _ in range(3))
    best = min(found, key=lambda name: found[name])
    for experts in sets:
        experts.use(best)
    step()
    return best, step


def reading(sets: list[Experts]) -> Step:
    """Reads one set's weights, as fast as they can be: a matrix by a vector."""
    ones = torch.ones(DIM, dtype=sets[0].fc1.dtype)
    wide = sets[0].fc1.dtype == torch.float32

    def one(experts: Experts) -> None:
        for weight in (experts.fc1, experts.fc2):
            flat = weight.detach().view(-1).view(torch.float32)  # the bytes, whatever they mean
            torch.mv(flat.view(-1, DIM), ones if wide else ones.float())

    return turning([lambda e=e: one(e) for e in sets])  # type: ignore[misc]


def matrix_rate(rows: int, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest way to multiply `rows` by one expert's first matrix, warm."""
    if rows < RATE_FROM:
        return 0.0
    w_NK, x_MK = torch.randn(2 * HIDDEN, DIM).to(dtype), torch.randn(rows, DIM).to(dtype)
    with torch.inference_mode():
        ways = products(w_NK)
        for way in ways:
            way(x_MK)
        best_ms = min(call_ms(lambda way=way: way(x_MK)) for way in ways for _ in range(9))  # type: ignore[misc]
    return 2 * rows * w_NK.numel() / best_ms * 1e3


def table() -> str:
    rows = store.load("limits")
    head = ("dtype", "tokens per expert", "kernel", "ms", "GB/s", "of the bandwidth", "GFLOP/s",
            "of the matrix rate", "target")  # fmt: skip
    lines = [
        (r["dtype"], r["rows"], r["kernel"], f"{r['ms']:.2f}",
         f"{r['read'] * r['bandwidth'] / 1e9:.1f}", f"{r['read']:.0%}",
         f"{r['rate'] * r['peak'] / 1e9:.0f}", f"{r['rate']:.0%}", said(r))
        for r in rows
    ]  # fmt: skip
    limits = {
        r["dtype"]: f"{r['dtype']}: {r['bandwidth'] / 1e9:.1f} GB/s, {r['peak'] / 1e9:.0f} GFLOP/s"
        for r in rows
    }
    over = [r["cell"] for r in rows if max(r["read_most"], r["rate_most"]) > 1]
    return (
        f"Limits calibrated in the same run: {'; '.join(limits.values())}. Cells with a "
        f"single call over a limit: {', '.join(over) or 'none'}.\n\n" + store.markdown(head, lines)
    )


def said(row: store.Row) -> str:
    if row["cell"] in READ_TARGETS:
        target = READ_TARGETS[row["cell"]]
        return f"{target:.0%} of the bandwidth: {store.verdict(row['read'] >= target)}"
    if row["rows"] >= RATE_FROM:
        return f"{RATE_TARGET:.0%} of the rate: {store.verdict(row['rate'] >= RATE_TARGET)}"
    return ""
