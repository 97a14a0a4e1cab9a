"""Several hosts without a scheduler: the same command on each, one torchrun agent per host.

Node 0 validates, starts launches and makes records. The other hosts wait for its orders, start an
agent for each launch, and end when node 0 does. With hosts.shared_folder all share the sweep's
folder; its `hosts/` holds

    order.json             by node 0: {session, launch, nodes, token}; launch -1 opens a session.
                           Only its owner can read it
    <session>-<rank>       a host that has joined the session

Without, the other hosts connect to node 0 (stream.py), which fetches what their ranks write.
"""

from __future__ import annotations

import json
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
from runners.launch import stream
from runners.launch.hosts_agent import start_agent
from runners.launch.local import LaunchProcess, RunningLaunch, Start, save_plan, start
from runners.launch.remote import NoNodes, RemoteLaunch
from runners.plan import SHARED_FOLDER, STREAM, LaunchPlan, load
from runners.records.sealed import write_atomic

POLL_S = 0.1
FOLDER = "hosts"
END = "end"


class FirstHost:
    """Starts launches from node 0, on all nodes that a launch takes, in a folder that all share."""

    def __init__(self, sweep_dir: Path, hosts: Hosts) -> None:
        self.sweep_dir, self.hosts = sweep_dir, hosts
        self.folder = sweep_dir / FOLDER
        self.session = uuid.uuid4().hex[:12]

    def __call__(self, plan: LaunchPlan) -> LaunchProcess:
        if plan.placement.nodes == 1:
            return start(plan)
        plan.files = SHARED_FOLDER
        token = _prepared(plan)
        self.order(launch=plan.launch, nodes=plan.placement.nodes, token=token)
        return _own_ranks(plan, self.hosts, token)

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


class FirstOfStreams:
    """The same where hosts share no folder."""

    def __init__(self, hosts: Hosts, streams: stream.HostStreams) -> None:
        self.hosts, self.streams = hosts, streams

    def __call__(self, plan: LaunchPlan) -> RunningLaunch:
        """Waits for hosts that are not there; raises NoNodes."""
        if plan.placement.nodes == 1:
            return start(plan)
        others = self.streams.wait_for(range(1, plan.placement.nodes))
        plan.files = STREAM
        token = _prepared(plan)
        launch = RemoteLaunch(plan, others, _own_ranks(plan, self.hosts, token))
        launch.start(self.hosts, token)
        return launch


def _prepared(plan: LaunchPlan) -> str:
    """Saves a launch's plan on node 0; returns a new token."""
    save_plan(plan)
    return secrets.token_hex(16)


def _own_ranks(plan: LaunchPlan, hosts: Hosts, token: str) -> LaunchProcess:
    """Node 0's own ranks."""
    process, on_node = start_agent(plan, hosts, token), plan.placement.ranks_per_node
    return LaunchProcess(process, Path(plan.launch_dir), ranks_per_node=on_node)


@contextmanager
def starting(sweep_dir: Path, hosts: Hosts, key: bytes | None = None) -> Iterator[Start]:
    """How to start launches: here, or on several hosts, which are released at the end. `key` is
    that of hosts without a shared folder."""
    if hosts.nnodes == 1:
        yield start
    elif hosts.shared_folder:
        first = FirstHost(sweep_dir, hosts)
        try:
            first.wait_for_hosts()
            yield first
        finally:
            first.order(launch=END)
    else:
        assert key is not None
        streams = stream.HostStreams(hosts, key)
        try:
            try:
                streams.wait_for(range(1, hosts.nnodes))
            except NoNodes as error:
                raise ConfigError(str(error)) from error
            yield FirstOfStreams(hosts, streams)
        finally:
            streams.close()


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


def join(sweep_dir: Path, hosts: Hosts, key: bytes | None = None) -> bool:
    """Lends this host's ranks until node 0 ends; False after `wait_s` without an order. Raises
    ConfigError where node 0 refuses this host."""
    print(f"host {hosts.node_rank} of {hosts.nnodes}: waiting for node 0", file=sys.stderr)
    if not hosts.shared_folder:
        assert key is not None
        return stream.serve(hosts, key)
    follower, last_contact, last = Follower(sweep_dir, hosts), time.monotonic(), None
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
