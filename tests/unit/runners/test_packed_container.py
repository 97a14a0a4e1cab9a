"""The zip of a packed file: what is written is read, and one changed bit is named."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from runners.packed import container
from runners.packed.container import PackedError
from tests.support import hostile_packed

PARTS = {"plan.json": b'{"a":1}', "records/0000.jsonl": b"first\nsecond", "README.txt": b"text"}


def written(parts: Mapping[str, bytes] = PARTS) -> bytes:
    return container.write({"name": "x"}, parts)


def entries(data: bytes) -> dict[str, zipfile.ZipInfo]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: info for info in archive.infolist()}


def test_what_is_written_is_read() -> None:
    box = container.read(written(), "x")
    assert dict(box.parts) == PARTS
    assert box.manifest["name"] == "x"
    assert box.damaged == ()
    listed = box.manifest["parts"]["plan.json"]
    assert listed == {"bytes": 7, "sha256": hashlib.sha256(b'{"a":1}').hexdigest()}


def test_any_zip_program_reads_it() -> None:
    with zipfile.ZipFile(io.BytesIO(written())) as archive:
        assert archive.testzip() is None
        assert archive.read("records/0000.jsonl") == b"first\nsecond"
        manifest = json.loads(archive.read("manifest.json"))
    assert list(manifest["parts"]) == list(PARTS)


def test_the_same_parts_are_the_same_bytes() -> None:
    assert written() == written(dict(PARTS))
    assert written() != written({**PARTS, "README.txt": b"other"})


def test_every_single_bit_that_changes_is_seen_and_named() -> None:
    """Each of them: in a part, the manifest, a header of the zip, or the checksum of the whole."""
    data = written()
    unnamed = []
    for place in range(8 * len(data)):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        try:
            box = container.read(bytes(changed), "x.moebench")
        except PackedError as error:
            assert str(error).startswith("x.moebench: ")
            continue
        if not box.damaged:
            unnamed.append(place)
        for name, content in box.parts.items():
            assert PARTS[name] == content
    assert unnamed == []


def test_the_part_with_the_changed_bit_is_the_one_that_is_named() -> None:
    data = written({**PARTS, "pictures/a.png": b"stored as it is, to be found here"})
    start = data.index(b"stored as it is")
    changed = bytearray(data)
    changed[start] ^= 1
    box = container.read(bytes(changed), "x")
    assert [re.sub(":.*", "", line) for line in box.damaged] == ["pictures/a.png"]
    assert set(box.parts) == set(PARTS)


def test_a_changed_date_of_an_entry_is_named_as_a_header() -> None:
    data = bytearray(written())
    data[10] ^= 1  # time of the first local header, which no reader looks at
    box = container.read(bytes(data), "x")
    assert box.damaged == ("headers of the zip: not as written; every part is whole",)
    assert dict(box.parts) == PARTS


@pytest.mark.parametrize(
    "name", ["../x", "/x", "records/../x", "records/a/b.jsonl", "manifest.json", "a.json", ""]
)
def test_parts_of_other_names_are_not_written(name: str) -> None:
    with pytest.raises(PackedError, match=re.escape(repr(name))):
        container.write({}, {name: b""})


def test_parts_that_are_not_in_the_manifest_are_left_out() -> None:
    about, parts = hostile_packed.opened()
    stream = io.BytesIO(container.write(about, parts))
    comment = stream.getvalue()[-container.DIGITS - len(container.COMMENT) :]
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("../outside.txt", b"outside")
        archive.comment = comment
    box = container.read(stream.getvalue(), "x")
    assert box.damaged == ("../outside.txt: not in manifest.json",)
    assert set(box.parts) == set(parts)


def test_a_bomb_is_not_unpacked() -> None:
    """A part of 33 MiB of zeros, and parts of 600 MiB together."""
    for sizes, words in (([33], "34603008 bytes; allowed are"), ([30] * 20, "when unpacked")):
        stream = io.BytesIO()
        names = [f"shared/{number}.json" for number in range(len(sizes))]
        listed = {name: {"sha256": "0" * 64} for name in names}
        manifest = container.sealed({"parts": listed})
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("manifest.json", manifest)
            for name, size in zip(names, sizes, strict=True):
                archive.writestr(name, bytes(size << 20))
            archive.comment = container.COMMENT + b"0" * container.DIGITS
        try:
            text = container.read(stream.getvalue(), "x").damaged[0]
        except PackedError as error:
            text = str(error)
        assert words in text


def test_a_size_in_the_directory_that_is_too_small_is_not_believed() -> None:
    """The part is 7 bytes; the directory says 3."""
    data = bytearray(written())
    place = data.index(b"plan.json", data.index(b"PK\x01\x02")) - 46
    data[place + 24 : place + 28] = (3).to_bytes(4, "little")
    box = container.read(bytes(data), "x")
    assert any(line.startswith("plan.json: ") for line in box.damaged)
    assert "plan.json" not in box.parts


def test_what_is_no_file_of_ours_is_refused_by_name() -> None:
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("manifest.json", "{}")
    faults = {
        b"": "no .moebench file",
        b"PK": "no .moebench file",
        b"x" * 500: "no .moebench file",
        plain.getvalue(): "cut off, damaged at its end, or no .moebench file",
        written()[:-1]: "cut off",
        written() + b"x": "cut off",
        written()[: len(written()) // 2]: "cut off",
    }
    for data, words in faults.items():
        with pytest.raises(PackedError, match=f"^x.moebench: .*{re.escape(words)}"):
            container.read(data, "x.moebench")


def test_zstd_where_this_python_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Python 3.14 writes and reads it; an older one says what to do."""
    if container.zstd_is_known():
        data = container.write({"name": "x"}, PARTS, "zstd")
        assert dict(container.read(data, "x").parts) == PARTS
    monkeypatch.setattr(container, "zstd_is_known", lambda: False)
    with pytest.raises(PackedError, match=r"--compression zstd: allowed from Python 3\.14 on"):
        container.write({}, PARTS, "zstd")
    data = bytearray(written())
    for name in entries(written()):
        place = data.index(name.encode(), data.index(b"PK\x01\x02")) - 46
        data[place + 10 : place + 12] = (93).to_bytes(2, "little")
    with pytest.raises(PackedError, match=r"manifest\.json: packed with zstd, which Python reads"):
        container.read(bytes(data), "x")


def test_too_many_parts_are_refused_before_they_are_listed() -> None:
    data = bytearray(written())
    end = len(data) - container.DIGITS - len(container.COMMENT) - container.END.size
    data[end + 8 : end + 12] = (60_000).to_bytes(2, "little") * 2
    with pytest.raises(PackedError, match="60000 parts; allowed are 20000"):
        container.read(bytes(data), "x")
