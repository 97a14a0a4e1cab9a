"""Writes W&B transaction logs by hand: quickly, and with damage where a test wants it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

from runners.track.log_file import BLOCK, CHUNK_HEADER, FIRST, FULL, HEADER, LAST, MIDDLE
from runners.track.run import Run


def frame(payloads: Iterable[bytes]) -> bytes:
    """A whole log of these records, split over blocks as LevelDB's format wants it."""
    out = bytearray(HEADER)
    for payload in payloads:
        _append(out, payload)
    return bytes(out)


def _append(out: bytearray, payload: bytes) -> None:
    start = True
    while True:
        room = BLOCK - len(out) % BLOCK
        if room < CHUNK_HEADER.size:
            out += bytes(room)
            continue
        piece, payload = payload[: room - CHUNK_HEADER.size], payload[room - CHUNK_HEADER.size :]
        kind = (FULL if start else LAST) if not payload else (FIRST if start else MIDDLE)
        checksum = zlib.crc32(piece, zlib.crc32(bytes([kind])))
        out += CHUNK_HEADER.pack(checksum, len(piece), kind) + piece
        start = False
        if not payload:
            return


def payloads(run: Run) -> list[bytes]:
    """The records W&B 0.31 writes for a run, in its order: two summary records a history row."""
    records = [_run(run), _summary(run.summary)]
    for step, row in enumerate(run.history):
        records += [_own(step), _clock(step), _history(row, step)]
    end = Record()
    end.exit.exit_code = run.exit_code
    for number, record in enumerate([*records, end], 1):
        record.num = number
    return [record.SerializeToString() for record in [*records, end]]


def _run(run: Run) -> Any:
    record = Record()
    told = record.run
    told.run_id, told.display_name, told.project = run.id, run.name, "p"
    told.run_group, told.job_type = run.group, run.job_type
    told.tags.extend(run.tags)
    for key, value in {"_wandb": {}, **run.config}.items():
        told.config.update.add(key=key, value_json=json.dumps(value))
    return record


def _summary(values: dict[str, Any]) -> Any:
    record = Record()
    for key, value in values.items():
        record.summary.update.add(key=key, value_json=json.dumps(value))
    return record


def _own(step: int) -> Any:
    record = Record()
    record.summary.update.add(nested_key=["_wandb", "runtime"], value_json=str(step))
    record.summary.update.add(key="_runtime", value_json=str(step))
    return record


def _clock(step: int) -> Any:
    record = Record()
    for key, value in (("_timestamp", 1.7e9 + step), ("_runtime", step), ("_step", step)):
        record.summary.update.add(nested_key=[key], value_json=json.dumps(value))
    return record


def _history(row: dict[str, Any], step: int) -> Any:
    record = Record()
    record.history.step.num = step
    clock = {"_timestamp": 1.7e9 + step, "_runtime": step, "_step": step}
    for key, value in {**row, **clock}.items():
        record.history.item.add(nested_key=[key], value_json=json.dumps(value))
    return record
