"""The framing of W&B's transaction log (`run-<id>.wandb`), read without W&B. Floor: runners.

The file is a 7-byte header (":W&B", magic 0xBEE1, version 0) followed by a LevelDB log: blocks
of 32 KB holding chunks of [crc32 u32 | length u16 | type u8 | data]. The checksum is zlib's
crc32 of type and data. A record is one FULL chunk, or FIRST, MIDDLE ..., LAST; what is left of a
block when no chunk header fits is zero. Every record is a `wandb_internal.Record` message.

The tracker counts with this what has really landed on disk (wandb loses rows in silence when the
disk is full), and the analysis reads runs with it. A damaged or unfinished file gives the records
before the damage and a sentence on it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

HEADER = b":W&B\xe1\xbe\x00"
BLOCK = 32768
CHUNK_HEADER = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
CRC_OF_TYPE = {t: zlib.crc32(bytes([t])) for t in (FULL, FIRST, MIDDLE, LAST)}

# Field numbers of wandb_internal.Record.
HISTORY, SUMMARY, CONFIG, RUN, EXIT = 2, 3, 5, 17, 18
ENVELOPE = (1, 16, 19, 200)  # num, control, uuid, _info: not what a record is about


class Damage(ValueError):
    """The log cannot be read further; the message says why."""


class Payload(NamedTuple):
    kind: int  # field number of the record's content
    data: bytes  # the serialized Record


@dataclass
class Log:
    """What could be read of one file: `damage` is empty when it was read to its end."""

    payloads: list[Payload]
    damage: str = ""

    def count(self, kind: int) -> int:
        return sum(payload.kind == kind for payload in self.payloads)

    @property
    def finished(self) -> bool:
        """Whether the run said that it ends; without that it crashed or is still alive."""
        return any(payload.kind == EXIT for payload in self.payloads)


def read(path: Path) -> Log:
    """The records of a file; an unreadable file is an empty log with damage, never an exception."""
    log = Log([])
    try:
        for data in frames(path.read_bytes()):
            log.payloads.append(Payload(kind(data), data))
    except OSError as error:
        log.damage = error.strerror or str(error)
    except Damage as error:
        log.damage = str(error)
    return log


def frames(data: bytes) -> Iterator[bytes]:
    """Every whole record's bytes, in order; raises Damage where the log cannot be followed."""
    if data[: len(HEADER)] != HEADER:
        raise Damage("no W&B transaction log: its first bytes are not W&B's")
    parts: list[bytes] = []
    for type_, chunk in _chunks(data):
        if (type_ in (FULL, FIRST)) == bool(parts):
            raise Damage("a record starts within another or goes on without a start")
        parts.append(chunk)
        if type_ in (FULL, LAST):
            yield parts[0] if type_ == FULL else b"".join(parts)
            parts = []
    if parts:
        raise Damage("ends within a record")


def _chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    position, size, crc32, unpack = len(HEADER), len(data), zlib.crc32, CHUNK_HEADER.unpack_from
    while position < size:
        room = BLOCK - position % BLOCK
        if room < CHUNK_HEADER.size:
            position += room
            continue
        start = position + CHUNK_HEADER.size
        if start > size:
            raise Damage(f"ends within a record, at byte {size}")
        checksum, length, type_ = unpack(data, position)
        position = start + length
        chunk = data[start:position]
        if len(chunk) < length:
            raise Damage(f"ends within a record, at byte {size}")
        if type_ not in CRC_OF_TYPE or crc32(chunk, CRC_OF_TYPE[type_]) != checksum:
            raise Damage(f"wrong checksum at byte {start - CHUNK_HEADER.size}")
        yield type_, chunk


def kind(data: bytes) -> int:
    """Field number of the record's content, found by walking the message's tags; 0 if none."""
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
