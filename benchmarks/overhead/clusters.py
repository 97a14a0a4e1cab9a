"""What it costs to share no folder: how long ranks take to start on Ray, and whether sending their
lines makes a step slower. As root, with iproute2, and Ray installed for `start`.

    python -m benchmarks.overhead.clusters start        # 10 starts of each, about 4 minutes
    python -m benchmarks.overhead.clusters sending      # 40 launches of each, about 12 minutes

Both take turns between the two ways, on two hosts (network namespaces of this machine, joined by a
cable). The second host sees the first one's folder, or has an empty file system in its place.

start    ranks are started by hosts=many with a shared folder, and by hydra/launcher=ray. `launch`:
         from the launch's plan on disk to the first line of the last rank; `command`: from the
         start of the command to that line, on Ray with the connection and the placement group.
sending  hosts=many, one rank on each host, with a shared folder and without: ratio of the steps'
         median times. The interval is Welch's over the means of sessions, of four launches each,
         for all cells together (Bonferroni).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from scipy.stats import ttest_ind

from runners.records import record, stats
from tests.support.namespaces import Net, hidden, two_hosts
from tests.system.ray import cluster

ROOT = Path(__file__).resolve().parents[2]
BENCH = [sys.executable, str(ROOT / "runners" / "bench.py"), "-m"]
LIMIT_S = 600
KEY = "a secret of this benchmark"
PORT = 29411
LAUNCHES = 4  # of a session of `sending`
CELLS = ["strategy=tp,ep", "world_size=2", "hosts.ranks_per_node=1", "batch_size=512",
         "tracker=none", "report=false", "threads=1"]  # fmt: skip
ONE_CELL = ["strategy=tp", "world_size=4", "hosts.ranks_per_node=2", "tracker=none",
            "report=false", "measure=quick", "threads=1"]  # fmt: skip
CONFIDENCE = 0.95


def on_hosts(net: Net, folder: Path, run: str, words: Sequence[str], shared: bool) -> Path:
    """One session on both hosts; the sweep's folder."""
    variables = {
        **os.environ, "NNODES": "2", "MOE_RUN": run, "MOE_KEY": KEY,
        "RDZV_ENDPOINT": f"{net.addresses[0]}:{PORT}",
    }  # fmt: skip
    command = [*BENCH, *words, "hosts=many", f"hosts.shared_folder={str(shared).lower()}"]
    other = command if shared else hidden(folder, command)
    processes = [
        _start(net.run(host, *how), folder, {**variables, "NODE_RANK": str(host)})
        for host, how in ((1, other), (0, command))
    ]
    for process in processes:
        _end(process)
    return folder / "outputs" / run


def on_ray(ray: cluster.Cluster, folder: Path, run: str, words: Sequence[str]) -> Path:
    """The same sweep on Ray."""
    sweep = folder / "outputs" / run
    command = [*BENCH, *words, "hydra/launcher=ray", f"hydra.sweep.dir={sweep}"]
    variables = {**ray.variables, "RAY_ADDRESS": ray.address}
    _end(_start(ray.net.run(0, *command), folder, variables))
    return sweep


def _start(
    command: Sequence[str], folder: Path, variables: Mapping[str, str]
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=folder, env=variables, text=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def _end(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=LIMIT_S)
    if process.returncode:
        raise SystemExit(f"{process.args}: {err}")


def ranks_started(sweep: Path) -> float:
    """Wall-clock time of the first line of the last rank of launch 0, whose clock is this
    machine's."""
    offset = time.time() - time.monotonic()
    firsts = [
        json.loads(path.read_text("utf-8").splitlines()[0])["clock_ns"] / 1e9
        for path in (sweep / "launches" / "0" / "samples").iterdir()
    ]
    return max(firsts) + offset


def starts(times: int) -> None:
    """Prints both durations of both ways."""
    seconds: dict[tuple[str, str], list[float]] = {}
    with cluster.running() as ray:
        for number in range(times):
            for way in ("hosts", "ray") if number % 2 else ("ray", "hosts"):
                began, run = time.time(), f"{way}-{number}"
                if way == "ray":
                    sweep = on_ray(ray, ray.folder, run, ONE_CELL)
                else:
                    sweep = on_hosts(ray.net, ray.folder, run, ONE_CELL, shared=True)
                plan = sweep / "launches" / "0" / "launch.json"
                at = ranks_started(sweep)
                seconds.setdefault((way, "launch"), []).append(at - plan.stat().st_mtime)
                seconds.setdefault((way, "command"), []).append(at - began)
    print(f"{times} starts of 2 x 2 ranks each; median and range in s\n")
    print("| | hosts=many, shared folder | hydra/launcher=ray | more on Ray |")
    print("|---|---|---|---|")
    for part in ("launch", "command"):
        hosts, on = seconds["hosts", part], seconds["ray", part]
        more = statistics.median(on) - statistics.median(hosts)
        print(f"| {part} | {_spread(hosts)} | {_spread(on)} | {more:.2f} |")


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def sending(sessions: int) -> None:
    """Prints the ratio of step times without a shared folder to those with one."""
    means: dict[tuple[str, bool], list[float]] = {}
    words = [*CELLS, f"measure.launches={LAUNCHES}"]
    with tempfile.TemporaryDirectory() as name, two_hosts("moe-sending", "10.231.80") as net:
        folder = Path(name)
        for number in range(sessions):
            for shared in (True, False) if number % 2 else (False, True):
                run = f"{'shared' if shared else 'sent'}-{number}"
                sweep = on_hosts(net, folder, run, words, shared)
                logs: dict[str, list[float]] = {}
                for one in map(record.read, record.paths(sweep)):
                    median_ms = stats.headline(one)["median_duration_ms"]
                    assert median_ms is not None
                    logs.setdefault(one.cell.strategy.name, []).append(math.log(median_ms))
                for strategy, values in logs.items():
                    assert len(values) == LAUNCHES
                    means.setdefault((strategy, shared), []).append(statistics.mean(values))
    print(f"{sessions * LAUNCHES} launches of each; sent / shared, {CONFIDENCE:.0%} for all\n")
    print("| cell | shared folder, ms | sent / shared |")
    print("|---|---|---|")
    strategies = sorted({strategy for strategy, _ in means})
    for strategy in strategies:
        sent, shared_logs = means[strategy, False], means[strategy, True]
        level = 1 - (1 - CONFIDENCE) / len(strategies)
        interval = ttest_ind(sent, shared_logs, equal_var=False).confidence_interval(level)
        ratio = math.exp(statistics.mean(sent) - statistics.mean(shared_logs))
        low, high = math.exp(interval.low), math.exp(interval.high)
        plain_ms = math.exp(statistics.mean(shared_logs))
        print(f"| {strategy} | {plain_ms:.3g} | {ratio:.3f} [{low:.3f}, {high:.3f}] |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["start", "sending"])
    parser.add_argument("--times", type=int, default=10, help="starts, or sessions, of each way")
    args = parser.parse_args()
    (starts if args.what == "start" else sending)(args.times)
    return 0


if __name__ == "__main__":
    sys.exit(main())
