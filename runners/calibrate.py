"""Measures what this machine can do at best: memory, matrix products, collectives.

    python -m runners.calibrate [--ranks N] [--threads T] [--backend gloo|mpi] [--show]

`calibrate_ranks` is what runs inside a launch, on every rank at once; runners/limits.py has the
shape of the result and its cache. Random numbers throughout: zeros run faster than any real data.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from moe.comm import Comm, Group
from moe.spec import Placement
from runners import environment, limits
from runners.mpi_start import mpiexec_command
from runners.probe import CHUNK_BYTES, MATRICES, Memory, Probe, Step, alone_rates, dtypes, products
from runners.ranks import TorchRanks, Where
from runners.record import write_atomic
from runners.streams import reader_may_leave

BUDGET_S = 3.0
MESSAGE_BYTES = (1 << 10, 16 << 10, 128 << 10, 1 << 20)
COLLECTIVES = ("barrier", "all_reduce", "all_gather", "all_to_all", "reduce_scatter")
BLOCKS = 5  # of calls, per collective and size, where the budget lasts


def together(step: Step, amount: float, probe: Probe, comm: Comm, budget_s: float) -> float:
    """Best total rate of all ranks over three windows in which all of them are at work."""
    best = 0.0
    for _ in range(3):
        comm.barrier()
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < budget_s / 3:
            step()
            done += 1
        probe.sync()
        mine = amount * done / (time.perf_counter() - start)
        total = torch.tensor([mine], dtype=torch.float64, device=comm.device)
        best = max(best, float(comm.world.combine_(total, "sum").item()))
    return best


def shared_rates(
    probe: Probe, memory: Memory, comm: Comm, alone: dict[str, Any], budget_s: float
) -> dict[str, Any]:
    """Totals over all ranks; at least what one of them reaches alone."""
    kinds = dtypes(probe.device)
    share = budget_s / (2 + len(kinds))
    read = together(memory.product, CHUNK_BYTES, probe, comm, share)
    copy = together(memory.copy, 2 * CHUNK_BYTES, probe, comm, share)
    flops = {}
    for dtype in kinds:
        name, (n, k) = str(dtype).removeprefix("torch."), MATRICES[0]
        x = probe.random(256, k, dtype=dtype)
        steps = [functools.partial(w, x) for w in products(probe.random(n, k, dtype=dtype))]
        fastest = min(steps, key=lambda step: probe.best_s(step, share / len(steps)))
        rate = together(fastest, 2 * 256 * n * k, probe, comm, share)
        flops[name] = max(rate, alone["matmul_flops_per_s"][name]["peak"])
    return {
        "read_bytes_per_s": max(read, alone["read_bytes_per_s"]),
        "copy_bytes_per_s": max(copy, alone["copy_bytes_per_s"]),
        "matmul_flops_per_s": flops,
    }


def collective_steps(group: Group, size: int) -> dict[str, tuple[float, Step]]:
    """By name: bytes a rank sends to others, and the call as strategies make it.

    Repeated sums overflow to infinity, which takes no longer to add than other numbers.
    """
    ranks = group.size
    rows = max(1, size // (4 * ranks))
    x = torch.randn(rows * ranks, 1, device=group.comm.device)
    split, even = x.nbytes * (ranks - 1) / ranks, [rows] * ranks
    return {
        "barrier": (0.0, group.barrier),
        "all_reduce": (2 * split, lambda: group.all_reduce_(x)),
        "all_gather": ((ranks - 1) * x.nbytes, lambda: group.all_gather(x, [len(x)] * ranks)),
        "all_to_all": (split, lambda: group.all_to_all(x, even, even)),
        "reduce_scatter": (split, lambda: group.reduce_scatter(x, even)),
    }


def time_collective(probe: Probe, comm: Comm, step: Step, budget_s: float) -> tuple[float, float]:
    """(median, minimum) over blocks of calls of the slowest rank's time per call."""

    def slowest(calls: int) -> float:
        comm.barrier()
        mine = torch.tensor([probe.elapsed_s(step, calls)], dtype=torch.float64)
        return float(comm.world.combine_(mine.to(comm.device), "max").item())

    slowest(1)
    calls = max(1, min(1000, int(budget_s / BLOCKS / slowest(2) * 2)))  # the same on every rank
    blocks: list[float] = []
    while len(blocks) < BLOCKS and (len(blocks) < 2 or sum(blocks) * calls < 2 * budget_s):
        blocks.append(slowest(calls) / calls)
    return statistics.median(blocks), min(blocks)


def collective_fits(
    probe: Probe, group: Group, budget_s: float, names: Sequence[str] = COLLECTIVES
) -> dict[str, Any]:
    """By collective; every rank takes part, in its own group of the kind."""
    comm = group.comm
    if group.size == 1:
        return {}
    points: dict[str, list[list[float]]] = {}
    share = budget_s / (len(names) * len(MESSAGE_BYTES))
    for size in MESSAGE_BYTES:
        for name, (sent, step) in collective_steps(group, size).items():
            if name in names and (sent or name not in points):
                points.setdefault(name, []).append(
                    [sent, *time_collective(probe, comm, step, share)]
                )
    return {name: _fit(rows) for name, rows in points.items()}


