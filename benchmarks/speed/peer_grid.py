"""Ours beside the best peer that runs, cell by cell, in one sweep each: docs/results/peers.md.

For every point (mode, ranks, experts, top-k, skew, tokens) all strategies are cells of one wave, so
that they are timed in turns. Of ours and of theirs the one with the least median of round medians
counts; the ratio of a round is theirs over ours, the cell's its median over the rounds, with the
order-statistic interval. A peer is faster where the whole interval is below 0.97.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.speed import store
from moe.spec import PEER
from runners.records import record
from runners.records.stats import median_interval, round_medians_ms, round_ratios

MODES, RANKS, EXPERTS = ("forward", "train"), (1, 2, 4), (8, 64)
SKEWS, TOPKS, TOKENS = ("balanced", "zipf"), (2, 8), (8, 128, 1024, 4096)
OURS = {1: "simple", 2: "simple,tp,ep", 4: "simple,tp,ep"}
PEERS = (
    "peer_transformers,peer_transformers_eager,peer_torchtitan,peer_deepspeed,peer_deepspeed_autoep"
)
SHAPE = ("model.dim=256", "model.hidden=512", "model.dim_out=256", "model.activation=silu_gated",
         "model.bias=none", "tokens=sharded")  # fmt: skip
MEASURE = ("measure.samples=8", "measure.samples_max=16", "measure.wall_limit_s=3",
           "measure.phases=0", "measure.calibrate=false", "measure.anchors=0",
           "measure.block_floors=5")  # fmt: skip
MEAN_TARGET, LEAST = 1.5, 0.97
Sweep = tuple[str, int, int, str]


def run(args: argparse.Namespace) -> None:
    deadline = time.monotonic() + args.limit_s
    modes, ranks, experts, skews, topks, tokens = axes(args.tiny)
    done = {row["sweep"] for row in store.load("beside")}
    for sweep in itertools.product(modes, ranks, experts, skews):
        name = " ".join(map(str, (*sweep, args.dtype)))
        if name in done or time.monotonic() > deadline:
            continue
        rows = measure(sweep, args.dtype, topks, tokens)
        store.append("beside", [row | {"sweep": name} for row in rows])
        for row in rows:
            print(row, flush=True)


def axes(tiny: bool) -> tuple[tuple[Any, ...], ...]:
    """What is swept; `tiny` only shows that the command works."""
    if tiny:
        return MODES, (2,), (8,), ("zipf",), (2,), (8, 128)
    return MODES, RANKS, EXPERTS, SKEWS, TOPKS, TOKENS


def measure(
    sweep: Sweep, dtype: str, topks: tuple[int, ...], tokens: tuple[int, ...]
) -> list[store.Row]:
    mode, ranks, experts, skew = sweep
    # Of 64 experts on 4 ranks not all points fit in memory at once.
    points = 1000 if ranks * experts <= 128 else 4 if mode == "forward" else 2
    strategies = f"{OURS[ranks]},{PEERS}"
    command = [
        sys.executable, "runners/bench.py", "-m", *SHAPE, *MEASURE, f"mode={mode}",
        f"measure.wave_cells={points * len(strategies.split(','))}",
        f"world_size={ranks}", f"num_experts={experts}", f"workload={skew}", f"dtype={dtype}",
        f"topk={','.join(map(str, topks))}", f"batch_size={','.join(map(str, tokens))}",
        f"strategy={strategies}", "name=beside", "tracker=none", "report=false",
        "on_invalid=skip",
    ]  # fmt: skip
    ended = subprocess.run(command, cwd=store.ROOT, stdout=subprocess.PIPE, text=True)
    if not ended.stdout.strip():
        raise SystemExit(f"nothing was measured: {' '.join(command)}")
    folder = store.ROOT / json.loads(ended.stdout.splitlines()[-1])["sweep_dir"]
    return list(compared(folder))


def compared(folder: Path) -> Iterator[store.Row]:
    """One row for every point of a sweep that both sides have measured."""
    points: dict[Any, list[record.Record]] = {}
    for found in (record.read(path) for path in record.paths(folder)):
        if found.outcome != "measured":
            print(f"{found.outcome}: {found.cell_id} {found.cell.strategy.name}", file=sys.stderr)
            continue
        layer, work, place = found.cell.layer, found.cell.workload, found.cell.placement
        point = (work.mode, place.world_size, layer.num_experts, layer.topk, work.kind,
                 work.batch_size, layer.dtype)  # fmt: skip
        points.setdefault(point, []).append(found)
    for point, records in sorted(points.items()):
        theirs = [r for r in records if r.cell.strategy.name.startswith(PEER)]
        ours = [r for r in records if r not in theirs]
        if ours and theirs:
            yield row(point, best(ours), best(theirs))


def best(records: list[record.Record]) -> record.Record:
    return min(records, key=median_ms)


def median_ms(found: record.Record) -> float:
    values = sorted(round_medians_ms(found.samples).values())
    return values[len(values) // 2]


def row(point: tuple[Any, ...], ours: record.Record, theirs: record.Record) -> store.Row:
    ratios = sorted(round_ratios(theirs.samples, ours.samples))
    interval = median_interval(ratios)
    names = ("mode", "ranks", "experts", "topk", "skew", "tokens", "dtype")
    return {
        "cell": " ".join(map(str, point)), **dict(zip(names, point, strict=True)),
        "ours": said_of(ours), "ours_ms": median_ms(ours),
        "theirs": said_of(theirs), "theirs_ms": median_ms(theirs),
        "ratio": ratios[len(ratios) // 2], "rounds": len(ratios),
        "low": interval.low if interval else None, "high": interval.high if interval else None,
    }  # fmt: skip


def said_of(found: record.Record) -> str:
    strategy = found.cell.strategy
    kernel = (found.kernel or {}).get("name", "")
    return f"{strategy.name.removeprefix(PEER)} {strategy.variant or kernel}"


def table() -> str:
    rows = store.load("beside")
    if not rows:
        return "Not measured yet."
    head = ("mode", "ranks", "E", "k", "skew", "tokens", "dtype", "best peer", "ms", "ours", "ms",
            "ratio", "95%", "target")  # fmt: skip
    lines = [
        (r["mode"], r["ranks"], r["experts"], r["topk"], r["skew"], r["tokens"], r["dtype"],
         r["theirs"], f"{r['theirs_ms']:.3f}", r["ours"], f"{r['ours_ms']:.3f}",
         f"{r['ratio']:.2f}", spread(r), store.verdict(not peer_wins(r)))
        for r in rows
    ]  # fmt: skip
    parts = ["\n".join(summaries(rows)), overview(rows), store.markdown(head, lines)]
    return "\n\n".join(parts)


def overview(rows: list[store.Row]) -> str:
    """README's table: geometric mean (least, most) of the ratios."""
    columns = sorted({(r["mode"], r["ranks"]) for r in rows})
    head = ("tokens", *(f"{mode}, {ranks} rank{'s' * (ranks > 1)}" for mode, ranks in columns))
    lines = [
        (tokens, *(in_short([r["ratio"] for r in rows
                             if (r["mode"], r["ranks"], r["tokens"]) == (*column, tokens)])
                   for column in columns))
        for tokens in sorted({r["tokens"] for r in rows})
    ]  # fmt: skip
    return store.markdown(head, lines)


