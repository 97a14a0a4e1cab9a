"""The MoE layer as it is often written first: numpy, Python loops, pickled mpi4py messages.

    python benchmarks/reference/loops.py --ranks 8 --batch 8 --topk 2 --strategy ep
    mpiexec -n 8 python benchmarks/reference/loops.py --batch 8 --topk 2 --strategy ep

A baseline, written in that style on purpose, but correct: weights are the same on all ranks, and
every strategy's output is compared with `simple` before it is timed. As many experts as ranks.

    simple  every rank loops over all (token, expert) pairs of the whole batch, one row at a time
    ep      one expert per rank; a rank's share of the batch travels by two pickled all-to-alls
    tp      every linear layer's outputs are sharded, and gathered after each layer of each expert

The statistic is the project's: a sample starts with a barrier, its value is the last rank's end
minus the first rank's start on the host's monotonic clock. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from runners.mpi import start as mpi

Array = NDArray[Any]
CLOCK = time.CLOCK_MONOTONIC


class Layer:
    """Router, then per expert two linear layers with biases, D -> H and H -> O, and ReLU."""

    def __init__(self, args: argparse.Namespace, comm: Any) -> None:
        self.comm, self.rank, self.ranks = comm, comm.Get_rank(), comm.Get_size()
        self.num_experts, self.topk = self.ranks, min(args.topk, self.ranks)
        random = np.random.RandomState(args.seed)

        def draw(*shape: int) -> Array:
            return (random.randn(*shape) / shape[-2] ** 0.5).astype(args.dtype)

        self.gate = draw(args.dim, self.num_experts)
        self.fc1 = draw(self.num_experts, args.dim, args.hidden)
        self.fc2 = draw(self.num_experts, args.hidden, args.dim_out)
        self.b1 = np.zeros((self.num_experts, args.hidden), args.dtype)
        self.b2 = np.zeros((self.num_experts, args.dim_out), args.dtype)
        self.x = draw(args.batch, args.dim)

    def route(self, x: Array) -> tuple[Array, Array]:
        """(experts, weights) of the top-k, both of shape (tokens, topk)."""
        scores = np.exp(x @ self.gate)
        scores /= scores.sum(axis=-1, keepdims=True)
        chosen = np.argsort(-scores, axis=-1, kind="stable")[:, : self.topk]
        weights = np.take_along_axis(scores, chosen, axis=-1)
        return chosen, weights / weights.sum(axis=-1, keepdims=True)

    def expert(self, number: int, x: Array) -> Array:
        hidden = np.maximum(x @ self.fc1[number] + self.b1[number], 0)
        return hidden @ self.fc2[number] + self.b2[number]

    def simple(self) -> Array:
        chosen, weights = self.route(self.x)
        out = np.zeros((len(self.x), self.fc2.shape[-1]), self.x.dtype)
        for k in range(self.topk):
            for token in range(len(self.x)):
                row = self.x[token : token + 1]
                out[token] += weights[token, k] * self.expert(chosen[token, k], row)[0]
        return out

    def ep(self) -> Array:
        mine = np.array_split(self.x, self.ranks)[self.rank]
        chosen, weights = self.route(mine)
        slots = [[(t, k) for t, k in np.argwhere(chosen == e)] for e in range(self.num_experts)]
        received = self.comm.alltoall([[mine[t] for t, _ in part] for part in slots])
        done = [[self.expert(self.rank, row) for row in part] for part in received]
        returned = self.comm.alltoall(done)
        out = np.zeros((len(mine), self.fc2.shape[-1]), self.x.dtype)
        for part, rows in zip(slots, returned, strict=True):
            for (token, k), row in zip(part, rows, strict=True):
                out[token] += weights[token, k] * row
        return np.concatenate(self.comm.allgather(out))

    def sharded(self, x: Array, weight: Array, bias: Array) -> Array:
        shard, part = (np.array_split(a, self.ranks, axis=-1)[self.rank] for a in (weight, bias))
        return np.concatenate(self.comm.allgather(x @ shard + part), axis=-1)

    def tp(self) -> Array:
        chosen, weights = self.route(self.x)
        out = np.zeros((len(self.x), self.fc2.shape[-1]), self.x.dtype)
        for e in range(self.num_experts):
            tokens, ks = np.nonzero(chosen == e)
            hidden = np.maximum(self.sharded(self.x[tokens], self.fc1[e], self.b1[e]), 0)
            rows = self.sharded(hidden, self.fc2[e], self.b2[e])
            for token, k, row in zip(tokens, ks, rows, strict=True):
                out[token] += weights[token, k] * row
        return out


def makespans_ms(comm: Any, step: Callable[[], Array], count: int) -> list[float]:
    """Of each step: last end minus first start over the ranks."""
    starts, ends = [], []
    for _ in range(count):
        comm.Barrier()
        starts.append(time.clock_gettime_ns(CLOCK))
        step()
        ends.append(time.clock_gettime_ns(CLOCK))
    first = np.min(comm.allgather(starts), axis=0)
    last = np.max(comm.allgather(ends), axis=0)
    return [float(span) / 1e6 for span in last - first]


def run_rank(args: argparse.Namespace) -> None:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    layer = Layer(args, comm)
    step: Callable[[], Array] = getattr(layer, args.strategy)
    error = float(np.abs(step() - layer.simple()).max())
    if not error < 1e-4:
        raise SystemExit(f"{args.strategy} differs from simple by {error}")
    makespans_ms(comm, step, args.warmup)
    values = makespans_ms(comm, step, args.samples)
    if comm.Get_rank() == 0:
        report(args, comm.Get_size(), layer.topk, values)


def report(args: argparse.Namespace, ranks: int, topk: int, values: list[float]) -> None:
    median, mean = statistics.median(values), statistics.fmean(values)
    names = ("strategy", "batch", "dim", "hidden", "dim_out", "dtype", "samples", "seed")
    facts = {name: getattr(args, name) for name in names}
    results = {
        "median_duration_ms": median,
        "avg_duration_ms": mean,
        "min_duration_ms": min(values),
        "avg_throughput": args.batch / (mean / 1000),
    }
    print(json.dumps({**facts, "ranks": ranks, "topk": topk, **results}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--strategy", choices=("simple", "ep", "tp"), default="simple")
    for name, value in (("batch", 8), ("topk", 2), ("dim", 32), ("hidden", 128), ("dim-out", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, help="start mpiexec with this many ranks")
    args = parser.parse_args()
    if args.ranks is None:
        run_rank(args)
        return 0
    own = iter(sys.argv[1:])
    rest = [word for word in own if word != "--ranks" or next(own) is None]
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    environ = {**os.environ, **threads}
    command = mpi.mpiexec_command(args.ranks, [sys.executable, __file__, *rest], environ)
    return subprocess.run(command, stdin=subprocess.DEVNULL, env=environ).returncode


if __name__ == "__main__":
    sys.exit(main())
