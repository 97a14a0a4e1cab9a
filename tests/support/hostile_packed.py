"""Packed files that a disk has damaged or an attacker has written: number N is always the same."""

from __future__ import annotations

import copy
import functools
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

from analysis.sources.packed_rows import portable_row
from runners.packed import container, parts
from runners.packed.packed_file import of_bytes
from runners.records import flat_row, record
from runners.records.record import Record
from tests.support import analysis_factory as factory
from tests.support.damage import damaged

KINDS = 9
HTML = "<script>alert(1)</script><img src=x onerror=alert(1)>"
VALUES: list[Any] = [
    *(2**63, -(2**63) - 1, 2**62, 10**400, -1, 0, 1e308, -1e308, 5e-324, True, None, "", HTML),
    *("../../../../etc/passwd", "/home/alice/key", "alice@node17.cluster.example", "\x1b[2J", "\0"),
    *("{{7*7}}", "a" * 100_000, [], {}, [[[[[[]]]]]], {"$shared": "../manifest"}, "\ud800", "1e5"),
    -0.0,
]
TEXTS = [b"NaN", b"Infinity", b"1e999", b"[" * 50_000, b'{"a":' * 20_000, b"9" * 5000, b"\xff", b""]
PATHS = [
    *("../outside.txt", "/tmp/outside.txt", "records/../../outside.txt", "C:\\outside.txt"),
    *("records/\x00.jsonl", "pictures/a/b.png", "records/" + "a" * 3000, "plots/x.png", ""),
]


@functools.cache
def good() -> bytes:
    """A file of four cells, two of them in two launches."""
    cells = [factory.cell(name, topk=k, ranks=2) for name in ("tp", "ep") for k in (2, 4)]
    records = [
        factory.measured(of, launch=launch, calibration=factory.CALIBRATION, rounds=6)
        for of in cells
        for launch in range(2 if of.layer.topk == 2 else 1)
    ]
    lines, origins, _ = parts.of_records(records, "good", ())
    plan = {
        "command": "python runners/bench.py -m strategy=tp,ep topk=2,4",
        "cells": [{"cell_id": one.cell_id, "overrides": ["topk=2"]} for one in records],
    }
    about = parts.about(origins, "good", str(plan["command"]), ())
    text = {"README.txt": b"A file."}
    return container.write(about, {**text, **parts.of_plan(plan, "good", ()), **lines})


def opened() -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest's other fields, and the parts, of the good file."""
    box = container.read(good(), "good")
    manifest = {name: value for name, value in box.manifest.items() if name != "parts"}
    return manifest, dict(box.parts)


def file(number: int) -> bytes:
    """The file of this number; kinds take turns."""
    dice = random.Random(number)
    return MAKERS[number % KINDS](dice)


def _random_damage(dice: random.Random) -> bytes:
    return damaged(good(), dice)


