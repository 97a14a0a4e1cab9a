"""Several hosts without a scheduler: the same command on each, one torchrun agent per host.

Node 0 validates, starts launches and makes records. The other hosts wait for its orders, start an
agent for each launch, and end when node 0 does. All share the sweep's folder; its `hosts/` holds

    order.json             by node 0: {session, launch, nodes, token}; launch -1 opens a session
    <session>-<rank>       a host that has joined the session
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runners.config.hosts import Hosts
from runners.errors import ConfigError
from runners.host.network import own_address, resolve, use_interface
from runners.launch.local import LaunchProcess, Start, rank_environment, start
from runners.plan import LaunchPlan, load, save
from runners.records.sealed import write_atomic

POLL_S = 0.1
FOLDER = "hosts"
END = "end"


def agent_command(plan: LaunchPlan, hosts: Hosts) -> list[str]:
    """torchrun's agent of one node. With the static rendezvous rank 0 is on node 0, beside its
    parent, and torch does not guess from host names where the store runs."""
    launch_dir, address = Path(plan.launch_dir), resolve(hosts.address)
    agent_dir = launch_dir / "agents" / str(hosts.node_rank)
    agent_dir.mkdir(parents=True, exist_ok=True)
    return [
        *(sys.executable, "-m", "runners.launch.torchrun_agent", str(agent_dir)),
        f"--nnodes={plan.placement.nodes}",
        f"--node-rank={hosts.node_rank}",
        f"--nproc-per-node={plan.placement.ranks_per_node}",
        "--rdzv-backend=static",
        f"--master-addr={address}",
        f"--master-port={hosts.port}",
        f"--rdzv-conf=timeout={int(hosts.wait_s)}",
        f"--local-addr={own_address(address)}",
        "--max-restarts=0",
        "--monitor-interval=0.1",
        f"--log-dir={launch_dir / 'logs' / f'node{hosts.node_rank}'}",
        "--redirects=3",
        *("-m", "runners.worker", str(launch_dir / "launch.json")),
    ]


def start_agent(plan: LaunchPlan, hosts: Hosts, token: str) -> subprocess.Popen[bytes]:
    """`token` identifies the ranks of a launch to each other; the order's file, which only its
    owner can read, carries it to the other hosts."""
    launch_dir = Path(plan.launch_dir)
    variables = rank_environment(plan)
    if "GLOO_SOCKET_IFNAME" not in os.environ:
        del variables["GLOO_SOCKET_IFNAME"]  # loopback, for one host only
    variables["MOE_LAUNCH_TOKEN"] = token
    use_interface(variables, resolve(hosts.address), hosts.interface)
    logs = launch_dir / "logs" / f"node{hosts.node_rank}"
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / "agent.log").open("wb") as log:
        return subprocess.Popen(
            agent_command(plan, hosts),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )


@dataclass
class HostsLaunchProcess(LaunchProcess):
    """Node 0's agent; ranks on other nodes are followed by the files they write."""

    ranks_per_node: int = 1

    def failures(self) -> list[dict[str, Any]]:
        """Failures that the agents of all nodes reported, node 0's first."""
        failures: list[dict[str, Any]] = []
        for path in sorted(self.launch_dir.glob("agents/*/failures.json")):
            try:
                failures += json.loads(path.read_text("utf-8"))
            except (OSError, ValueError):
                continue
        return failures

    def log_path(self, rank: int) -> Path:
        """A rank's stderr; torchrun names its folder by the rank's number within its node."""
        node, local = divmod(rank, self.ranks_per_node)
        logs = self.launch_dir / "logs" / f"node{node}"
        paths = sorted(logs.glob(f"*/attempt_0/{local}/stderr.log"))
        return paths[0] if paths else logs / "agent.log"


