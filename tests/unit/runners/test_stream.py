"""Streams of other hosts to node 0, over real sockets on loopback."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runners.config.hosts import Hosts
from runners.errors import ConfigError
from runners.host.network import free_port
from runners.launch import stream
from runners.launch.node_agent import ALIKE, NodeAgent, different, versions
from runners.launch.remote import NodeLost, NoNodes
from runners.launch.stream import Channel, HostStreams, StreamNode, serve, take_key

KEY, OTHER_KEY = b"the key of this test", b"another key of a test"
SOON_S = 20.0


class Host:
    """serve() in a thread: another host."""

    def __init__(self, hosts: Hosts, node: int = 1, key: bytes = KEY) -> None:
        self.hosts, self.key = replace(hosts, node_rank=node), key
        self.ended: bool | None = None  # what serve has returned
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.ended = serve(self.hosts, self.key)
        except Exception as error:
            self.error = error

    def join(self) -> None:
        self.thread.join(SOON_S)
        assert not self.thread.is_alive()


def place(address: str = "127.0.0.1", **fields: Any) -> Hosts:
    fields = {"nnodes": 2, "wait_s": SOON_S} | fields
    return Hosts(address=address, port=free_port(address) - 1, shared_folder=False, **fields)


@pytest.fixture
def hosts() -> Hosts:
    return place()


@contextmanager
def listening(hosts: Hosts, key: bytes = KEY) -> Iterator[HostStreams]:
    streams = HostStreams(hosts, key)
    try:
        yield streams
    finally:
        streams.close()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def poll(node: StreamNode) -> Any:
    """The answer of a host that no launch has been sent to."""
    return node.call("poll", {}, [], False)()


NOTHING = {"returncode": 0, "chunks": []}


# The key.


@pytest.mark.parametrize(
    ("variables", "fault"),
    [({}, "not set"), ({"MOE_KEY": ""}, "not set"), ({"MOE_KEY": "fifteen letters"}, "too short")],
)
def test_a_key_that_is_missing_or_short_is_refused_and_not_shown(
    variables: dict[str, str], fault: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        take_key(variables)
    assert str(refusal.value) == (
        f"MOE_KEY: {fault}; allowed with hosts.shared_folder=false is a secret of at least 16 "
        "characters, the same on every host; export MOE_KEY=$(openssl rand -hex 16) once and hand "
        "it to all"
    )


def test_a_key_of_sixteen_characters_is_taken() -> None:
    assert take_key({"MOE_KEY": "sixteen letters."}) == b"sixteen letters."


def test_a_wrong_key_is_refused_on_both_sides_and_never_shown(
    hosts: Hosts, capfd: pytest.CaptureFixture[str]
) -> None:
    with listening(replace(hosts, wait_s=0.3)) as streams:
        host = Host(hosts, key=OTHER_KEY)
        host.join()
        assert isinstance(host.error, ConfigError)
        assert str(host.error) == (
            "MOE_KEY: node 0 has another; allowed is the same secret on every host; set MOE_KEY "
            "to it"
        )
        with pytest.raises(NoNodes) as missing:
            streams.wait_for([1])
        assert str(missing.value) == (
            "hosts.node_rank=1: did not come within 0.3 s; start the same command there, with the "
            f"same MOE_KEY, and let it reach port {hosts.port + 1} of 127.0.0.1"
        )
        assert streams.connected == {}
    shown = "".join(capfd.readouterr()) + str(host.error) + str(missing.value)
    assert KEY.decode() not in shown and OTHER_KEY.decode() not in shown


def test_a_host_does_not_serve_a_node_0_that_does_not_know_the_key(hosts: Hosts) -> None:
    """One that says that every key is right."""
    with socket.create_server(("127.0.0.1", hosts.port + 1)) as server:
        host = Host(hosts)
        accepted, _ = server.accept()
        channel = Channel(accepted)
        channel.connection.send_bytes(b"#CHALLENGE#" + os.urandom(40))
        channel.connection.recv_bytes()
        channel.connection.send_bytes(b"#WELCOME#")
        assert channel.connection.recv_bytes().startswith(b"#CHALLENGE#")
        channel.connection.send_bytes(b"no digest")
        host.join()
        channel.close()
    assert isinstance(host.error, ConfigError)
    assert "MOE_KEY: node 0 has another" in str(host.error)


# Who is admitted.


def test_a_host_answers_and_ends_when_node_0_closes(hosts: Hosts) -> None:
    host = Host(hosts)  # it waits for node 0
    with listening(hosts) as streams:
        nodes = streams.wait_for([1])
        assert list(nodes) == [1]
        assert poll(nodes[1]) == NOTHING
    host.join()
    assert (host.ended, host.error) == (True, None)


def test_other_versions_are_refused_with_both_on_both_sides(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(hosts) as streams:
        others = {**versions(), "torch": "1.0", "code": "0123456789ab"}
        monkeypatch.setattr(stream, "versions", lambda: others)
        host = Host(hosts)
        host.join()
        with pytest.raises(NoNodes) as refusal:
            streams.wait_for([1])
    own = versions()
    assert str(refusal.value) == str(host.error) == (
        f"hosts.node_rank=1: it has torch 1.0 (first node: {own['torch']}), code 0123456789ab "
        f"(first node: {own['code']}); allowed are equal versions on all hosts; install the same "
        "code and packages there"
    )  # fmt: skip


def test_versions_are_those_of_packages_that_compute_and_of_the_code() -> None:
    assert set(versions()) == {*ALIKE, "code"}
    assert different({"torch": "2"}, {"torch": "2"}) == ""
    assert different({}, {"torch": "2"}) == "torch is not there (first node: 2)"
    assert different({"triton": "3"}, {"triton": None}) == "triton 3 (first node: not there)"


@pytest.mark.parametrize("node", [0, 2, -1, True, "1", None])
def test_a_place_that_is_not_another_host_s_is_refused(hosts: Hosts, node: Any) -> None:
    with listening(hosts) as streams:
        channel = Channel(socket.create_connection(("127.0.0.1", hosts.port + 1)))
        channel.authenticate(KEY, first=False)
        channel.send({"node": node, "versions": versions()})
        refusal = (
            f"hosts.node_rank={node}: allowed beside node 0 are 1 to 1; set NODE_RANK on every host"
        )
        assert channel.receive() == {"refused": refusal}
        channel.close()
        with pytest.raises(NoNodes, match="allowed beside node 0 are 1 to 1"):
            streams.wait_for([1])


def test_strangers_that_say_nothing_or_nonsense_keep_nobody_out(hosts: Hosts) -> None:
    with listening(hosts) as streams:
        silent = [socket.create_connection(("127.0.0.1", hosts.port + 1)) for _ in range(3)]
        silent[1].sendall(b"GET / HTTP/1.1\r\n\r\n")
        host = Host(hosts)
        assert poll(streams.wait_for([1])[1]) == NOTHING
        for one in silent:
            one.close()
    host.join()
    assert host.ended


def test_more_strangers_than_places_are_turned_away_at_once(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "WAITING", 1)
    with listening(hosts) as streams:
        silent = socket.create_connection(("127.0.0.1", hosts.port + 1))
        assert silent.recv(1)  # it has the only place
        second = socket.create_connection(("127.0.0.1", hosts.port + 1))
        second.settimeout(SOON_S)
        assert second.recv(1) == b""
        second.close()
        silent.close()
        host = Host(hosts)
        assert poll(streams.wait_for([1])[1]) == NOTHING
    host.join()


def test_a_refusal_counts_until_all_hosts_have_come(hosts: Hosts) -> None:
    """A host that is refused later does not stop the sweep when another is waited for."""
    with listening(replace(hosts, wait_s=0.3)) as streams:
        host = Host(hosts)
        streams.wait_for([1])
        stranger = Host(hosts, node=5)
        stranger.join()
        assert isinstance(stranger.error, ConfigError)
        streams.connected[1].broken = "gone"
        with pytest.raises(NoNodes, match="node_rank=1: did not come within"):
            streams.wait_for([1])
        streams.connected[1].broken = ""
        streams.wait_for([1])
    host.join()


def test_a_port_that_is_in_use_is_named(hosts: Hosts) -> None:
    with (
        socket.create_server(("127.0.0.1", hosts.port + 1)),
        pytest.raises(ConfigError) as refusal,
    ):
        HostStreams(hosts, KEY)
    text = str(refusal.value)
    assert text.startswith(f"hosts.rdzv_endpoint=127.0.0.1:{hosts.port}: node 0 listens for the")
    assert f"on port {hosts.port + 1}, which cannot be used" in text


# Requests.


def test_only_methods_of_a_node_are_called(hosts: Hosts) -> None:
    with listening(hosts) as streams:
        host = Host(hosts)
        node = streams.wait_for([1])[1]
        with pytest.raises(NodeLost, match="node 1 was lost: remove_files: not a method of a node"):
            node.call("remove_files")()
        until(lambda: streams.connected[1] is not node)  # it comes back
        assert poll(streams.wait_for([1])[1]) == NOTHING
    host.join()
    assert host.ended


def test_methods_of_a_stream_are_methods_of_the_agent() -> None:
    assert all(callable(getattr(NodeAgent, name)) for name in stream.METHODS)
    assert stream.CLOSE not in stream.METHODS


def test_an_error_on_a_host_loses_it_by_its_message(hosts: Hosts) -> None:
    with listening(hosts) as streams:
        host = Host(hosts)
        node = streams.wait_for([1])[1]
        with pytest.raises(NodeLost, match="node 1 was lost: the plan of a launch: "):
            node.call("prepare", "no plan")()
        until(lambda: streams.connected[1] is not node)
    host.join()


def test_a_message_over_the_bound_is_not_read(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MESSAGE_BYTES", 1000)
    with listening(hosts) as streams:
        host = Host(hosts)
        node = streams.wait_for([1])[1]
        with pytest.raises(NodeLost, match="node 1 was lost: ") as lost:
            node.call("receive", "x", 0, b"0" * 1000)()
        assert "AssertionError" not in str(lost.value)  # of the agent, which has no plan
        until(lambda: streams.connected[1] is not node)
    host.join()


def test_bytes_arrive_as_they_were_sent(hosts: Hosts) -> None:
    data = bytes(range(256))
    with two_channels() as (one, other):
        one.send({"data": data, "list": [data, {"x": [1, None, "text"]}]})
        assert other.receive() == {"data": data, "list": [data, {"x": [1, None, "text"]}]}
        with pytest.raises(TypeError, match="set cannot be sent"):
            one.send({"data": {1}})


@pytest.mark.parametrize(
    "sent", [b"no JSON", b"[1]", b'{"x":{"base64":"*"}}', b'{"x":{"base64":1}}', b"[" * 100_000]
)
def test_what_is_no_message_breaks_the_connection(sent: bytes) -> None:
    with two_channels() as (one, other):
        node = StreamNode(one, 1)
        other.connection.send_bytes(sent)
        with pytest.raises(NodeLost, match="node 1 was lost: ") as first:
            node.call("poll")()
        with pytest.raises(NodeLost) as second:
            node.call("poll")  # nothing is sent any more
        assert str(second.value) == str(first.value)
        assert node.channel.connection.closed


@contextmanager
def two_channels() -> Iterator[tuple[Channel, Channel]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = Channel(socket.create_connection(server.getsockname()))
        other = Channel(server.accept()[0])
    try:
        yield one, other
    finally:
        one.close()
        other.close()


def test_an_answer_that_nobody_waited_for_is_passed_over() -> None:
    with two_channels() as (one, other):
        node = StreamNode(one, 1)
        node.call("poll")  # an interrupt came before its result
        second = node.call("poll")
        for number in (1, 2):
            other.send({"id": number, "result": number})
        assert second() == 2


def test_no_answer_within_the_limit_is_a_lost_node(monkeypatch: pytest.MonkeyPatch) -> None:
    with two_channels() as (one, _):
        monkeypatch.setattr(Channel, "receive", _impatient(Channel.receive))
        with pytest.raises(NodeLost, match=r"node 1 was lost: no answer within 0\.05 s"):
            StreamNode(one, 1).call("poll")()


def _impatient(receive: Callable[..., Any]) -> Callable[..., Any]:
    return lambda channel: receive(channel, 0.05)


# Connections that break.


def test_a_broken_connection_is_a_lost_node_and_the_host_may_come_back(hosts: Hosts) -> None:
    with listening(hosts) as streams:
        host = Host(hosts)
        node = streams.wait_for([1])[1]
        socket.socket(fileno=os.dup(node.channel.connection.fileno())).shutdown(socket.SHUT_RDWR)
        with pytest.raises(NodeLost, match="node 1 was lost: "):
            poll(node)
        with pytest.raises(NodeLost, match="node 1 was lost: "):
            poll(node)
        assert poll(streams.wait_for([1])[1]) == NOTHING
    host.join()
    assert host.ended


def test_a_host_waits_for_a_node_0_that_is_busy_for_longer_than_hosts_wait(hosts: Hosts) -> None:
    """Node 0 asks nothing while it writes W&B runs, or measures cells of one node."""
    with listening(hosts) as streams:
        host = Host(replace(hosts, wait_s=0.2))
        node = streams.wait_for([1])[1]
        time.sleep(0.6)
        assert poll(node) == NOTHING
    host.join()
    assert host.ended


def test_a_machine_that_is_off_is_noticed_by_the_kernel() -> None:
    with two_channels() as (one, _), socket.socket(fileno=os.dup(one.connection.fileno())) as own:
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle, every, count = (
            own.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + every * count == 90  # seconds


def test_a_host_without_node_0_ends_after_its_limit(
    hosts: Hosts, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Host(replace(hosts, wait_s=0.3))
    host.join()
    assert (host.ended, host.error) == (False, None)
    assert capsys.readouterr().err == (
        f"error: no word from node 0 at 127.0.0.1:{hosts.port + 1} for 0.3 s\n"
    )


def test_nothing_listens_and_nobody_waits_after_the_end(hosts: Hosts) -> None:
    before = threading.active_count()
    streams = HostStreams(hosts, KEY)
    assert threading.active_count() == before + 1
    streams.close()
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", hosts.port + 1))
    with listening(hosts):  # the port is free for the next sweep
        pass


def test_a_host_that_comes_while_node_0_ends_is_released(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, closed = threading.Event(), threading.Event()
    refusal = HostStreams._refusal

    def slow(streams: HostStreams, hello: Any) -> str:
        answered.set()
        assert closed.wait(SOON_S)
        return refusal(streams, hello)

    monkeypatch.setattr(HostStreams, "_refusal", slow)
    streams = HostStreams(hosts, KEY)
    host = Host(hosts)
    assert answered.wait(SOON_S)
    streams.close()
    closed.set()
    host.join()
    assert host.ended


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
def test_no_socket_stays_open(hosts: Hosts, key: bytes) -> None:
    def sockets() -> int:
        """Of this process."""
        open_files = Path("/proc/self/fd").iterdir()
        return sum(path.is_socket() for path in open_files)

    before = sockets()
    with listening(hosts) as streams:
        host = Host(hosts, key=key)
        if key == KEY:
            streams.wait_for([1])
        else:
            host.join()
    host.join()
    until(lambda: sockets() == before)


def test_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = place("::1")
    with listening(hosts) as streams:
        assert streams._listening.family == socket.AF_INET6
        host = Host(hosts)
        assert poll(streams.wait_for([1])[1]) == NOTHING
    host.join()
    assert host.ended
