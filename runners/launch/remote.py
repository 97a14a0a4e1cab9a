"""Launches on nodes that share no folder with the launcher: RemoteLaunch follows their agents.

`Node` is the connection to a node's agent: an actor of Ray (ray_group.py) or a stream to another
host (stream.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from runners.config.hosts import Hosts
from runners.host.timeout import call_with_timeout
from runners.launch import launch_files, node_files
from runners.launch.local import LaunchProcess
from runners.launch.node_agent import SIGNALS
from runners.launch.node_files import CHUNK_BYTES, Chunk, ReceivedFiles
from runners.plan import LaunchPlan, text_of

LAST_S = 5.0  # the other nodes' agents have ended this long after the first, or are ended
DRAIN_S = 60.0  # to fetch what nodes have written, after their ranks have ended


class NodeLost(Exception):
    """A node does not answer any more; the message says how that was seen."""


class NoNodes(Exception):
    """The nodes that a launch needs did not come; the message says which."""


class Node(Protocol):
    """The agent of a node (runners.launch.node_agent.NodeAgent)."""

    def call(self, method: str, *arguments: Any) -> Callable[[], Any]:
        """Begins a call of the agent's method; the result waits for it. Both raise NodeLost."""


class RemoteLaunch:
    """Ranks on nodes whose files are fetched; `own` are those of this machine, which is then node
    0, and writes into the launch's folder itself."""

    def __init__(
        self, plan: LaunchPlan, nodes: Mapping[int, Node], own: LaunchProcess | None = None
    ) -> None:
        self.launch_dir = Path(plan.launch_dir)
        self.plan, self.nodes, self.own = plan, dict(nodes), own
        self.received = {
            node: ReceivedFiles(self.launch_dir, plan.placement, node) for node in nodes
        }
        self.returncodes: dict[int, int | None] = dict.fromkeys(nodes)
        self.lost = ""
        self.ended = False  # by `end`, while ranks were running
        self.complete = False  # `end` was called
        self._first_end: float | None = None  # when the first node's ranks had ended

    def start(self, hosts: Hosts, token: str) -> None:
        """Sends the plan and its traces to all nodes, then starts their ranks. Where a node is lost
        on the way, `running` is False. Ends all where it raises OSError: a trace cannot be read."""
        try:
            self._call_all("prepare", text_of(self.plan))
            for name in self.plan.traces.values():
                self._send(name)
            self._call_all("start", dataclasses.asdict(hosts), token)
        except BaseException:
            self.end()
            raise

    def _send(self, name: str) -> None:
        with (self.launch_dir / name).open("rb") as file:
            offset = 0
            while data := file.read(CHUNK_BYTES):
                self._call_all("receive", name, offset, data)
                offset += len(data)

    def _call_all(self, method: str, *arguments: Any) -> None:
        if not self.lost:
            self._each(lambda node: self.nodes[node].call(method, *arguments))

    def running(self) -> bool:
        """Fetches what nodes have written. False once all have ended, LAST_S after the first has,
        or when a node is lost."""
        if self.complete or self.lost:
            return False
        self._fetch(last=False)
        own = [self.own.running()] if self.own else []
        running = [*own, *(code is None for code in self.returncodes.values())]
        if self._first_end is None and not all(running):
            self._first_end = time.monotonic()
        late = self._first_end is not None and time.monotonic() - self._first_end > LAST_S
        return any(running) and not self.lost and not late

    def _fetch(self, last: bool) -> bool:
        """Asks all nodes for what they have written; whether anything came. `last`: their ranks
        were ended, so that how their parents ended says nothing of the launch."""
        signals = self._signals()
        news = False
        for node, answer in self._each(
            lambda node: self.nodes[node].call("poll", self.received[node].sizes, signals, last)
        ):
            try:
                returncode, chunks = answer["returncode"], [Chunk(*one) for one in answer["chunks"]]
                well_formed = all(map(node_files.well_formed, chunks))
            except (KeyError, TypeError):
                well_formed = False
            if not well_formed:
                self.lost = self.lost or f"node {node} sent what is no answer"
                continue
            if not last:
                self.returncodes[node] = returncode
            if chunks:
                call_with_timeout("the launch's folder", partial(self._add, node, chunks))
                news = True  # also where a piece was refused, which is asked for again
        return news

    def _each(self, begin: Callable[[int], Callable[[], Any]]) -> list[tuple[int, Any]]:
        """Begins a call on every node, then waits for all: (node, result) of those that answer. The
        first node that is lost is noted."""
        waiting: list[tuple[int, Callable[[], Any]]] = []
        answers: list[tuple[int, Any]] = []
        for node in self.nodes:
            with self._noting_loss():
                waiting.append((node, begin(node)))
        for node, result in waiting:
            with self._noting_loss():
                answers.append((node, result()))
        return answers

    @contextlib.contextmanager
    def _noting_loss(self) -> Iterator[None]:
        try:
            yield
        except NodeLost as error:
            self.lost = self.lost or str(error)

    def _add(self, node: int, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            self.received[node].add(chunk)

    def _signals(self) -> list[str]:
        """Names of the files in the launch's folder that tell ranks to go on, or to stop."""
        names = [
            path.name for pattern in ("stop", "go-*") for path in self.launch_dir.glob(pattern)
        ]
        assert all(name.startswith(SIGNALS) for name in names)
        return names

    def end(self) -> None:
        """Ends ranks that still run, and fetches the rest of what was written. Ranks are ended also
        where this machine's disk is full; raises OSError then."""
        if self.complete:
            return
        try:
            self.ended = self.running()
        finally:
            self.complete = True
            if self.own:
                self.own.end()
            self._each(lambda node: self.nodes[node].call("end"))  # also where another is lost
        deadline = time.monotonic() + DRAIN_S
        while self._fetch(last=True) and time.monotonic() < deadline:
            pass

    def killed_by(self) -> int:
        if self.ended:
            return 0
        codes = [code for code in self.returncodes.values() if code]
        signals = [-code for code in codes if code < 0]
        return max([*signals, self.own.killed_by() if self.own else 0])

    def lost_node(self) -> str:
        return self.lost

    def failures(self) -> list[dict[str, Any]]:
        return launch_files.failures(self.launch_dir)

    def log_path(self, rank: int) -> Path:
        placement = self.plan.placement
        on_node = placement.ranks_per_node if placement.nodes > 1 else 0
        return launch_files.log_path(self.launch_dir, rank, on_node)
