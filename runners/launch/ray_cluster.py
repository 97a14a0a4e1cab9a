"""The connection to a Ray cluster, and what its nodes have. Torch-free; Ray is imported where it is
used.

The packages moe and runners travel with the connection, so that every node runs the launcher's own
code; torch has to be on the nodes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from moe.spec import RankLayout
from runners.config.ray_options import RayOptions
from runners.errors import ConfigError
from runners.host.machine import NodeResources, this_machine
from runners.launch.node_agent import different, host_facts, package_folders

LOCAL = "local"
CONNECT_S = 10.0
FACTS_S = 180.0  # for the first answers of all nodes, which install the code first
INSTALL = "in the clone: pip install -e '.[ray]'"


class RayCluster:
    """A connection to a cluster, as this process's only one."""

    def __init__(self, options: RayOptions) -> None:
        """Connects; raises ConfigError where there is no such cluster, or one of other versions."""
        self.options = options
        self.placed: set[str] = set()  # names of the shapes that have nodes
        self._facts: list[dict[str, Any]] = []  # of every node
        ray = imported()
        where = options.address or os.environ.get("RAY_ADDRESS") or "auto"
        named = f"hydra.launcher.address={where}"
        _check_reachable(where, named)
        settings: dict[str, Any] = {
            "address": where,
            "runtime_env": _runtime_env(options.runtime_env),
            "log_to_driver": False,
            "configure_logging": False,
            "logging_level": logging.ERROR,
        }
        if where == LOCAL:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            settings |= {"num_cpus": this_machine().cores, "include_dashboard": False}
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with _quiet():
                ray.init(**settings)
            signal.signal(signal.SIGTERM, handler)  # not Ray's, which ends the process
        except Exception as error:  # of any kind, by the way of connecting
            raise ConfigError(
                f"{named}: {_reason(error)}; allowed is a running cluster with this machine's "
                "versions of Ray and Python; set hydra.launcher.address or RAY_ADDRESS to it, or "
                "hydra.launcher.address=local to start one on this machine"
            ) from error

    def nodes(self) -> dict[str, dict[str, float]]:
        """Resources of the nodes that may be measured on, by id: those with CPUs, and in a cluster
        with GPUs those with GPUs."""
        alive = {
            str(node["NodeID"]): dict(node["Resources"])
            for node in imported().nodes()
            if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
        }
        with_gpus = {name: has for name, has in alive.items() if has.get("GPU", 0) >= 1}
        return with_gpus or alive

    def resources(self) -> NodeResources:
        """Least resources of the nodes, and their number; raises ConfigError without any."""
        nodes = list(self.nodes().values())
        if not nodes:
            raise ConfigError(
                "hydra/launcher=ray: the cluster has no node with a CPU; allowed is a cluster with "
                "at least one; start its workers first"
            )
        return NodeResources(
            cores=int(min(has["CPU"] for has in nodes)),
            cuda_devices=int(min(has.get("GPU", 0) for has in nodes)),
            nodes=len(nodes),
            memory_bytes=int(min(has.get("memory", 0) for has in nodes)),
        )

    def facts(self) -> list[dict[str, Any]]:
        """What a launch on each node would record of it. Raises ConfigError where nodes differ in
        the versions that have to be equal."""
        if not self._facts:
            self._facts = self._ask_facts()
        return self._facts

    def _ask_facts(self) -> list[dict[str, Any]]:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        capture = ray.remote(host_facts)
        answers = [
            capture.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote()
            for node in sorted(self.nodes())
        ]
        try:
            facts: list[dict[str, Any]] = ray.get(answers, timeout=FACTS_S)
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(
                f"hydra/launcher=ray: a node cannot run this project: {lines[-1]}; allowed are "
                "nodes that can; install torch there"
            ) from error
        for number, one in enumerate(facts):
            if difference := different(one["alike"], facts[0]["alike"]):
                raise ConfigError(
                    f"hydra/launcher=ray: node {number} has {difference}; allowed are equal "
                    "versions on all nodes; install the same there"
                )
        if not facts[0]["alike"]["torch"]:
            raise ConfigError(
                "hydra/launcher=ray: the nodes have no torch; allowed are nodes with it; install "
                "it there"
            )
        return facts

    def bundle(self, placement: RankLayout) -> dict[str, float]:
        """What a node's ranks take of it."""
        least = self.resources()
        cpus = min(placement.ranks_per_node * placement.threads, least.cores)
        bundle: dict[str, float] = {"CPU": least.cores if self.options.exclusive else cpus}
        if placement.device == "cuda":
            bundle["GPU"] = 1 if placement.staged else placement.ranks_per_node
        return bundle

    def close(self) -> None:
        """Disconnects; Ray then removes what is left of the placement groups."""
        imported().shutdown()


@contextlib.contextmanager
def connected(options: RayOptions) -> Iterator[RayCluster]:
    """A connection for the time of the block."""
    cluster = RayCluster(options)
    try:
        yield cluster
    finally:
        cluster.close()


def imported() -> Any:
    """The module; raises ConfigError where it is not installed. A call of it without a connection
    starts no cluster on this machine."""
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"hydra/launcher=ray: Ray is not installed; allowed where it is; {INSTALL}"
        ) from error
    return ray


def _reason(error: BaseException) -> str:
    """What Ray says, and the last line of what caused it, in one line."""
    text = " ".join(str(error).split())[:400] or type(error).__name__
    cause = str(error.__cause__ or error.__context__ or "").strip().splitlines()
    return f"{text} ({cause[-1].strip()[:400]})" if cause else text


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops what native code writes to stderr: Ray reports a failure once a second there."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def _runtime_env(further: Mapping[str, Any]) -> dict[str, Any]:
    """Ray's runtime environment, in which nodes find this process's own code."""
    own = map(str, package_folders())
    return {**further, "py_modules": [*own, *further.get("py_modules", [])]}


def _check_reachable(where: str, named: str) -> None:
    """Raises ConfigError, at once, where nobody listens: Ray itself tries for long."""
    address = where if "://" in where else f"ray://{where}"
    try:
        parsed = urllib.parse.urlsplit(address)
        port = parsed.port
        if not parsed.hostname or port is None:
            return  # auto, local, or another kind of address, which Ray judges
        socket.create_connection((parsed.hostname, port), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{named}: no cluster answers there ({error}); allowed is that of a running one; "
            "start it (ray start --head), or hydra.launcher.address=local for one on this machine"
        ) from error