def _one_bit(dice: random.Random) -> bytes:
    data, place = bytearray(good()), dice.randrange(8 * len(good()))
    data[place // 8] ^= 1 << place % 8
    return bytes(data)


def _other_value(dice: random.Random) -> bytes:
    """One or two values of a record replaced, and everything sealed anew, the key too at times."""
    about, content = opened()
    name = dice.choice([name for name in content if name.startswith(("records/", "shared/"))])
    lines = [json.loads(line) for line in content[name].split(b"\n")]
    for _ in range(dice.choice([1, 1, 2])):
        _replace(dice.choice(lines), dice)
    if dice.random() < 0.5:
        for line in lines:
            _new_key(line)
    content[name] = b"\n".join(json.dumps(line).encode() for line in lines)
    return container.write(about, content)


def _replace(value: Any, dice: random.Random) -> None:
    """One value somewhere below, or one more name."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = dice.choice(keys)
        below = value[key]
        if isinstance(below, dict | list) and below and dice.random() < 0.85:
            value = below
            continue
        if isinstance(value, dict) and dice.random() < 0.1:
            value[dice.choice([HTML, "../x", "user", "n" * 5000])] = 1
        elif dice.random() < 0.1:
            del value[key]
        else:
            value[key] = copy.deepcopy(dice.choice(VALUES))
        return


def _new_key(content: dict[str, Any]) -> None:
    """The key that belongs to the changed cell, where it is still a cell."""
    try:
        content["key"] = record.cell_key(record.cell_from_dict(copy.deepcopy(content["cell"])))
    except (KeyError, TypeError, ValueError, AttributeError):
        return


def _other_text(dice: random.Random) -> bytes:
    """A part of bytes that are no JSON, or not ours."""
    about, content = opened()
    name = dice.choice(list(content))
    at = dice.randrange(len(content[name]) + 1)
    insert = dice.choice(TEXTS)
    content[name] = dice.choice([insert, content[name][:at] + insert + content[name][at:]])
    return container.write(about, content)


def _other_about(dice: random.Random) -> bytes:
    """A manifest or a plan with other values."""
    about, content = opened()
    if dice.random() < 0.5:
        _replace(about, dice)
    else:
        plan = json.loads(content["plan.json"])
        _replace(plan, dice)
        content["plan.json"] = json.dumps(plan).encode()
    return container.write(about, content)


@functools.cache
def of_rows() -> dict[str, bytes]:
    """Parts of a file of W&B runs."""
    rows = [
        portable_row({**flat_row.row(one, samples=True), "sweep": "good"}, ())[0]
        for one in of_bytes(good(), "good").records
    ]
    return parts.of_rows(rows)


def _other_row(dice: random.Random) -> bytes:
    """As `_other_value`, of a file of W&B runs, whose ids and key may fit; large numbers too."""
    about, _ = opened()
    content = dict(of_rows())
    name = dice.choice([name for name in content if name.startswith("rows/")])
    rows = [json.loads(line) for line in content[name].split(b"\n")]
    for row in rows:
        if dice.random() < 0.5:
            _replace(row, dice)
        if dice.random() < 0.3:
            row[dice.choice(["world_size", "dim", "num_experts", "nodes"])] = 2**31 - 1
        if dice.random() < 0.7:
            _new_ids(row)
    content[name] = b"\n".join(json.dumps(row).encode() for row in rows)
    return container.write(about, content)


def _new_ids(row: dict[str, Any]) -> None:
    try:
        row["key"] = record.cell_key(flat_row.cell_of(row))
        one = Record(row["key"], flat_row.cell_of(row), row["label"], row["launch"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return
    row["cell_id"], row["attempt_id"] = one.cell_id, one.attempt_id


def _large_numbers(dice: random.Random) -> bytes:
    """A cell that nobody can have measured, with times that end with the 64 bits."""
    about, content = opened()
    one = of_bytes(good(), "good").records[0]
    value = record.to_dict(one)
    cell = copy.deepcopy(value["cell"])
    part, field = dice.choice(
        [("layer", "dim"), ("layer", "hidden"), ("layer", "num_experts"), ("layer", "topk"),
         ("workload", "batch_size"), ("placement", "world_size"), ("placement", "threads"),
         ("strategy", "ep"), ("workload", "parameter"), ("layer", "scale")]
    )  # fmt: skip
    cell[part][field] = dice.choice([2**31, 2**62, 2**63 - 1, -(2**63), 0, -1])
    samples = copy.deepcopy(value["samples"])
    if dice.random() < 0.5:
        samples["start_ns"] = [[-(2**63)] * len(row) for row in samples["start_ns"]]
        samples["end_ns"] = [[2**63 - 1] * len(row) for row in samples["end_ns"]]
    changed = {**value, "cell": cell, "samples": samples}
    _new_key(changed)
    name = next(name for name in content if name.startswith("records/"))
    content[name] = json.dumps(changed).encode()
    return container.write(about, content)


def _other_zip(dice: random.Random) -> bytes:
    """A zip that does what ours do not: paths, links, bombs, two parts of one name."""
    about, content = opened()
    manifest = json.dumps({**about, "parts": {}}).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(container.MANIFEST, dice.choice([manifest, b"{}", b"[]", manifest[:50]]))
        for name, data in content.items():
            archive.writestr(name, data)
        _ADDITIONS[dice.randrange(len(_ADDITIONS))](archive, dice)
        archive.comment = container.COMMENT + b"0" * container.DIGITS
    return stream.getvalue()


def _path(archive: zipfile.ZipFile, dice: random.Random) -> None:
    archive.writestr(zipfile.ZipInfo(dice.choice(PATHS) or "x"), b"outside")


def _link(archive: zipfile.ZipFile, dice: random.Random) -> None:
    info = zipfile.ZipInfo("records/link.jsonl")
    info.external_attr = 0o120777 << 16
    archive.writestr(info, b"/etc/passwd")


def _bomb(archive: zipfile.ZipFile, dice: random.Random) -> None:
    archive.writestr("shared/bomb.json", bytes(dice.choice([33, 40]) << 20))


def _many(archive: zipfile.ZipFile, dice: random.Random) -> None:
    for number in range(3000):
        archive.writestr(f"shared/{number}.json", b"1")


def _nested(archive: zipfile.ZipFile, dice: random.Random) -> None:
    archive.writestr("shared/inner.json", good())


_ADDITIONS: list[Callable[[zipfile.ZipFile, random.Random], None]] = [
    _path, _path, _link, _bomb, _many, _nested
]  # fmt: skip


def _other_directory(dice: random.Random) -> bytes:
    """The zip's directory says something else of one part: its size, method, flags or place."""
    data = bytearray(good())
    places = [n for n in range(len(data) - 4) if data[n : n + 4] == b"PK\x01\x02"]
    entry = dice.choice(places)
    offset, form = dice.choice([(8, "<H"), (10, "<H"), (16, "<L"), (20, "<L"), (24, "<L"),
                                (28, "<H"), (30, "<H"), (42, "<L")])  # fmt: skip
    limit = 1 << 8 * struct.calcsize(form)
    struct.pack_into(form, data, entry + offset, dice.choice([0, 1, 99, limit - 1, limit // 2]))
    return bytes(data)


MAKERS = [
    _random_damage, _one_bit, _other_value, _other_text, _other_about, _large_numbers,
    _other_zip, _other_directory, _other_row,
]  # fmt: skip
assert len(MAKERS) == KINDS
