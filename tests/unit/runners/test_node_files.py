"""What a node's ranks write, in pieces, and what the first node takes of it."""

from __future__ import annotations

import errno
import zlib
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.spec import RankLayout
from runners.launch import node_files
from runners.launch.node_files import Chunk, ReceivedFiles, changes, is_sent

TWO_NODES = RankLayout(world_size=4, nodes=2)  # ranks 0 and 1, 2 and 3
ONE_NODE = RankLayout(world_size=2)
LINES = "samples/rank2.jsonl"
LOG = "logs/node1/x/attempt_0/0/stderr.log"
SMALL = {"CHUNK_BYTES": 4, "ANSWER_BYTES": 10, "LOG_BYTES": 6, "LOG_END_BYTES": 3}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in SMALL.items():
        monkeypatch.setattr(node_files, name, size)


def write(folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(data)


def chunk(path: str, offset: int, data: bytes) -> Chunk:
    return Chunk(path, offset, data, zlib.crc32(data))


def receiver(folder: Path, node: int = 1) -> ReceivedFiles:
    return ReceivedFiles(folder, TWO_NODES, node)


# Whose file it is.


@pytest.mark.parametrize(
    "path",
    ["samples/rank2.jsonl", "samples/rank3.jsonl", "logs/node1/agent.log", LOG,
     "agents/1/failures.json", "gpus-1.csv"],
)  # fmt: skip
def test_a_node_sends_what_its_own_ranks_and_agent_write(path: str) -> None:
    assert is_sent(path, TWO_NODES, 1)
    assert not is_sent(path, TWO_NODES, 0)


@pytest.mark.parametrize(
    "path",
    [
        "samples/rank0.jsonl", "samples/rank1.jsonl", "samples/rank4.jsonl",
        "samples/rank2.jsonl.x", "samples/rank.jsonl", "samples/rank-2.jsonl",
        "samples/x/rank2.jsonl", "agents/0/failures.json", "agents/1/other.json",
        "logs/node0/agent.log", "logs/node11/agent.log", "logs/agent.log", "gpus-0.csv",
        "launch.json", "stop", "go-0", "failures.json", "", "x",
        "logs/node1/../../launch.json", "logs/node1/..", "../samples/rank2.jsonl",
        "/samples/rank2.jsonl", "/etc/passwd", "logs/node1//x", "logs/node1/",
        "logs/node1/\0",
    ],
)  # fmt: skip
def test_nothing_else_is_taken_from_it(path: str, tmp_path: Path) -> None:
    assert not is_sent(path, TWO_NODES, 1)
    assert not receiver(tmp_path).add(chunk(path, 0, b"data"))
    assert list(tmp_path.rglob("*")) == []


def test_ranks_of_a_node_that_a_launch_does_not_take_send_nothing() -> None:
    assert not is_sent("samples/rank4.jsonl", TWO_NODES, 2)


def test_a_single_node_has_its_files_where_a_local_launch_has_them() -> None:
    own = ["samples/rank0.jsonl", "samples/rank1.jsonl", "failures.json", "logs/agent.log",
           "logs/none_x/attempt_0/1/stderr.log", "gpus-0.csv"]  # fmt: skip
    assert all(is_sent(path, ONE_NODE, 0) for path in own)
    assert not is_sent("agents/0/failures.json", ONE_NODE, 0)


# Pieces.


def test_pieces_go_on_where_the_file_ends(tmp_path: Path, small: None) -> None:
    node, first = tmp_path / "node", tmp_path / "first"
    write(node, LINES, b"abcdef")
    write(node, "samples/rank0.jsonl", b"of another node")
    write(node, "launch.json", b"own plan")
    received = receiver(first)
    assert changes(node, TWO_NODES, 1, received.sizes, False) == [chunk(LINES, 0, b"abcd")]
    assert received.add(chunk(LINES, 0, b"abcd"))
    assert changes(node, TWO_NODES, 1, received.sizes, False) == [chunk(LINES, 4, b"ef")]
    assert received.add(chunk(LINES, 4, b"ef"))
    assert changes(node, TWO_NODES, 1, received.sizes, False) == []
    write(node, LINES, b"gh")
    assert changes(node, TWO_NODES, 1, received.sizes, True) == [chunk(LINES, 6, b"gh")]
    assert (first / LINES).read_bytes() == b"abcdef"


@pytest.mark.parametrize(
    "piece",
    [
        Chunk(LINES, 4, b"ef", zlib.crc32(b"ef") ^ 1),  # damaged on the way
        chunk(LINES, 5, b"ef"),  # after a gap
        chunk(LINES, 0, b"abcd"),  # a second time
        chunk(LINES, 3, b"de"),  # partly a second time
        chunk(LINES, 4, b"efghi"),  # larger than any piece
    ],
)
def test_a_piece_that_does_not_fit_is_refused_and_asked_for_again(
    tmp_path: Path, small: None, piece: Chunk
) -> None:
    received = receiver(tmp_path)
    assert received.add(chunk(LINES, 0, b"abcd"))
    assert not received.add(piece)
    assert received.sizes == {LINES: 4}
    assert (tmp_path / LINES).read_bytes() == b"abcd"
    assert received.add(chunk(LINES, 4, b"ef"))
    assert (tmp_path / LINES).read_bytes() == b"abcdef"


def test_an_answer_is_bounded_and_lines_come_first(tmp_path: Path, small: None) -> None:
    write(tmp_path, LOG, b"a log")
    write(tmp_path, "samples/rank2.jsonl", b"0123456789")
    write(tmp_path, "samples/rank3.jsonl", b"0123456789")
    answer = changes(tmp_path, TWO_NODES, 1, {}, False)
    assert [(one.path, one.offset, one.data) for one in answer] == [
        ("samples/rank2.jsonl", 0, b"0123"),
        ("samples/rank3.jsonl", 0, b"0123"),
        (LOG, 0, b"a "),  # ten bytes in all
    ]


def test_of_a_long_log_the_beginning_and_the_end_are_sent(tmp_path: Path, small: None) -> None:
    node, first = tmp_path / "node", tmp_path / "first"
    received = receiver(first)

    def fetch(last: bool) -> list[tuple[int, bytes]]:
        answer = changes(node, TWO_NODES, 1, received.sizes, last)
        assert all(map(received.add, answer))
        return [(one.offset, one.data) for one in answer]

    write(node, LOG, b"0123456789")
    assert fetch(False) == [(0, b"0123")]
    assert fetch(False) == [(4, b"45")]  # six bytes of a log
    assert fetch(False) == []
    write(node, LOG, b"abcdefgh")
    assert fetch(False) == []
    assert fetch(True) == [(15, b"fgh")]  # the last three
    assert fetch(True) == []
    assert not received.add(chunk(LOG, 15, b"fgh"))  # a second time
    text = "012345\n[9 bytes of this log were not sent]\nfgh"
    assert (first / LOG).read_text() == text


def test_a_log_that_ends_soon_after_the_bound_is_whole(tmp_path: Path, small: None) -> None:
    node, received = tmp_path / "node", receiver(tmp_path / "first")
    write(node, LOG, b"01234567")
    while answer := changes(node, TWO_NODES, 1, received.sizes, True):
        assert all(map(received.add, answer))
    assert (tmp_path / "first" / LOG).read_bytes() == b"01234567"


def test_lines_have_no_bound(tmp_path: Path, small: None) -> None:
    node, received = tmp_path / "node", receiver(tmp_path / "first")
    write(node, LINES, bytes(range(100)))
    while answer := changes(node, TWO_NODES, 1, received.sizes, False):
        assert all(map(received.add, answer))
    assert (tmp_path / "first" / LINES).read_bytes() == bytes(range(100))


def test_sizes_fit_a_message_of_a_stream() -> None:
    from runners.launch.stream import MESSAGE_BYTES

    assert node_files.CHUNK_BYTES <= node_files.ANSWER_BYTES
    assert node_files.ANSWER_BYTES * 4 / 3 + (1 << 20) < MESSAGE_BYTES  # in base64


class FullDisk:
    """A file that takes three bytes of what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        self.file.write(data[:3])
        self.file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_a_full_disk_took_of_a_piece_is_not_there_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received, opened = receiver(tmp_path), Path.open
    assert received.add(chunk(LINES, 0, b"line 1\n"))

    def full(path: Path, *arguments: Any) -> Any:
        return FullDisk(opened(path, *arguments))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        with pytest.raises(OSError, match="No space left"):
            received.add(chunk(LINES, 7, b"line 2\n"))
    assert received.add(chunk(LINES, 7, b"line 2\n"))
    assert (tmp_path / LINES).read_bytes() == b"line 1\nline 2\n"


# Any order of writing and fetching, over a connection that damages and drops.

STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["samples/rank2.jsonl", "samples/rank3.jsonl", "gpus-1.csv"]),
                  st.binary(min_size=1, max_size=12)),
        st.tuples(st.just("fetch"), st.lists(st.sampled_from(["keep", "drop", "damage", "twice"]),
                                             max_size=4)),
    ),
    max_size=25,
)  # fmt: skip


def damaged(piece: Chunk) -> Chunk:
    return piece._replace(data=bytes([piece.data[0] ^ 1]) + piece.data[1:])


@settings(max_examples=60)
@given(steps=STEPS)
def test_files_end_up_equal_whatever_is_lost_on_the_way(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any]]
) -> None:
    node, first = tmp_path_factory.mktemp("node"), tmp_path_factory.mktemp("first")
    received, written = receiver(first), set()
    with pytest.MonkeyPatch.context() as patched:
        for name, size in SMALL.items():
            patched.setattr(node_files, name, size)
        for what, value in steps:
            if what != "fetch":
                write(node, what, value)
                written.add(what)
                continue
            answer = changes(node, TWO_NODES, 1, received.sizes, False)
            for piece, fate in zip(answer, [*value, *["keep"] * len(answer)], strict=False):
                if fate == "damage":
                    assert not received.add(damaged(piece))
                elif fate != "drop":
                    assert received.add(piece)
                    if fate == "twice":
                        assert not received.add(piece)
        while answer := changes(node, TWO_NODES, 1, received.sizes, True):
            assert all(map(received.add, answer))
    for path in written:
        assert (first / path).read_bytes() == (node / path).read_bytes()
