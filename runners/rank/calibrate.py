"""Measures what this machine can do at best: memory, matrix products, collectives.

    python -m runners.calibrate [--ranks N] [--threads T] [--backend gloo|mpi] [--limit S] [--show]

`calibrate_ranks` is what runs inside a launch, on every rank at once;
runners/records/calibrations.py has the shape of the result and its cache. Random numbers
throughout: zeros run faster than any real data.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from moe.parallel.comm import Comm
from moe.spec import RankLayout
from runners.host import environment, hardware
from runners.host.inherited import rank_variables
from runners.host.streams import reader_may_leave
from runners.launch.local import agent_command
from runners.mpi.start import mpiexec_command
from runners.plan import Measure
from runners.rank.gpu_probe import GpuMemory, device_costs
from runners.rank.links import (
    collective_fits,
    exchange_limits,
    from_rank0,
    left_out,
    message_sizes,
    tier_fits,
)
from runners.rank.probe import (
    MATRICES,
    ROWS,
    Matrix,
    Memory,
    Probe,
    Products,
    SingleRankRates,
    Step,
    dtypes,
    matrices,
    single_rank_rates,
    ways,
)
from runners.rank.process_group import RankPlace, TorchRanks
from runners.records import calibrations
from runners.records.sealed import write_atomic

LIMIT_S = Measure().calibration_limit_s
# Shares of the limit after which each part ends; what is left is for overruns.
ALONE_UNTIL, SHARED_UNTIL, CHOICE_UNTIL, LINKS_UNTIL = 0.45, 0.6, 0.75, 0.9
COSTS_SHARE = 0.1  # of the first part: launches, waits and copies to and from a GPU
WINDOWS = 3  # of concurrent work of all ranks, if time allows
PRODUCT_WEIGHT = 2  # time of products over that of a memory rate, with all ranks


def concurrent_rate(step: Step, amount: float, probe: Probe, comm: Comm, until_s: float) -> float:
    """Best total rate of all ranks, over up to WINDOWS windows in which all of them work; rank 0's
    clock decides how many."""
    best, on_gpu = 0.0, probe.device.type == "cuda"
    for number in range(WINDOWS):
        window_s = from_rank0(comm, probe.left_s(until_s) / (WINDOWS - number))
        if best and window_s <= 0:
            break
        calls = probe.calls_within(probe.elapsed_s(step), window_s / 4) if on_gpu else 0
        comm.barrier()
        start, done = probe.clock(), 0
        while not done or probe.clock() - start < window_s:
            step()
            done += 1
            if calls and done % calls == 0:
                probe.sync()  # otherwise seconds of work would be enqueued
        probe.sync()
        rank_rate = amount * done / (probe.clock() - start)
        total = torch.tensor([rank_rate], dtype=torch.float64, device=comm.device)
        best = max(best, float(comm.world.combine_(total, "sum").item()))
    return best


def shared_rates(
    probe: Probe, memory: Memory, comm: Comm, alone: SingleRankRates, until_s: float
) -> dict[str, Any]:
    """Totals over all ranks at once; at least what one rank reaches alone, and as often as there
    are ranks where each has a GPU."""
    kinds = dtypes(probe.device)
    weights = [1, 1] + [PRODUCT_WEIGHT] * len(kinds)
    on_gpu = probe.device.type == "cuda"
    alone_ranks = comm.world_size if on_gpu else 1
    matrix = matrices(probe.device)[0]

    def until() -> float:
        share = weights[0] / sum(weights)
        del weights[0]
        return probe.clock() + share * probe.left_s(until_s)

    read = concurrent_rate(memory.product, memory.chunk_bytes, probe, comm, until())
    copy = concurrent_rate(memory.copy, 2 * memory.chunk_bytes, probe, comm, until())
    read = max(read, copy) if on_gpu else read
    flops = {}
    for dtype in kinds:
        name, (n, k) = str(dtype).removeprefix("torch."), matrix[0]
        one_rank, end_s = alone.products[name], until()
        sharing = 1 if on_gpu else comm.world_size
        limit_s = probe.left_s(end_s) / 2
        rows = round(from_rank0(comm, rows_within(one_rank, sharing, limit_s, matrix)))
        way = ways(probe.random(n, k, dtype=dtype))[one_rank.way[f"{rows}x{n}x{k}"]]()
        step = functools.partial(way, probe.random(rows, k, dtype=dtype))
        step()  # warm-up
        rate = concurrent_rate(step, 2 * rows * n * k, probe, comm, end_s)
        flops[name] = max(rate, alone_ranks * alone.rates["matmul_flops_per_s"][name]["peak"])
    return {
        "read_bytes_per_s": max(read, alone_ranks * alone.rates["read_bytes_per_s"]),
        "copy_bytes_per_s": max(copy, alone_ranks * alone.rates["copy_bytes_per_s"]),
        "matmul_flops_per_s": flops,
    }


def rows_within(
    one_rank: Products, ranks: int, limit_s: float, matrix: Matrix = (MATRICES[0], ROWS)
) -> int:
    """The most rows timed alone whose product would end within `limit_s` on `ranks` at once, which
    share the cores evenly; the fewest where none would."""
    (n, k), every = matrix
    crowd = max(1.0, ranks / hardware.usable_cores())
    timed = {m: rate for m in every if (rate := one_rank.flops_per_s.get(f"{m}x{n}x{k}"))}
    fitting = [m for m, rate in timed.items() if crowd * 2 * m * n * k / rate <= limit_s]
    return max(fitting, default=min(timed))


def calibrate_ranks(
    limit_s: float = LIMIT_S, device: torch.device | None = None, nodes: int = 1
) -> dict[str, Any]:
    """Runs on every rank of a started process group and returns the same rates on each.

    Takes at most about `limit_s` seconds; what was not measured in time is named in `left_out`.
    Rank 0 is measured alone first while the others sleep (a rank that waits for a message may
    occupy the core), then all ranks at once, then the collectives.
    """
    device = device or torch.device("cuda" if _backend() == "nccl" else "cpu")
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    comm, probe = Comm(device, ranks, rank), Probe(device)
    fingerprint = environment.fingerprint(environment.capture(device.type)) if rank == 0 else ""
    comm.barrier()
    began_s = probe.clock()
    alone_until, shared_until, choice_until, links_until = (
        began_s + part * limit_s for part in (ALONE_UNTIL, SHARED_UNTIL, CHOICE_UNTIL, LINKS_UNTIL)
    )
    on_gpu = device.type == "cuda"
    memory = GpuMemory(probe) if on_gpu else Memory(probe, ranks, sharing=ranks if rank else 1)
    comm.barrier()
    payload: list[Any] = [None, ""]
    if rank == 0:
        costs_until = probe.clock() + COSTS_SHARE * probe.left_s(alone_until)
        costs = device_costs(probe, costs_until) if on_gpu else {}
        payload = [single_rank_rates(probe, memory, alone_until), fingerprint]
        payload[0].rates.update(costs)
    else:
        probe.sleep(max(0.0, probe.left_s(alone_until)))
    if ranks > 1:
        dist.broadcast_object_list(payload, 0)
    alone, fingerprint = payload
    shared = shared_rates(probe, memory, comm, alone, shared_until)
    exchanged: dict[str, int] = {}
    untried: list[str] = []
    if comm.backend == "gloo":
        exchanged, untried = exchange_limits(probe, comm, choice_until)
    middle = (choice_until + links_until) / 2
    fits = collective_fits(probe, comm.world, links_until if nodes == 1 else middle)
    tiers = tier_fits(probe, comm, nodes, links_until) if nodes > 1 else {}
    untimed = left_out(fits, sizes=len(message_sizes(comm.world).all)) if ranks > 1 else []
    del memory, probe.noise
    if on_gpu:
        torch.cuda.empty_cache()
    return {
        "fingerprint": fingerprint,
        "ranks": ranks,
        "threads": torch.get_num_threads(),
        "backend": _backend(),
        "device": device.type,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "llc_bytes": hardware.llc_bytes(),
        **alone.rates,
        "shared": shared,
        "collectives": fits,
        **({"exchanged": exchanged} if exchanged else {}),
        **({"nodes": nodes, "tiers": tiers} if nodes > 1 else {}),
        "limit_s": limit_s,
        "took_s": from_rank0(comm, probe.clock() - began_s),
        "left_out": alone.left_out + untried + untimed,
    }


def _backend() -> str:
    name = str(dist.get_backend()) if dist.is_initialized() else "none"
    return "mpi" if name == "mpi4py" else name


def launch(ranks: int, threads: int, backend: str, limit_s: float) -> dict[str, Any]:
    """Calibrates in new processes; raises CalledProcessError or TimeoutExpired."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "calibration.json"
        rank = ["-m", "runners.calibrate", "--backend", backend, "--limit", str(limit_s)]
        rank += ["--threads", str(threads), "--rank-of", str(out)]
        variables = rank_variables(os.environ, threads)
        if backend == "mpi":
            command = mpiexec_command(ranks, [sys.executable, *rank], variables)
        else:
            command = [*agent_command(Path(folder), ranks), *rank]
        longest_s = 120 + 10 * limit_s
        subprocess.run(
            command, check=True, timeout=longest_s, env=variables, stdin=subprocess.DEVNULL
        )
        calibration: dict[str, Any] = json.loads(out.read_text())
        return calibration