class FirstHost:
    """Starts launches from node 0, on all nodes that a launch takes."""

    def __init__(self, sweep_dir: Path, hosts: Hosts) -> None:
        self.sweep_dir, self.hosts = sweep_dir, hosts
        self.folder = sweep_dir / FOLDER
        self.session = uuid.uuid4().hex[:12]

    def __call__(self, plan: LaunchPlan) -> LaunchProcess:
        if plan.placement.nodes == 1:
            return start(plan)
        launch_dir = Path(plan.launch_dir)
        (launch_dir / "logs").mkdir(parents=True)
        save(plan, launch_dir / "launch.json")
        token = secrets.token_hex(16)
        self.order(launch=plan.launch, nodes=plan.placement.nodes, token=token)
        process = start_agent(plan, self.hosts, token)
        on_node = plan.placement.ranks_per_node
        return HostsLaunchProcess(process, launch_dir, ranks_per_node=on_node)

    def order(self, **what: Any) -> None:
        write_atomic(self.folder / "order.json", json.dumps({"session": self.session, **what}))

    def wait_for_hosts(self) -> None:
        """Raises ConfigError naming the hosts that do not join in time."""
        self.order(launch=-1, nodes=self.hosts.nnodes)
        deadline = time.monotonic() + self.hosts.wait_s
        missing = list(range(1, self.hosts.nnodes))
        while missing:
            missing = [n for n in missing if not (self.folder / f"{self.session}-{n}").exists()]
            if missing and time.monotonic() > deadline:
                names = ", ".join(map(str, missing))
                raise ConfigError(
                    f"hosts.node_rank={names}: did not come within {self.hosts.wait_s:g} s; start "
                    "the same command there, with the same MOE_RUN and a shared folder"
                )
            time.sleep(POLL_S)


@contextmanager
def starting(sweep_dir: Path, hosts: Hosts) -> Iterator[Start]:
    """How to start launches: here, or on several hosts, which are released at the end."""
    if hosts.nnodes == 1:
        yield start
        return
    first = FirstHost(sweep_dir, hosts)
    try:
        first.wait_for_hosts()
        yield first
    finally:
        first.order(launch=END)


@dataclass
class Follower:
    """Another host: runs one agent at a time, as node 0 orders."""

    sweep_dir: Path
    hosts: Hosts
    agent: subprocess.Popen[bytes] | None = None
    current: tuple[str, int] | None = None  # session and launch of the agent
    sessions: set[str] = field(default_factory=set)

    def handle(self, order: dict[str, Any]) -> bool:
        """Carries out an order; True when it ends a session that this host has joined."""
        session, launch = str(order["session"]), order["launch"]
        if launch == END:
            self.end()
            return session in self.sessions
        if session not in self.sessions:
            self.sessions.add(session)
            (self.sweep_dir / FOLDER / f"{session}-{self.hosts.node_rank}").touch()
        if launch >= 0 and self.current != (session, launch):
            self.end()
            self.current = session, launch
            if self.hosts.node_rank < int(order["nodes"]):
                path = self.sweep_dir.resolve() / "launches" / str(launch) / "launch.json"
                self.agent = start_agent(load(path), self.hosts, str(order.get("token", "")))
        return False

    def end(self) -> None:
        """Ends the agent of the previous launch."""
        if self.agent:
            LaunchProcess(self.agent, self.sweep_dir).end()
        self.agent = None


def join(sweep_dir: Path, hosts: Hosts) -> bool:
    """Lends this host's ranks until node 0 ends; False after `wait_s` without an order."""
    follower, last_contact, last = Follower(sweep_dir, hosts), time.monotonic(), None
    print(f"host {hosts.node_rank} of {hosts.nnodes}: waiting for node 0", file=sys.stderr)
    try:
        while time.monotonic() - last_contact < hosts.wait_s:
            order = read_order(sweep_dir)
            if order and order != last:
                last, last_contact = order, time.monotonic()
                if follower.handle(order):
                    return True
            if follower.agent and follower.agent.poll() is None:
                last_contact = time.monotonic()
            time.sleep(POLL_S)
    finally:
        follower.end()
    print(f"error: no word from node 0 in {sweep_dir} for {hosts.wait_s:g} s", file=sys.stderr)
    return False


def read_order(sweep_dir: Path) -> dict[str, Any] | None:
    """Node 0's latest order; None where there is none, or it is incomplete."""
    try:
        order = json.loads((sweep_dir / FOLDER / "order.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return order if isinstance(order, dict) else None