def in_short(ratios: list[float]) -> str:
    if not ratios:
        return "-"
    return f"{store.geometric_mean(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"


def spread(found: store.Row) -> str:
    return "-" if found["low"] is None else f"{found['low']:.2f}-{found['high']:.2f}"


def peer_wins(found: store.Row) -> bool:
    """The peer is faster by more than 3%, beyond the interval."""
    high = found["high"] if found["high"] is not None else found["ratio"]
    return bool(high < LEAST)


def summaries(rows: list[store.Row]) -> Iterator[str]:
    groups: list[tuple[str, list[store.Row]]] = [("all", rows)]
    for axis in ("mode", "ranks", "tokens"):
        values = dict.fromkeys(r[axis] for r in rows)
        groups += [(f"{axis} {v}", [r for r in rows if r[axis] == v]) for v in values]
    for name, part in groups:
        mean = store.geometric_mean([r["ratio"] for r in part])
        lost = sum(peer_wins(r) for r in part)
        goal = f" (>= {MEAN_TARGET}: {store.verdict(mean >= MEAN_TARGET)})" if name == "all" else ""
        yield (
            f"- {name}: {len(part)} cells, geometric mean {mean:.2f}{goal}, least "
            f"{min(r['ratio'] for r in part):.2f}, peer faster beyond the interval in {lost}"
        )
