"""The zip file that carries a sweep: named parts, each with its size and checksum in a manifest.

    manifest.json      sealed; {"parts": {name: {"bytes", "sha256"}}, and what the file is about}
    NAME               any other part, by the names of PART_NAME
    zip comment        "moebench sha256=" and the checksum of all bytes before these 64 digits

Writing is deterministic. Reading extracts nothing to disk, is bounded in size, and names what is
damaged: a part whose checksum is wrong, or, where all parts are whole, the zip's own headers.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from runners.records.sealed import sealed, unsealed

SUFFIX = ".moebench"
MANIFEST = "manifest.json"
PART_NAME = re.compile(
    r"manifest\.json|plan\.json|refused\.json|README\.txt"
    r"|(records|rows|shared|pictures)/[A-Za-z0-9_-][A-Za-z0-9._-]{0,119}"
)
MEBIBYTE = 1 << 20
MOST_FILE_BYTES = 64 * MEBIBYTE
MOST_PART_BYTES = 16 * MEBIBYTE
MOST_BYTES = 128 * MEBIBYTE  # of all parts together, unpacked
MOST_PARTS = 20_000
MOST_DIRECTORY_BYTES = MOST_PARTS * 256
COMMENT = b"moebench sha256="
DIGITS = 64
END = struct.Struct("<4s4H2LH")  # of a zip: its end record, without the comment
END_MARK, ZIP64_MARK = b"PK\x05\x06", b"PK\x06\x07"
ZIP64_BYTES = 20  # of its mark with what follows it, before the end record
METHODS = {"deflate": zipfile.ZIP_DEFLATED, "zstd": 93}  # 93: zipfile.ZIP_ZSTANDARD of Python 3.14
MOST_SHOWN = 200  # characters of a fault
OLD_DATE = (1980, 1, 1, 0, 0, 0)
READABLE_BY_OWNER_AND_OTHERS = 0o100644 << 16
# What zipfile and its decompressors raise for damaged and hostile files.
FAULTS: tuple[type[Exception], ...] = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError),
    *(struct.error, ValueError, OverflowError, LookupError, MemoryError),
)
with contextlib.suppress(ImportError):  # Python 3.14 or later
    FAULTS = (*FAULTS, import_module("compression.zstd").ZstdError)


class PackedError(ValueError):
    """A file that cannot be used at all; the message names the file, the fault and what to do."""


@dataclass(frozen=True)
class Container:
    """What could be read. `parts` are the whole ones, without the manifest; `damaged` has a line
    for each of the others: "PART: fault"."""

    manifest: Mapping[str, Any]
    parts: Mapping[str, bytes] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()


def zstd_is_known() -> bool:
    """Whether this Python's zipfile can use zstd: from 3.14 on."""
    return hasattr(zipfile, "ZIP_ZSTANDARD")


def write(about: Mapping[str, Any], parts: Mapping[str, bytes], method: str = "deflate") -> bytes:
    """The file's bytes, for parts in the order given; `about` are the manifest's other fields.

    Raises PackedError for a part's name that is not allowed, what would be too large to be read,
    and a method that this Python does not know.
    """
    _check_writable(parts, method)
    listed = {name: {"bytes": len(data), "sha256": _digest(data)} for name, data in parts.items()}
    manifest = sealed({**about, "parts": listed}, indent=1).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", METHODS[method]) as archive:
        for name, data in {MANIFEST: manifest, **parts}.items():
            info = zipfile.ZipInfo(name, OLD_DATE)
            info.create_system, info.external_attr = 3, READABLE_BY_OWNER_AND_OTHERS
            info.compress_type = zipfile.ZIP_STORED if name.endswith(".png") else METHODS[method]
            archive.writestr(info, data)
        archive.comment = COMMENT + b"0" * DIGITS
    body = stream.getvalue()[:-DIGITS]
    if len(body) + DIGITS > MOST_FILE_BYTES:
        raise PackedError(
            f"{len(body)} bytes: allowed are {MOST_FILE_BYTES}; pack fewer cells (--filter)"
        )
    return body + _digest(body).encode()


def check_method(method: str) -> None:
    """Raises PackedError for a method that this Python does not know."""
    if method == "zstd" and not zstd_is_known():
        raise PackedError(
            "--compression zstd: allowed from Python 3.14 on; use deflate, which every Python reads"
        )


def _check_writable(parts: Mapping[str, bytes], method: str) -> None:
    check_method(method)
    for name in parts:
        if not PART_NAME.fullmatch(name) or name == MANIFEST:
            raise PackedError(f"part {name!r}: allowed are names as {PART_NAME.pattern}")
    if len(parts) >= MOST_PARTS:
        raise PackedError(f"{len(parts)} parts: allowed are {MOST_PARTS - 1}; pack fewer cells")
    for name, data in parts.items():
        if len(data) > MOST_PART_BYTES:
            raise PackedError(f"part {name}: {len(data)} bytes; allowed are {MOST_PART_BYTES}")
    if sum(map(len, parts.values())) > MOST_BYTES:
        raise PackedError(f"more than {MOST_BYTES} bytes in all parts; pack fewer cells")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read(data: bytes, name: str) -> Container:
    """Everything in the file that is whole. Raises PackedError where nothing can be used: it is
    none of our files, is cut off, is too large, or its directory or manifest is damaged."""
    _check_end(data, name)
    altered = _digest(data[:-DIGITS]).encode() != data[-DIGITS:]
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = _listed(archive, name)
            manifest = _manifest(archive, infos, name)
            parts, damaged = _parts(archive, infos, manifest["parts"])
    except PackedError:
        raise
    except FAULTS as error:
        raise _refused(name, f"the zip's directory is damaged: {words(error)}") from error
    if altered and not damaged:
        damaged.append("headers of the zip: not as written; every part is whole")
    return Container(manifest, parts, tuple(damaged))


