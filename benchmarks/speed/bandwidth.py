"""How much of the memory bandwidth and of the matrix rate the experts reach, on one rank.

Cold: every call takes the next of several layers, which together are over twice the last-level
cache. The limits are calibrated in turns with the samples, and are medians too: the best of three
ways to read the same cold weights, and the best product of one expert's sizes, warm, of all that
`runners.rank.probe` knows.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable

import torch

from benchmarks.speed import store
from benchmarks.speed.alternating import Step, call_ms
from moe import build, spec
from moe.layer.experts import Experts
from moe.parallel.comm import Comm
from moe.parallel.row_counts import RowCounts
from runners.host.hardware import llc_bytes, usable_cores
from runners.rank.probe import products

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
        rows = measure(dtype, max(5, args.rounds))
        store.append("limits", rows)
        for row in rows:
            print(row, flush=True)


def measure(dtype: str, turns: int) -> list[store.Row]:
    """Medians on both sides of each fraction, of calls that took turns."""
    sets = cold_sets(dtype)
    weight_bytes = sets[0].fc1.nbytes + sets[0].fc2.nbytes
    peak_flops, multiply = fastest_product(sets[0].fc1.dtype)
    limits = {"product": multiply, **reading(sets)}
    return [measure_rows(dtype, sets, rows, limits, turns, weight_bytes, peak_flops)
            for rows in ROWS]  # fmt: skip


def measure_rows(
    dtype: str, sets: list[Experts], rows: int, limits: dict[str, Step], turns: int,
    weight_bytes: int, peak_flops: int,
) -> store.Row:  # fmt: skip
    kernel, step = fastest(sets, rows)
    taken: dict[str, list[float]] = {name: [] for name in ("ours", *limits)}
    for _ in range(turns):
        for name, way in {"ours": step, **limits}.items():
            if name == "product":
                way()  # warm
            taken[name].append(call_ms(way))
    ms = {name: statistics.median(values) for name, values in taken.items()}
    bandwidth = weight_bytes / min(ms[name] for name in limits if name != "product") * 1e3
    peak = peak_flops / ms["product"] * 1e3
    return {
        "cell": f"{dtype} M{rows}", "dtype": dtype, "rows": rows, "kernel": kernel,
        "ms": ms["ours"], "bandwidth": bandwidth, "peak": peak,
        "read": weight_bytes / ms["ours"] * 1e3 / bandwidth,
        "rate": NUM * rows * FLOPS_PER_ROW / ms["ours"] * 1e3 / peak,
    }  # fmt: skip


def cold_sets(dtype: str) -> list[Experts]:
    """Experts of several layers, together over twice the last-level cache."""
    layer = spec.LayerSpec(DIM, HIDDEN, DIM, NUM, 1, 1, "silu_gated", "none", dtype=dtype)
    cell = spec.Cell(
        layer, spec.StrategySpec("simple"), spec.WorkloadSpec(), spec.RankLayout(world_size=1)
    )
    first = build.build(cell, Comm(torch.device("cpu"), 1, 0))
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
    counts = RowCounts([rows] * NUM)
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


def reading(sets: list[Experts]) -> dict[str, Step]:
    """Ways to read one set's weights; which is fastest differs from processor to processor."""
    ones, row = torch.ones(DIM), torch.ones(NUM, 1, DIM)
    held = [
        [weight.detach().view(-1).view(torch.float32) for weight in (e.fc1, e.fc2)] for e in sets
    ]  # the bytes, whatever they mean; kernels may lay out the experts' own anew

    def reads(way: Callable[[torch.Tensor], object]) -> Step:
        return turning([lambda h=h: [way(words) for words in h] for h in held])  # type: ignore[misc]

    return {
        "sum": reads(torch.sum),
        "matrix by vector": reads(lambda words: torch.mv(words.view(-1, DIM), ones)),
        "vectors by matrices": reads(lambda words: torch.bmm(row, words.view(NUM, DIM, -1))),
    }


def fastest_product(dtype: torch.dtype) -> tuple[int, Step]:
    """FLOPs, and the product of one expert's sizes whose rate is highest, warm."""
    found: list[tuple[float, int, Step]] = []
    w_NK = torch.randn(2 * HIDDEN, DIM).to(dtype)
    with torch.inference_mode():
        for rows in (n for n in ROWS if n >= RATE_FROM):
            x_MK = torch.randn(rows, DIM).to(dtype)
            for way in products(w_NK):
                step = turning([lambda x=x_MK, way=way: way(x)])  # type: ignore[misc]
                step()
                flops = 2 * rows * w_NK.numel()
                ms = statistics.median(call_ms(step) for _ in range(9))
                found.append((flops / ms, flops, step))
    _, flops, step = max(found, key=lambda one: one[0])
    return flops, step


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
    limits = ", ".join(
        f"{dtype}: {statistics.median(b):.1f} GB/s, {statistics.median(p):.0f} GFLOP/s"
        for dtype in DTYPES
        if (b := [r["bandwidth"] / 1e9 for r in rows if r["dtype"] == dtype])
        and (p := [r["peak"] / 1e9 for r in rows if r["dtype"] == dtype])
    )
    over = [r["cell"] for r in rows if max(r["read"], r["rate"]) > 1]
    return (
        f"Limits calibrated in the same turns, medians too: {limits}. Cells over a limit: "
        f"{', '.join(over) or 'none'}.\n\n" + store.markdown(head, lines)
    )


def said(row: store.Row) -> str:
    if row["cell"] in READ_TARGETS:
        target = READ_TARGETS[row["cell"]]
        return f"{target:.0%} of the bandwidth: {store.verdict(row['read'] >= target)}"
    if row["rows"] >= RATE_FROM:
        return f"{RATE_TARGET:.0%} of the rate: {store.verdict(row['rate'] >= RATE_TARGET)}"
    return ""
