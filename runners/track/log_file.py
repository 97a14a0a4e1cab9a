"""The framing of W&B's transaction log (`run-<id>.wandb`), read without W&B.

The file is a 7-byte header (":W&B", magic 0xBEE1, version 0) followed by a LevelDB log: blocks
of 32 KB holding chunks of [crc32 u32 | length u16 | type u8 | data]. The checksum is zlib's
crc32 of type and data. A record is one FULL chunk, or FIRST, MIDDLE ..., LAST; what is left of a
block when no chunk header fits is zero. Every record is a `wandb_internal.Record` message.

The tracker counts with it what is really on disk (W&B silently loses rows when the disk is full),
and the analysis reads runs with it. A damaged or unfinished file gives the records before the
damage and a sentence about it.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HEADER = b":W&B\xe1\xbe\x00"
BLOCK = 32768
CHUNK_HEADER = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
SEEDS = {t: zlib.crc32(bytes([t])) for t in (FULL, FIRST, MIDDLE, LAST)}

# Field numbers of wandb_internal.Record.
HISTORY, SUMMARY, CONFIG, RUN, EXIT = 2, 3, 5, 17, 18
ENVELOPE = (1, 16, 19, 200)  # num, control, uuid, _info: not what a record is about
FAST = re.compile(rb"\x08[\x80-\xff]{0,3}[\x00-\x7f]([\x12\x1a])", re.DOTALL)  # history, summary


class Damage(ValueError):
    """The log cannot be read further; the message says why."""


@dataclass
class Log:
    """The readable records of one file; `damage` is empty when it was read to its end."""

    payloads: dict[int, list[bytes]] = field(default_factory=dict)  # by kind, in order
    damage: str = ""

    def of(self, kind: int) -> list[bytes]:
        """Serialized `Record`s with this content."""
        return self.payloads.get(kind, [])

    @property
    def finished(self) -> bool:
        """Whether the run logged its exit; otherwise it crashed or is still running."""
        return bool(self.of(EXIT))


def read(path: Path) -> Log:
    """The records of a file; an unreadable file is an empty log with damage, never an exception."""
    log = Log()
    try:
        for data in frames(path.read_bytes()):
            log.payloads.setdefault(kind(data), []).append(data)
    except OSError as error:
        log.damage = error.strerror or str(error)
    except Damage as error:
        log.damage = str(error)
    return log


def frames(data: bytes) -> Iterator[bytes]:
    """Every whole record's bytes, in order; raises Damage where the log cannot be followed.

    One loop without helpers: logs hold hundreds of small records, and this runs for each.
    """
    if data[: len(HEADER)] != HEADER:
        raise Damage("no W&B transaction log: its first bytes are not W&B's")
    crc32, unpack, seeds, header = zlib.crc32, CHUNK_HEADER.unpack_from, SEEDS, CHUNK_HEADER.size
    position, size, block_end = len(HEADER), len(data), BLOCK
    parts: list[bytes] = []
    while position < size:
        start = position + header
        if start > block_end:
            position, block_end = block_end, block_end + BLOCK
            continue
        if start > size:
            raise Damage(f"ends within a record, at byte {size}")
        checksum, length, type_ = unpack(data, position)
        chunk = data[start : start + length]
        if start + length > min(size, block_end):
            inside = start + length <= block_end
            text = f"ends within a record, at byte {size}" if inside else "a chunk leaves its block"
            raise Damage(text)
        if crc32(chunk, seeds.get(type_, 0)) != checksum or type_ not in seeds:
            raise Damage(f"wrong checksum at byte {position}")
        position = start + length
        if type_ == FULL and not parts:
            yield chunk
            continue
        if (type_ in (FULL, FIRST)) == bool(parts):
            raise Damage("a record starts within another or goes on without a start")
        parts.append(chunk)
        if type_ == LAST:
            yield b"".join(parts)
            parts = []
    if parts:
        raise Damage("ends within a record")


def kind(data: bytes) -> int:
    """Field number of the record's content, found by walking the message's tags; 0 if none."""
    match = FAST.match(data)  # nearly all: a number of up to four bytes, then the content
    if match:
        return match[1][0] >> 3
    position = 0
    try:
        while position < len(data):
            tag, position = _varint(data, position)
            if tag >> 3 not in ENVELOPE:
                return tag >> 3
            if tag & 7 == 2:
                length, position = _varint(data, position)
                position += length
            elif tag & 7 == 0:
                _, position = _varint(data, position)
            else:
                return 0
    except IndexError:
        return 0
    return 0


def _varint(data: bytes, position: int) -> tuple[int, int]:
    byte = data[position]
    position += 1
    if byte < 0x80:
        return byte, position
    value, shift = byte & 0x7F, 7
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
