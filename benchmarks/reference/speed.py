"""Seed sizes on MPI against the reference's style of code, both in the same ranks, in turns.

A sample of either side is one step after a barrier; its value is the makespan: last end minus
first start over the ranks. A cell's value is the median over all samples of all rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.reference import loops
from benchmarks.speed import store
from runners.mpi import start as mpi

RANKS = 8
BATCHES, TOPKS = (8, 16, 32), (2, 4, 8)
SIDES = ("simple", "tp", "ep", "ep-alltoall")
TARGETS = {"ep": 1.5, "tp": 5.0}
PER_ROUND, WARMUP = 5, 5
Step = Callable[[], Any]


def run(args: argparse.Namespace) -> None:
    """Starts the ranks; rank 0 prints one line of JSON per cell."""
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    environ = {**os.environ, **threads}
    worker = [sys.executable, "-m", "benchmarks.reference.speed", str(args.rounds)]
    command = mpi.mpiexec_command(RANKS, worker, environ)
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, env=environ, cwd=store.ROOT,
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    store.append(
        "reference", [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
    )


def cells() -> Iterator[tuple[str, int, int]]:
    return itertools.product(SIDES, BATCHES, TOPKS)


def main(rounds: int) -> None:
    """One rank."""
    import torch
    from mpi4py import MPI

    from moe.parallel.comm import Comm
    from runners.mpi.backend import init_mpi

    init_mpi()
    torch.set_num_threads(1)
    world = MPI.COMM_WORLD
    comm = Comm(torch.device("cpu"), world.size, world.rank)
    pairs = {cell: prepare(cell, comm, world) for cell in cells()}
    taken: dict[Any, list[float]] = {}
    for number in range(rounds):
        order = [(cell, side) for cell in pairs for side in (0, 1)]
        random.Random(number).shuffle(order)
        for cell, side in order:
            values = loops.makespans_ms(world, pairs[cell][:2][side], PER_ROUND)
            taken.setdefault((cell, side), []).extend(values)
    if world.rank == 0:
        for cell in pairs:
            print(json.dumps(row(cell, taken[cell, 0], taken[cell, 1], pairs[cell][2])), flush=True)
    torch.distributed.destroy_process_group()


def prepare(cell: tuple[str, int, int], comm: Any, world: Any) -> tuple[Step, Step, str]:
    """The project's step and the baseline's, both proven right and warmed up, and the kernel."""
    from moe import build, spec
    from moe.step import Step
    from moe.verify.verifier import verify
    from moe.workload import batches

    side, batch, topk = cell
    name, _, dispatcher = side.partition("-")
    point = spec.Cell(
        spec.LayerSpec(num_experts=RANKS, topk=topk, topk_requested=topk),
        spec.StrategySpec(name, dispatcher or "local"),
        spec.WorkloadSpec(batch_size=batch),
        spec.RankLayout(world_size=RANKS, backend="mpi"),
    )
    layer = build.build(point, comm)
    x_TD = batches.inputs(point, comm.rank, comm.device)
    kernel = layer.tune(x_TD)["name"]
    found = verify(point, Step(point, layer, x_TD), comm)
    if not found.ok:
        raise SystemExit(f"{cell}: {found.to_dict()}")
    args = argparse.Namespace(
        topk=topk, batch=batch, dim=32, hidden=128, dim_out=64, dtype="float32", seed=0
    )
    base = loops.Layer(args, world)
    theirs: Step = getattr(base, name)
    error = float(abs(theirs() - base.simple()).max())
    if not error < 1e-4:
        raise SystemExit(f"{cell}: the baseline differs from simple by {error}")
    ours = Step(point, layer, x_TD)
    for step in (ours, theirs):
        loops.makespans_ms(world, step, WARMUP)
    return ours, theirs, kernel


def row(
    cell: tuple[str, int, int], ours: list[float], theirs: list[float], kernel: str
) -> store.Row:
    side, batch, topk = cell
    mine, other = statistics.median(ours), statistics.median(theirs)
    return {
        "cell": f"{side} {batch} {topk}", "side": side, "batch": batch, "topk": topk,
        "ours_ms": mine, "theirs_ms": other, "ratio": other / mine, "samples": len(ours),
        "kernel": kernel, "at": time.time(),
    }  # fmt: skip


def table() -> str:
    rows = store.load("reference")
    lines, found = [], []
    for side in SIDES:
        mine = [row for row in rows if row["side"] == side]
        ratios = [row["ratio"] for row in mine]
        if not ratios:
            continue
        mean, least = store.geometric_mean(ratios), min(ratios)
        said = said_of(side, mean, least)
        found.append((side, f"{mean:.2f}", f"{least:.2f}", said))
        lines += [
            (side, row["batch"], row["topk"], row["kernel"], f"{row['theirs_ms']:.2f}",
             f"{row['ours_ms']:.2f}",
             f"{row['ratio']:.2f}", store.verdict(row["ratio"] >= TARGETS.get(side, 0.8)))
            for row in mine if side != "ep-alltoall"
        ]  # fmt: skip
    head = (
        "strategy",
        "batch",
        "k",
        "kernel",
        "reference's style ms",
        "ours ms",
        "ratio",
        "target",
    )
    summary = store.markdown(("strategy", "geometric mean", "least", "target"), found)
    return summary + "\n\n" + store.markdown(head, lines)


def said_of(side: str, mean: float, least: float) -> str:
    if side == "simple":
        return f"mean >= 1, least >= 0.8: {store.verdict(mean >= 1 and least >= 0.8)}"
    if side in TARGETS:
        return f"every cell >= {TARGETS[side]}: {store.verdict(least >= TARGETS[side])}"
    return "reported"


if __name__ == "__main__":
    main(int(sys.argv[1]))