def _refused(name: str, fault: str) -> PackedError:
    return PackedError(f"{name}: {fault}; get the file again, or ask for another one")


def _check_end(data: bytes, name: str) -> None:
    """The end record stands where `write` puts it, and gives bounded sizes."""
    if len(data) > MOST_FILE_BYTES:
        raise _refused(name, f"{len(data)} bytes; allowed are {MOST_FILE_BYTES}")
    start = len(data) - DIGITS - len(COMMENT) - END.size
    if not data.startswith(b"PK") or start < 0:
        raise _refused(name, f"no {SUFFIX} file, or its beginning is damaged")
    mark, *_, entries, directory_bytes, _, length = END.unpack_from(data, start)
    ends_as_written = mark == END_MARK and length == len(COMMENT) + DIGITS
    if not ends_as_written or not data[:-DIGITS].endswith(COMMENT):
        raise _refused(name, f"cut off, damaged at its end, or no {SUFFIX} file")
    if entries > MOST_PARTS or directory_bytes > MOST_DIRECTORY_BYTES:
        raise _refused(name, f"{entries} parts; allowed are {MOST_PARTS}")
    if data[max(0, start - ZIP64_BYTES) : start].startswith(ZIP64_MARK):
        raise _refused(name, f"a zip of more than {MOST_PARTS} parts or 4 GB, by its end")


def _listed(archive: zipfile.ZipFile, name: str) -> dict[str, zipfile.ZipInfo]:
    """The zip's entries by name; raises PackedError for what could be meant as an attack."""
    infos = archive.infolist()
    if len(infos) > MOST_PARTS:
        raise _refused(name, f"{len(infos)} parts; allowed are {MOST_PARTS}")
    by_name = {info.filename: info for info in infos}
    if len(by_name) < len(infos):
        raise _refused(name, "two parts have the same name")
    if sum(info.file_size for info in infos) > MOST_BYTES:
        raise _refused(name, f"more than {MOST_BYTES} bytes when unpacked")
    return by_name


def _manifest(
    archive: zipfile.ZipFile, infos: Mapping[str, zipfile.ZipInfo], name: str
) -> dict[str, Any]:
    if MANIFEST not in infos:
        raise _refused(name, f"no {MANIFEST} in it")
    try:
        manifest = unsealed(_content(archive, infos[MANIFEST]))
    except FAULTS as error:
        raise _refused(name, f"{MANIFEST}: {words(error)}") from error
    listed = manifest.get("parts")
    if not isinstance(listed, dict) or not all(isinstance(v, dict) for v in listed.values()):
        raise _refused(name, f"{MANIFEST}: parts is no list of parts")
    return manifest


def _parts(
    archive: zipfile.ZipFile, infos: Mapping[str, zipfile.ZipInfo], listed: Mapping[str, Any]
) -> tuple[dict[str, bytes], list[str]]:
    parts: dict[str, bytes] = {}
    unlisted = infos.keys() - {*listed, MANIFEST}
    damaged = [f"{words(part)}: not in {MANIFEST}" for part in infos if part in unlisted]
    for part, known in listed.items():
        if not PART_NAME.fullmatch(part) or part == MANIFEST:
            damaged.append(f"{words(part)}: not a name of a part")
        elif part not in infos:
            damaged.append(f"{part}: missing, or its name is damaged")
        else:
            try:
                data = _content(archive, infos[part])
            except FAULTS as error:
                damaged.append(f"{part}: {words(error)}")
                continue
            if _digest(data) == known.get("sha256"):
                parts[part] = data
            else:
                damaged.append(f"{part}: its checksum is wrong")
    return parts, damaged


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The part, unpacked; raises ValueError where it is too large, and zipfile's own errors."""
    if info.file_size > MOST_PART_BYTES:
        raise ValueError(f"{info.file_size} bytes; allowed are {MOST_PART_BYTES}")
    if info.compress_type not in (zipfile.ZIP_STORED, *METHODS.values()):
        raise ValueError(f"compressed by method {info.compress_type}; allowed are {METHODS}")
    if info.compress_type == METHODS["zstd"] and not zstd_is_known():
        raise ValueError("packed with zstd, which Python reads from 3.14 on")
    with archive.open(info) as stream:
        data = stream.read(MOST_PART_BYTES + 1)
    if len(data) > MOST_PART_BYTES:
        raise ValueError(f"more than {MOST_PART_BYTES} bytes")
    return data


def words(fault: object) -> str:
    """On one line, short, in ASCII."""
    text = " ".join(str(fault)[: 4 * MOST_SHOWN].split()) or type(fault).__name__
    return json.dumps(text)[1:-1][:MOST_SHOWN]
