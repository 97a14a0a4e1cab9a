"""A Ray of two nodes on this machine, in two network namespaces joined by a cable.

The second node has a mount namespace, too, in which an empty file system lies over the cluster's
folder: it shares no folder with the first, on which sweeps are started. `running` starts and stops
it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.namespaces import Net, hidden, two_hosts

LIMIT_S = 60.0
PORT, CLIENT_PORT, DASHBOARD_PORT = 6399, 10001, 8265
CPUS = 2
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
INSTALL = "pip install -e '.[ray]'"


class NoRay(Exception):
    """Ray cannot be started; the message says why."""


@dataclass
class Cluster:
    """A running Ray; its nodes' processes by number of the node."""

    net: Net
    folder: Path
    nodes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{self.net.addresses[0]}:{PORT}"

    @property
    def variables(self) -> dict[str, str]:
        """Of a program beside the cluster: no proxy lies between the nodes, and Ray keeps its token
        in no user's home."""
        kept = {name: value for name, value in os.environ.items() if name.lower() not in PROXIES}
        kept.pop("RAY_ADDRESS", None)
        return {**kept, "HOME": str(self.folder), "RAY_USAGE_STATS_ENABLED": "0"}

    def start(self) -> None:
        """Raises NoRay."""
        self.start_node(0)
        self.start_node(1)

    def start_node(self, node: int) -> None:
        """Starts a node and waits until the cluster has it."""
        ray = Path(sys.executable).with_name("ray")
        if not ray.exists():
            raise NoRay(f"{ray} is not there; {INSTALL}")
        command = [
            str(ray), "start", "--block", f"--node-ip-address={self.net.addresses[node]}",
            f"--num-cpus={CPUS}", "--object-store-memory=100000000",
        ]  # fmt: skip
        if node == 0:
            command += [
                "--head", f"--port={PORT}", f"--temp-dir={self.folder}/ray",
                f"--ray-client-server-port={CLIENT_PORT}",
                f"--dashboard-host={self.net.addresses[0]}", f"--dashboard-port={DASHBOARD_PORT}",
            ]  # fmt: skip
        else:
            command = hidden(self.folder, [*command, f"--address={self.address}"])
        with (self.folder / f"node{node}.log").open("ab") as log:
            self.nodes[node] = subprocess.Popen(
                self.net.run(node, *command), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self.variables, start_new_session=True, cwd=self.folder,
            )  # fmt: skip
        self._wait(len(self.nodes))

    def _wait(self, count: int) -> None:
        """Until `count` nodes are alive."""
        deadline = time.monotonic() + LIMIT_S
        code = (
            f"import ray; ray.init('{self.address}', log_to_driver=False); "
            "print('alive', sum(node['Alive'] for node in ray.nodes()))"
        )
        seen = ""
        while time.monotonic() < deadline:
            time.sleep(0.2)
            for node, process in self.nodes.items():
                if process.poll() is not None:
                    raise NoRay(f"node {node} ended: {self._log(node)}")
            done = self.run(sys.executable, "-c", code)
            seen = done.stdout + done.stderr
            if f"alive {count}\n" in done.stdout:
                return
        raise NoRay(f"{count} nodes are not there after {LIMIT_S:g} s: {seen[-2000:]}")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A program on the first node."""
        return subprocess.run(
            self.net.run(0, *command), capture_output=True, text=True, timeout=LIMIT_S,
            env=self.variables, stdin=subprocess.DEVNULL, cwd=self.folder,
        )  # fmt: skip

    def kill_node(self, node: int) -> None:
        """As if the machine had lost its power."""
        for pid in self.net.pids(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.nodes.pop(node).wait(LIMIT_S)

    def _log(self, node: int) -> str:
        return (self.folder / f"node{node}.log").read_text()[-2000:]

    def remaining(self) -> list[str]:
        """Command lines of processes that are still in the nodes' namespaces."""
        lines = []
        for pid in [*self.net.pids(0), *self.net.pids(1)]:
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                lines.append(f"{pid} {line[:120]}")
        return lines

    def stop(self) -> list[str]:
        """Stops the nodes, the head last; returns processes that are left, and kills them."""
        for node in sorted(self.nodes, reverse=True):
            self.nodes[node].terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.nodes[node].wait(LIMIT_S)
        deadline = time.monotonic() + 20
        while self.remaining() and time.monotonic() < deadline:
            time.sleep(0.2)
        remaining = self.remaining()
        for pid in [*self.net.pids(0), *self.net.pids(1)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return remaining


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    """A Ray for the time of the block; raises NoRay, also where something of it is left at the
    end."""
    folder = Path(tempfile.mkdtemp(prefix="moe-ray-"))  # short: sockets' paths are limited
    try:
        with two_hosts("moe-ray", "10.231.79") as net:
            cluster = Cluster(net, folder)
            try:
                cluster.start()
                yield cluster
            finally:
                remaining = cluster.stop()
            if remaining:
                raise NoRay(f"processes are left: {remaining}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
