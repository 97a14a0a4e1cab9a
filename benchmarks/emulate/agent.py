"""Starts the ranks of an emulated launch, waits for them, and ends them. Started by `launch`, in a
mount namespace of its own:

    python -m benchmarks.emulate.agent PLAN RATES
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from pathlib import Path

from benchmarks.emulate import network, rank, rates
from benchmarks.emulate.start_gate import StartGate
from runners.host import isolation
from runners.launch import launch_files
from runners.plan import load
from runners.rank import worker
from runners.rank.process_group import RankPlace

LAST_S, POLL_S = 1.0, 0.05  # wait for further failures after the first; interval
PORT = "29500"  # in the first rank's namespace, which nothing else is in


def main(arguments: list[str]) -> int:
    plan_path, rates_path = arguments
    isolation.die_with_parent(int(os.environ.get("MOE_LAUNCHER_PID", "0")) or None, signal.SIGTERM)
    plan, known = load(Path(plan_path)), rates.load(Path(rates_path))
    ranks, cluster = plan.placement.world_size, known.cluster
    try:
        network.set_up(ranks, cluster)
    except network.NetworkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    os.environ.update(
        MASTER_ADDR=network.address(0, cluster.ranks_per_node), MASTER_PORT=PORT,
        GLOO_SOCKET_IFNAME="eth0", MOE_AGENT_PID=str(os.getpid()),
    )  # fmt: skip
    worker.prepare([plan_path])
    gate = StartGate(ranks, plan.measure.cell_limit_s + 60)
    gc.collect()
    gc.freeze()
    pids: dict[int, int] = {}
    for number in range(ranks):
        node, local = divmod(number, cluster.ranks_per_node)
        here = min(cluster.ranks_per_node, ranks - node * cluster.ranks_per_node)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                _redirect(Path(plan.launch_dir), number)
                network.enter(network.namespace(number))
                place = RankPlace(number, ranks, local, here, node)
                code = rank.main(plan_path, place, gate, cluster, known)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        pids[child] = number
    return _wait(pids, Path(plan.launch_dir))


def _redirect(launch_dir: Path, number: int) -> None:
    """This process's output goes to the rank's log."""
    path = launch_files.log_path(launch_dir, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


def _wait(pids: dict[int, int], launch_dir: Path) -> int:
    """Waits for all ranks; ends the others soon after the first that fails."""
    failures, deadline = [], float("inf")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        while pids:
            child, status = os.waitpid(-1, os.WNOHANG)
            if child == 0:
                if time.monotonic() > deadline:
                    break
                time.sleep(POLL_S)
                continue
            number = pids.pop(child)
            if code := os.waitstatus_to_exitcode(status):
                failures.append({"rank": number, "exitcode": code, "pid": child})
                deadline = min(deadline, time.monotonic() + LAST_S)
    finally:
        for child in pids:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if failures:
        (launch_dir / launch_files.FAILURES).write_text(json.dumps(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
