"""Reading a packed file: bounds on what it may cost, and what is named when it is not as packed."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from runners.packed import container, packed_file
from runners.packed.container import PackedError
from runners.packed.packed_file import SHARED, of_bytes, read_packed
from tests.support import hostile_packed


def with_parts(**parts: bytes) -> bytes:
    """The good file with some parts instead of its own, or beside them."""
    about, content = hostile_packed.opened()
    return container.write(about, {**content, **parts})


def lines_of(name: str = "records/0000.jsonl") -> list[dict[str, Any]]:
    _, content = hostile_packed.opened()
    return [json.loads(line) for line in content[name].split(b"\n")]


def joined(lines: list[Any]) -> bytes:
    return b"\n".join(json.dumps(line).encode() for line in lines)


def test_what_was_packed_is_read() -> None:
    packed = of_bytes(hostile_packed.good(), "good")
    assert (packed.name, len(packed.records), packed.damaged) == ("good", 6, ())
    assert packed.plan is not None
    assert packed.plan["command"] == "python runners/bench.py -m strategy=tp,ep topk=2,4"


def test_a_shared_value_that_is_damaged_takes_the_records_that_need_it() -> None:
    shared = lines_of()[0]["environment"][SHARED]
    packed = of_bytes(with_parts(**{f"shared/{shared}.json": b"{"}), "x")
    assert packed.records == ()
    assert all(line.startswith("x: part records/0000.jsonl: line ") for line in packed.damaged)


def test_only_fields_that_are_shared_may_refer_to_others() -> None:
    """Samples of 100,000 rounds, referred to by many records, would keep a reader busy."""
    lines = lines_of()
    samples = json.dumps(lines[0]["samples"]).encode()
    for line in lines:
        line["samples"] = {SHARED: "samples"}
    changed = with_parts(**{"records/0000.jsonl": joined(lines), "shared/samples.json": samples})
    packed = of_bytes(changed, "x")
    assert packed.records == ()
    assert "$shared" in packed.damaged[0]


def test_what_many_records_share_counts_for_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_file, "MOST_READ_BYTES", 1 << 20)
    line = lines_of()[0]
    line["calibration"] = {SHARED: "large"}
    large = json.dumps({"points": [0] * 100_000}).encode()
    few = with_parts(**{"records/0000.jsonl": joined([line] * 2), "shared/large.json": large})
    assert len(of_bytes(few, "x").records) == 2
    many = with_parts(**{"records/0000.jsonl": joined([line] * 9), "shared/large.json": large})
    with pytest.raises(PackedError, match="x: more than 20000 attempts, or 1048576 bytes"):
        of_bytes(many, "x")


def test_a_part_of_many_lines_is_refused() -> None:
    """A file of 8 KB would print a hundred thousand warnings."""
    with pytest.raises(PackedError, match="x: more than 20000 attempts"):
        of_bytes(with_parts(**{"records/0000.jsonl": b"\n" * 100_000}), "x")
    packed = of_bytes(with_parts(**{"records/0000.jsonl": b"\n" * 100}), "x")
    assert len(packed.damaged) == 21
    assert packed.damaged[-1] == "x: part and 81 more; left out"


def test_too_little_memory_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(content: bytes) -> Any:
        raise MemoryError

    monkeypatch.setattr(packed_file, "parsed", fail)
    with pytest.raises(PackedError, match="x: too large for this machine's memory"):
        of_bytes(hostile_packed.good(), "x")


def test_a_zip_of_64_bits_is_refused() -> None:
    """Its numbers stand before the end record and would go round the bounds."""
    data = hostile_packed.good()
    end = len(data) - container.DIGITS - len(container.COMMENT) - container.END.size
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)
    with pytest.raises(PackedError, match="x: a zip of more than 20000 parts or 4 GB"):
        of_bytes(data[:end] + locator + data[end:], "x")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_compression_is_not_even_tried(method: int) -> None:
    about, content = hostile_packed.opened()
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(container.write(about, content))) as good, \
         zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:  # fmt: skip
        for info in good.infolist():
            how = method if info.filename == "plan.json" else zipfile.ZIP_DEFLATED
            archive.writestr(info.filename, good.read(info), how)
        archive.comment = good.comment
    packed = of_bytes(stream.getvalue(), "x")
    assert packed.plan is None
    assert packed.damaged[0].startswith(f"x: part plan.json: compressed by method {method}; ")


def test_only_files_are_read(tmp_path: Path) -> None:
    """A pipe would be waited for without an end."""
    pipe, folder = tmp_path / "a.moebench", tmp_path / "b.moebench"
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, folder):
        with pytest.raises(PackedError, match=f"{re.escape(str(path))}: is no file; give a file"):
            read_packed(path)
    with pytest.raises(PackedError, match="cannot be read"):
        read_packed(tmp_path / "c.moebench")


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "A.MOEBENCH"
    path.write_bytes(hostile_packed.good())
    assert packed_file.is_packed(path)
    assert len(read_packed(path).records) == 6
    path.write_bytes(with_parts(**{"records/0000.jsonl": joined(lines_of()[:2])}))
    os.utime(path, ns=(1, 1))
    assert len(read_packed(path).records) == 2


def test_another_version_is_refused_by_name() -> None:
    about, content = hostile_packed.opened()
    for fields, words in (
        ({"version": 2}, "x: version 2 of the format, and this program reads 1"),
        ({"format": "zip"}, "x: no .moebench file"),
        ({"name": "../x"}, "x: manifest.json: name=../x: allowed are"),
    ):
        with pytest.raises(PackedError, match=re.escape(words)):
            of_bytes(container.write({**about, **fields}, content), "x")
