"""Ranks as forks of this process, each in its namespace."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from benchmarks.emulate import network
from runners.host import isolation
from runners.launch.forked import end_with
from runners.rank.process_group import RankPlace
from runners.records.emulation import Emulation

LAST_S, POLL_S = 1.0, 0.05  # wait for further failures after the first; interval
PORT = "29500"  # in the first rank's namespace, which nothing else is in


def place_of(rank: int, ranks: int, cluster: Emulation) -> RankPlace:
    """The rank's place; the last node may have fewer ranks."""
    node, local = divmod(rank, cluster.ranks_per_node)
    here = min(cluster.ranks_per_node, ranks - node * cluster.ranks_per_node)
    return RankPlace(rank, ranks, local, here, node)


def run(ranks: int, cluster: Emulation, body: Callable[[RankPlace], int]) -> list[dict[str, Any]]:
    """Calls `body` in a fork for each rank and waits for all: {rank, exitcode, pid} of those that
    failed. Soon after the first failure the others are ended. The links must exist already."""
    os.environ.update(
        MASTER_ADDR=network.address(0, cluster.ranks_per_node), MASTER_PORT=PORT,
        GLOO_SOCKET_IFNAME="eth0", WORLD_SIZE=str(ranks),
    )  # fmt: skip
    pids: dict[int, int] = {}
    parent = os.getpid()
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            isolation.die_with_parent(parent)
            end_with(partial(_run_rank, place_of(rank, ranks, cluster), body))
        pids[child] = rank
    return _wait(pids)


def _run_rank(place: RankPlace, body: Callable[[RankPlace], int]) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    network.enter(network.namespace(place.rank))
    os.environ.update(
        RANK=str(place.rank), LOCAL_RANK=str(place.local_rank),
        LOCAL_WORLD_SIZE=str(place.local_ranks),
    )  # fmt: skip
    return body(place)


def _end(pids: Collection[int]) -> None:
    """SIGTERM, on which a rank prints where it is; then SIGKILL."""
    for sign, grace_s in ((signal.SIGTERM, LAST_S), (signal.SIGKILL, 0.0)):
        for child in pids:
            os.kill(child, sign)
        time.sleep(grace_s if pids else 0.0)
    for child in pids:
        os.waitpid(child, 0)


def _wait(pids: dict[int, int]) -> list[dict[str, Any]]:
    failures, deadline = [], float("inf")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        while pids and time.monotonic() < deadline:
            child, status = os.waitpid(-1, os.WNOHANG)
            if child == 0:
                time.sleep(POLL_S)
                continue
            rank = pids.pop(child)
            if code := os.waitstatus_to_exitcode(status):
                failures.append({"rank": rank, "exitcode": code, "pid": child})
                deadline = min(deadline, time.monotonic() + LAST_S)
    finally:
        _end(pids)
    return failures