def tier_fits(probe: Probe, comm: Comm, nodes: int, budget_s: float) -> dict[str, Any]:
    """Alpha and beta inside a node (its ranks) and between nodes (ranks that have the same place
    in theirs, all such groups at once, as collectives over several nodes use the links)."""
    inside, across = comm.split(comm.world_size // nodes, ("node", "across nodes"))
    groups = {"intra": inside, "inter": across}
    return {
        name: collective_fits(probe, group, budget_s / 2, ("barrier", "all_to_all"))
        for name, group in groups.items()
    }


def _fit(points: list[list[float]]) -> dict[str, Any]:
    alpha, beta, error = limits.fit_line([p[0] for p in points], [p[1] for p in points])
    return {"alpha_s": alpha, "beta_s_per_byte": beta, "error": error, "points": points}


def calibrate_ranks(
    budget_s: float = BUDGET_S, device: torch.device | None = None, nodes: int = 1
) -> Any:
    """Runs on every rank of a started process group and returns the same rates on each.

    Takes about `budget_s` seconds, longer where there are more ranks than cores. Rank 0 is measured
    alone first, while the others sleep; then all ranks at once; then the collectives.
    """
    device = device or torch.device("cuda" if _backend() == "nccl" else "cpu")
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    comm, probe = Comm(device, ranks, rank), Probe(device)
    memory = Memory(probe, ranks)
    comm.barrier()
    alone: list[Any] = [None]
    if rank == 0:
        alone = [alone_rates(probe, memory, budget_s / 2)]
    else:
        time.sleep(budget_s / 2)
    if ranks > 1:
        dist.broadcast_object_list(alone, 0)
    rates = alone[0]
    return {
        "fingerprint": environment.fingerprint(environment.capture(device.type)),
        "ranks": ranks,
        "threads": torch.get_num_threads(),
        "backend": _backend(),
        "device": device.type,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "llc_bytes": environment.llc_bytes(),
        **rates,
        "shared": shared_rates(probe, memory, comm, rates, budget_s / 4),
        "collectives": collective_fits(probe, comm.world, budget_s / 4),
        **({"nodes": nodes, "tiers": tier_fits(probe, comm, nodes, budget_s / 4)}
           if nodes > 1 else {}),
    }  # fmt: skip


def _backend() -> str:
    name = str(dist.get_backend()) if dist.is_initialized() else "none"
    return "mpi" if name == "mpi4py" else name


def launch(ranks: int, threads: int, backend: str, budget_s: float) -> dict[str, Any]:
    """Calibrates in processes of its own; raises CalledProcessError or TimeoutExpired."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "calibration.json"
        worker = ["-m", "runners.calibrate", "--backend", backend, "--budget", str(budget_s)]
        worker += ["--threads", str(threads), "--rank-of", str(out)]
        if backend == "mpi":
            command = mpiexec_command(ranks, [sys.executable, *worker])
        else:
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
            command = [sys.executable, *torchrun, str(ranks), *worker]
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        limit_s = 120 + 10 * budget_s * ranks
        subprocess.run(
            command, check=True, timeout=limit_s, env=variables, stdin=subprocess.DEVNULL
        )
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def run_rank(backend: str, threads: int, budget_s: float, out: Path) -> None:
    """One rank of `launch`; the first one writes the result."""
    if backend == "mpi":
        from runners.mpi_group import export_environment

        export_environment()
    where = Where.from_environment()
    environment.pin(where.local_rank, where.local_ranks, threads)
    torch.set_num_threads(threads)
    device = "cuda" if backend == "nccl" else "cpu"
    placement = Placement(where.world_size, backend, device, threads)
    ranks = TorchRanks(where, placement, limit_s=300)
    calibration = calibrate_ranks(budget_s, ranks.device)
    if where.rank == 0:
        write_atomic(out, json.dumps(calibration))
    ranks.close()


@reader_may_leave()
def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m runners.calibrate", description=__doc__)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, help="per rank; default: cores // ranks")
    parser.add_argument("--backend", default="gloo", choices=("gloo", "mpi", "nccl"))
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds, about")
    parser.add_argument("--folder", type=Path, default=limits.FOLDER)
    parser.add_argument("--show", action="store_true", help="print what is cached, measure nothing")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    threads = args.threads or max(1, environment.usable_cores() // args.ranks)
    if args.rank_of:
        run_rank(args.backend, threads, args.budget, args.rank_of)
        return 0
    if args.show:
        cached = [limits.read(path) for path in sorted(args.folder.glob("*.json"))]
        print("\n".join(map(limits.describe, cached)) or f"nothing cached in {args.folder}")
        return 0
    found = launch(args.ranks, threads, args.backend, args.budget)
    print(limits.describe(limits.store(args.folder, found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
