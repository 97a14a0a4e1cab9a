"""The files that a node's ranks write, in pieces for the first node. Torch-free.

Where nodes share no folder, each writes into a launch's folder of its own. The launcher asks every
node again and again for what it has not received yet, and appends it to the same files of its own
folder: rank lines, logs, failures and readings of GPUs. What a node had not sent when it was lost
counts as not sampled.
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from moe.spec import RankLayout
from runners.launch import launch_files

CHUNK_BYTES = 1 << 20  # of one file at a time
ANSWER_BYTES = 8 << 20  # of all files in one answer
LOG_BYTES = 4 << 20  # of a log; of what is beyond, only the end is sent
LOG_END_BYTES = 1 << 20
PATH_CHARACTERS = 200
FILES = 1000  # of a node, at most
LINES = re.compile(r"samples/rank(\d{1,9})\.jsonl")


class Chunk(NamedTuple):
    """A piece of a file."""

    path: str  # in the launch's folder
    offset: int
    data: bytes
    crc: int  # CRC-32 of the data


def is_sent(path: str, placement: RankLayout, node: int) -> bool:
    """Whether a file, by its path in the launch's folder, is one that this node writes."""
    parts = path.split("/")
    if ".." in parts or "" in parts or "\0" in path:
        return False
    if lines := LINES.fullmatch(path):
        return int(lines[1]) // placement.ranks_per_node == node < placement.nodes
    failures, logs = launch_files.FAILURES, "logs/"
    if placement.nodes > 1:
        failures, logs = f"agents/{node}/{failures}", f"logs/node{node}/"
    return path.startswith(logs) or path in (failures, f"gpus-{node}.csv")


def well_formed(chunk: Chunk) -> bool:
    """Whether a chunk from another machine has the types of one."""
    kinds = tuple(map(type, chunk))
    return kinds == (str, int, bytes, int) and 0 < len(chunk.path) <= PATH_CHARACTERS


def is_log(path: str) -> bool:
    return path.startswith("logs/")


def changes(
    launch_dir: Path, placement: RankLayout, node: int, received: Mapping[str, int], last: bool
) -> list[Chunk]:
    """What the node has written beyond the `received` bytes of every file, ANSWER_BYTES at most.
    `last`: nothing more will be written, so the ends of long logs are sent too."""
    chunks: list[Chunk] = []
    left = ANSWER_BYTES
    for path, size in _files(launch_dir, placement, node):
        offset = received.get(path, 0)
        if is_log(path):
            offset = _log_offset(offset, size, last)
        length = min(size - offset, CHUNK_BYTES, left)
        if is_log(path) and offset < LOG_BYTES:
            length = min(length, LOG_BYTES - offset)
        if length <= 0:
            continue
        with (launch_dir / path).open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        chunks.append(Chunk(path, offset, data, zlib.crc32(data)))
        left -= len(data)
    return chunks


def _log_offset(offset: int, size: int, last: bool) -> int:
    """Where to read a log on: after LOG_BYTES only its end, and only when all is written."""
    if offset < LOG_BYTES:
        return offset
    return max(offset, size - LOG_END_BYTES) if last else size


def _files(launch_dir: Path, placement: RankLayout, node: int) -> Iterator[tuple[str, int]]:
    """Path and size of every file to send: rank lines first, which are what counts."""
    paths = {
        str(path.relative_to(launch_dir)): path
        for pattern in ("samples/*", "gpus-*", launch_files.FAILURES, "agents/**/*", "logs/**/*")
        for path in sorted(launch_dir.glob(pattern))
    }
    for name, path in paths.items():
        if is_sent(name, placement, node) and path.is_file():
            yield name, path.stat().st_size


class ReceivedFiles:
    """Writes one node's chunks into the launcher's folder."""

    def __init__(self, launch_dir: Path, placement: RankLayout, node: int) -> None:
        self.launch_dir, self.placement, self.node = launch_dir, placement, node
        self.sizes: dict[str, int] = {}  # bytes received, by path; of a log with those left out
        self.written: dict[str, int] = {}  # without

    def add(self, chunk: Chunk) -> bool:
        """Appends a chunk. False, with nothing written, for one that is damaged, that does not go
        on where the file ends, or whose file is not this node's: it is asked for again. Raises
        OSError."""
        known = self.sizes.get(chunk.path, 0)
        skipped = chunk.offset - known
        if (
            not is_sent(chunk.path, self.placement, self.node)
            or len(chunk.data) > CHUNK_BYTES
            or zlib.crc32(chunk.data) != chunk.crc
            or skipped < 0
            or (skipped and not (is_log(chunk.path) and known >= LOG_BYTES))
            or not self._within_bounds(chunk)
        ):
            return False
        note = f"\n[{skipped} bytes of this log were not sent]\n".encode() if skipped else b""
        try:
            _append(self.launch_dir / chunk.path, note + chunk.data)
        except (FileExistsError, IsADirectoryError, NotADirectoryError):  # another file's place
            return False
        self.sizes[chunk.path] = chunk.offset + len(chunk.data)
        self.written[chunk.path] = self.written.get(chunk.path, 0) + len(chunk.data)
        return True

    def _within_bounds(self, chunk: Chunk) -> bool:
        """Whether a node that sends this keeps to what `changes` sends."""
        if chunk.path not in self.sizes and len(self.sizes) >= FILES:
            return False
        written = self.written.get(chunk.path, 0) + len(chunk.data)
        return not is_log(chunk.path) or written <= LOG_BYTES + LOG_END_BYTES + CHUNK_BYTES


def _append(path: Path, data: bytes) -> None:
    """All of the data, or, on a disk that is full, none of it: it is appended again later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise
