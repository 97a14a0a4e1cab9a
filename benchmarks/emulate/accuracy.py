"""How near emulated messages and computing are to what the links and the dilation say.

    python -m benchmarks.emulate.accuracy [RANKS ...] [--markdown]     # by default 4, 8, 16, 32

An all-to-all of 1 MiB and of 256 KiB on each rank should take the bytes on its slower link over
that link's rate; matrix products should take the dilated time of the same products on one rank.
Times are medians of makespans; none is void, so that ranks which are late are in the error.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.emulate import collectives, forks, launch, network
from benchmarks.emulate.pace import Pace
from benchmarks.emulate.start_gate import StartGate
from runners.errors import ConfigError
from runners.rank.process_group import RankPlace
from runners.records.emulation import Emulation

RANKS = (4, 8, 16, 32)
SIZES = (1 << 20, 256 << 10)
SAMPLES, LIMIT_S = 7, 300.0
PRODUCTS = 400  # of 96 x 96 matrices: about 8 ms of a core
HEADER = ("ranks", "what", "expected ms", "measured ms", "error")


def link_s(size: int, ranks: int, cluster: Emulation) -> float:
    """Time of an all-to-all of `size` bytes on the slower of a rank's two links, in s."""
    near = size * (min(cluster.ranks_per_node, ranks) - 1) / ranks
    far = size * (ranks - min(cluster.ranks_per_node, ranks)) / ranks
    rates = cluster.intra_mbit_s, cluster.inter_mbit_s
    return max(
        cluster.overhead * part * 8 / (rate * 1e6)
        for part, rate in zip((near, far), rates, strict=True)
    )


def body(place: RankPlace, cluster: Emulation, gate: StartGate, folder: Path) -> int:
    """One rank: writes its blocks' {name: [[start, end], ...]} in s."""
    torch.set_num_threads(1)
    pace = Pace(cluster.dilation)
    collectives.install(pace)
    dist.init_process_group("gloo", timeout=timedelta(seconds=LIMIT_S))
    matrix = torch.randn(96, 96)

    def products() -> None:
        for _ in range(PRODUCTS):
            torch.mm(matrix, matrix)

    calls = {"products": products}
    for size in SIZES:
        x = torch.ones(size // 4)
        out = torch.empty_like(x)
        calls[f"all-to-all {size >> 10} KiB"] = lambda o=out, i=x: dist.all_to_all_single(o, i)
    blocks: dict[str, list[list[float]]] = {name: [] for name in calls}
    for number in range(SAMPLES + 1):
        for name, call in calls.items():
            gate.wait()
            pace.begin()
            start = time.monotonic()
            call()
            pace.settle()
            if number:
                blocks[name].append([start, time.monotonic()])
    (folder / f"{place.rank}.json").write_text(json.dumps(blocks))
    gate.wait()
    return 0


def inside(ranks: int, cluster: Emulation, folder: Path) -> int:
    """Runs the ranks; called in a private network."""
    network.set_up(ranks, cluster)
    gate = StartGate(ranks, LIMIT_S)
    return len(forks.run(ranks, cluster, lambda place: body(place, cluster, gate, folder)))


def medians_s(ranks: int, cluster: Emulation) -> dict[str, float]:
    """{name: median makespan in s}; raises ConfigError where nothing can be had."""
    with tempfile.TemporaryDirectory() as name:
        program = [
            sys.executable,
            "-m",
            "benchmarks.emulate.accuracy",
            str(ranks),
            "--inside",
            name,
        ]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        try:
            done = subprocess.run(
                launch.private(program), check=False, timeout=2 * LIMIT_S, env=variables
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(f"emulation: {ranks} ranks took over {2 * LIMIT_S:g} s") from None
        if done.returncode:
            raise ConfigError(f"emulation: {ranks} ranks ended with exit code {done.returncode}")
        rows = [json.loads((Path(name) / f"{rank}.json").read_text()) for rank in range(ranks)]
    medians = {}
    for key in rows[0]:
        blocks = zip(*(row[key] for row in rows), strict=True)
        spans = [max(end for _, end in one) - min(start for start, _ in one) for one in blocks]
        medians[key] = statistics.median(spans)
    return medians


def table(all_ranks: list[int], cluster: Emulation) -> list[list[str]]:
    alone, rows = medians_s(1, cluster)["products"], []
    for ranks in all_ranks:
        expected = {f"all-to-all {size >> 10} KiB": link_s(size, ranks, cluster) for size in SIZES}
        for name, seconds in medians_s(ranks, cluster).items():
            should = expected.get(name, alone)
            rows.append([
                str(ranks), name, f"{1e3 * should:.0f}", f"{1e3 * seconds:.0f}",
                f"{seconds / should - 1:+.1%}",
            ])  # fmt: skip
    return rows


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.emulate.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("ranks", type=int, nargs="*", help="numbers of ranks")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    cluster = Emulation()
    odd = [n for n in options.ranks if n < 2 or n % cluster.ranks_per_node]
    if odd and not options.inside:
        parser.error(f"RANKS {odd[0]}: allowed are multiples of {cluster.ranks_per_node}")
    if options.inside:
        return inside(options.ranks[0], cluster, options.inside)
    try:
        launch.check()
        rows = table(options.ranks or list(RANKS), cluster)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.markdown:
        lines = ["| " + " | ".join(row) + " |" for row in (HEADER, *rows)]
        print("\n".join([lines[0], "|" + "---|" * len(HEADER), *lines[1:]]))
    else:
        print("\n".join("".join(f"{cell:>20}" for cell in row) for row in (HEADER, *rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
