"""One authenticated stream from every other host to node 0, where hosts share no folder.

The other hosts connect to hosts.rdzv_endpoint's port + 1 of node 0. Both sides prove that they know
MOE_KEY (HMAC challenges of multiprocessing.connection); nothing is encrypted. Then node 0 sends
requests {id, method, arguments} and gets {id, result} or {id, error}: JSON, bytes in base64.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

from runners.config.hosts import Hosts
from runners.errors import ConfigError
from runners.host.network import is_own, resolve
from runners.launch.node_agent import NodeAgent, different, versions
from runners.launch.remote import NodeLost, NoNodes

KEY = "MOE_KEY"
KEY_CHARACTERS = 16  # at least
MESSAGE_BYTES = 32 << 20
CALL_S = 60.0  # for an answer
HELLO_S = 20.0  # to authenticate
RETRY_S = 0.2
WAITING = 64  # hosts that may be authenticating at once
METHODS = ("prepare", "receive", "start", "poll", "end")
CLOSE = "close"
# A connection whose other side's machine is off breaks after 30 + 6 * 10 s without an answer.
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
BROKEN = (OSError, EOFError, ValueError, AssertionError)  # AssertionError: a wrong challenge


def take_key(variables: MutableMapping[str, str]) -> bytes:
    """MOE_KEY, which is removed, so that no process of ours inherits it. Raises ConfigError, which
    does not show it."""
    key = variables.pop(KEY, "")
    if len(key) < KEY_CHARACTERS:
        raise ConfigError(
            f"{KEY}: {'too short' if key else 'not set'}; allowed with hosts.shared_folder=false "
            f"is a secret of at least {KEY_CHARACTERS} characters, the same on every host; "
            f"export {KEY}=$(openssl rand -hex 16) once and hand it to all"
        )
    return key.encode()


def port_of(hosts: Hosts) -> int:
    return hosts.port + 1


class Channel:
    """Messages over one socket, each answered or given up within a time limit."""

    def __init__(self, connected: socket.socket) -> None:
        limit = struct.pack("ll", int(CALL_S), 0)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connected.setsockopt(socket.SOL_SOCKET, option, limit)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, number in KEEPALIVE.items():
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), number)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.settimeout(None)
        self.connection = Connection(connected.detach())

    def authenticate(self, key: bytes, first: bool) -> None:
        """Raises AuthenticationError where the other side does not know the key."""
        steps = [deliver_challenge, answer_challenge]
        for step in steps if first else reversed(steps):
            if step is answer_challenge and not self.connection.poll(HELLO_S):
                raise EOFError("no answer")
            step(self.connection, key)

    def send(self, message: Mapping[str, Any]) -> None:
        self.connection.send_bytes(json.dumps(message, default=_encoded).encode())

    def receive(self, limit_s: float | None = CALL_S) -> dict[str, Any]:
        """Raises EOFError where nothing comes within `limit_s`; None: it waits until the connection
        breaks."""
        if not self.connection.poll(limit_s):
            raise EOFError(f"no answer within {limit_s:g} s")
        data = self.connection.recv_bytes(MESSAGE_BYTES)
        try:
            message = json.loads(data, object_hook=_decoded)
        except (TypeError, RecursionError) as error:
            raise ValueError(f"not a message: {error}") from error
        if not isinstance(message, dict):
            raise ValueError("not a message")
        return message

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.close()


def _encoded(value: object) -> dict[str, str]:
    if not isinstance(value, bytes):
        raise TypeError(f"{type(value).__name__} cannot be sent")
    return {"base64": base64.b64encode(value).decode("ascii")}


def _decoded(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["base64"], validate=True) if set(value) == {"base64"} else value


class StreamNode:
    """A host that has connected to node 0."""

    def __init__(self, channel: Channel, node: int) -> None:
        self.channel, self.node = channel, node
        self.broken = ""
        self._id = 0

    def call(self, method: str, *arguments: Any) -> Callable[[], Any]:
        self._id += 1
        number = self._id
        with self._noting_loss():
            self.channel.send({"id": number, "method": method, "arguments": arguments})
        return lambda: self._result(number)

    def release(self) -> None:
        """Lets the host end."""
        with contextlib.suppress(NodeLost):
            self.call(CLOSE)
        self.channel.close()

    def _result(self, number: int) -> Any:
        with self._noting_loss():
            answer = self.channel.receive()
            while answer.get("id") != number:  # of a call whose result nobody waited for
                answer = self.channel.receive()
            if "error" in answer:
                raise OSError(str(answer["error"]))
            return answer["result"]

    @contextlib.contextmanager
    def _noting_loss(self) -> Any:
        if self.broken:
            raise NodeLost(self.broken)
        try:
            yield
        except BROKEN as error:
            self.broken = f"node {self.node} was lost: {error or type(error).__name__}"
            self.channel.close()
            raise NodeLost(self.broken) from error


class HostStreams:
    """Node 0's side: admits the other hosts, also those that come back."""

    def __init__(self, hosts: Hosts, key: bytes) -> None:
        """Listens; raises ConfigError where the port cannot be used."""
        self.hosts, self.key = hosts, key
        self.connected: dict[int, StreamNode] = {}
        self._refused: dict[Any, str] = {}  # why, by the number that a host gave
        self._slots = threading.BoundedSemaphore(WAITING)
        self._lock, self._closed = threading.Lock(), False
        self._closing = False
        self._complete = False  # whether all hosts have been there once
        self._versions = versions()
        try:
            address = resolve(hosts.address)
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listen_on = (address if is_own(address) else "", port_of(hosts))
            self._listening = socket.create_server(listen_on, family=family)
        except OSError as error:
            raise ConfigError(
                f"hosts.rdzv_endpoint={hosts.address}:{hosts.port}: node 0 listens for the other "
                f"hosts on port {port_of(hosts)}, which cannot be used ({error}); allowed is a "
                "free port after that of the endpoint; choose another endpoint"
            ) from error
        self._accepting = threading.Thread(target=self._accept, daemon=True, name="hosts")
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._listening.accept()
            except OSError:
                if self._closing:
                    return
                time.sleep(RETRY_S)  # too many open files, or a connection that has gone already
                continue
            if self._slots.acquire(blocking=False):
                threading.Thread(target=self._admit, args=(connected,), daemon=True).start()
            else:
                connected.close()

    def _admit(self, connected: socket.socket) -> None:
        """Takes a host in whose key, place and versions are right."""
        with contextlib.ExitStack() as unless_admitted:
            unless_admitted.callback(self._slots.release)
            unless_admitted.callback(connected.close)
            try:
                channel = Channel(connected)
                unless_admitted.callback(channel.close)
                channel.authenticate(self.key, first=True)
                hello = channel.receive(HELLO_S)
                refusal = self._refusal(hello)
                channel.send({"refused": refusal})
            except (*BROKEN, AuthenticationError):
                return
            if refusal:
                self._refused[hello.get("node")] = refusal
                return
            unless_admitted.pop_all()
            self._slots.release()
            self._add(StreamNode(channel, hello["node"]))

    def _add(self, node: StreamNode) -> None:
        with self._lock:
            before = self.connected.get(node.node)
            if before and not before.broken:
                print(
                    f"note: hosts.node_rank={node.node}: a host came with the number of another, "
                    "which is not used any more",
                    file=sys.stderr,
                )
            self.connected[node.node] = node
            if self._closed:
                node.release()

    def _refusal(self, hello: Mapping[str, Any]) -> str:
        node, known = hello.get("node"), hello.get("versions")
        if type(node) is not int or not 0 < node < self.hosts.nnodes:
            return (
                f"hosts.node_rank={node}: allowed beside node 0 are 1 to {self.hosts.nnodes - 1}; "
                "set NODE_RANK on every host"
            )
        difference = different(known if isinstance(known, dict) else {}, self._versions)
        if difference:
            return (
                f"hosts.node_rank={node}: it has {difference}; allowed are equal versions on all "
                "hosts; install the same code and packages there"
            )
        return ""

    def wait_for(self, nodes: Iterable[int]) -> dict[int, StreamNode]:
        """The streams of these nodes; raises NoNodes naming those that do not come within
        hosts.wait_s, or one that was refused. Of hosts that are not waited for, refusals count only
        the first time."""
        deadline = time.monotonic() + self.hosts.wait_s
        while True:
            usable = {n: one for n, one in list(self.connected.items()) if not one.broken}
            missing = [n for n in nodes if n not in usable]
            if not missing:
                self._refused.clear()
                self._complete = True
                return {n: usable[n] for n in nodes}
            for node in list(self._refused):
                refusal = self._refused.pop(node)
                if node in missing or not self._complete:
                    raise NoNodes(refusal)
            if time.monotonic() > deadline:
                names = ", ".join(map(str, missing))
                raise NoNodes(
                    f"hosts.node_rank={names}: did not come within {self.hosts.wait_s:g} s; start "
                    f"the same command there, with the same {KEY}, and let it reach port "
                    f"{port_of(self.hosts)} of {self.hosts.address}"
                )
            time.sleep(RETRY_S)

    def close(self) -> None:
        """Lets the other hosts end, also those that are being admitted."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # or `accept` would keep the port in use
        self._accepting.join()
        self._listening.close()
        with self._lock:
            self._closed = True
            for node in self.connected.values():
                node.release()


def serve(hosts: Hosts, key: bytes) -> bool:
    """Another host: lends its ranks until node 0 ends, which returns True; False after hosts.wait_s
    without node 0. Raises ConfigError where node 0 refuses this host."""
    agent = NodeAgent(hosts.node_rank, hosts.interface)
    deadline = time.monotonic() + hosts.wait_s
    try:
        while time.monotonic() < deadline:
            try:
                channel = _connected(hosts, key)
            except ConfigError:  # it is a ValueError
                raise
            except BROKEN:
                time.sleep(RETRY_S)
                continue
            try:
                if _answer(channel, agent):
                    return True
            except BROKEN:
                pass  # node 0 has gone, and may come back
            finally:
                channel.close()
                agent.end()
            deadline = time.monotonic() + hosts.wait_s
    finally:
        agent.close()
    where = f"{hosts.address}:{port_of(hosts)}"
    print(f"error: no word from node 0 at {where} for {hosts.wait_s:g} s", file=sys.stderr)
    return False


def _connected(hosts: Hosts, key: bytes) -> Channel:
    where = (resolve(hosts.address), port_of(hosts))
    channel = Channel(socket.create_connection(where, timeout=HELLO_S))
    try:
        channel.authenticate(key, first=False)
        channel.send({"node": hosts.node_rank, "versions": versions()})
        if refusal := channel.receive(HELLO_S).get("refused"):
            raise ConfigError(str(refusal))
    except AuthenticationError as error:
        channel.close()
        raise ConfigError(
            f"{KEY}: node 0 has another; allowed is the same secret on every host; set {KEY} to it"
        ) from error
    except BaseException:
        channel.close()
        raise
    return channel


def _answer(channel: Channel, agent: NodeAgent) -> bool:
    """Answers requests until node 0 closes, which returns True. Between two of them node 0 may be
    busy for as long as it likes: it writes W&B runs, or measures cells of one node."""
    while True:
        request = channel.receive(None)
        method, number = request["method"], request["id"]
        if method == CLOSE:
            return True
        try:
            if method not in METHODS:
                raise ValueError(f"{method}: not a method of a node")
            answer = {"id": number, "result": getattr(agent, method)(*request["arguments"])}
        except Exception as error:
            answer = {"id": number, "error": " ".join(str(error).split()) or type(error).__name__}
        channel.send(answer)