def run_rank(backend: str, threads: int, limit_s: float, out: Path) -> None:
    """One rank of `launch`; rank 0 writes the result."""
    if backend == "mpi":
        from runners.mpi.backend import export_environment

        export_environment()
    place = RankPlace.from_environment()
    environment.pin(place.local_rank, place.local_ranks, threads)
    torch.set_num_threads(threads)
    device = "cuda" if backend == "nccl" else "cpu"
    placement = RankLayout(place.world_size, backend, device, threads)
    ranks = TorchRanks(place, placement, limit_s=300)
    calibration = calibrate_ranks(limit_s, ranks.device)
    if place.rank == 0:
        write_atomic(out, json.dumps(calibration))
    ranks.close()


@reader_may_leave()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m runners.calibrate", description=__doc__)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, help="per rank; default: cores // ranks")
    parser.add_argument("--backend", default="gloo", choices=("gloo", "mpi", "nccl"))
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds")
    parser.add_argument("--folder", type=Path, default=calibrations.FOLDER)
    parser.add_argument("--show", action="store_true", help="print what is cached, measure nothing")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    threads = args.threads or max(1, hardware.usable_cores() // args.ranks)
    if args.rank_of:
        run_rank(args.backend, threads, args.limit, args.rank_of)
        return 0
    if args.show:
        cached = [calibrations.read(path) for path in sorted(args.folder.glob("*.json"))]
        print("\n".join(map(calibrations.describe, cached)) or f"nothing cached in {args.folder}")
        return 0
    calibration = launch(args.ranks, threads, args.backend, args.limit)
    print(calibrations.describe(calibrations.store(args.folder, calibration)))
    return 0
