"""Recorded routings: read from a user's file, checked, and passed to the ranks as plain bytes.

A trace is an npz file with an integer array `indices`, or an npy file of it, of shape [N, K]: the
distinct expert ids of N tokens. Nothing is unpickled, and nothing is decompressed before its
declared size is checked. Ranks have no numpy: they read little-endian int32 from a file in the
launch's folder that is named by the sha256 of its bytes. Torch and numpy are imported late.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MEMBER = "indices.npy"
LIMIT_BYTES = 2**28  # of file and array: 16 million tokens with two int64 ids
HEADER_LIMIT = 10_000  # characters of an npy header
SHAPE = "an npz file with an integer array `indices` [N, topk], or an npy file of it"


class TraceError(ValueError):
    """A fault of a trace file, in one line; the caller adds the field's name."""


@dataclass(frozen=True)
class Trace:
    """Checked rows as little-endian int32 bytes, independent of the file's format."""

    rows: bytes
    count: int  # N
    sha256: str  # of the bytes


def read_trace(path: str, topk: int, num_experts: int) -> Trace:
    """The trace in a user's file; raises TraceError."""
    try:
        status = Path(path).stat()
        where = str(Path(path).resolve())
    except (OSError, ValueError) as error:
        raise TraceError(f"it cannot be read: {error}") from None
    state = (status.st_size, status.st_mtime_ns, status.st_ino)
    return _read(where, state, topk, num_experts)


@lru_cache(maxsize=8)  # a sweep asks for one file in many cells
def _read(path: str, state: tuple[int, ...], topk: int, num_experts: int) -> Trace:
    if state[0] > LIMIT_BYTES:
        raise TraceError(f"it has {state[0]} bytes, allowed are {LIMIT_BYTES}")
    if not Path(path).is_file():
        raise TraceError("it is no file")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise TraceError(f"it cannot be read: {error}") from None
    indices = _parsed(data)
    _check(indices, topk, num_experts)
    rows = indices.astype("<i4").tobytes()
    return Trace(rows, len(indices), hashlib.sha256(rows).hexdigest())


def _parsed(data: bytes) -> np.ndarray[Any, Any]:
    try:
        return _array(_member(data) if data.startswith(b"PK") else data)
    except TraceError:
        raise
    except Exception as error:  # malformed files raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TraceError(f"it cannot be read as {SHAPE}: {reason}") from None


def _member(data: bytes) -> bytes:
    """`indices.npy` of an npz; its declared size is checked before decompression."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if MEMBER not in archive.namelist():
            raise TraceError(f"it has no array `indices`, but {archive.namelist()[:5]}")
        declared = archive.getinfo(MEMBER).file_size
        if declared > LIMIT_BYTES:
            raise TraceError(f"`indices` declares {declared} bytes, allowed are {LIMIT_BYTES}")
        return archive.read(MEMBER)  # at most what was declared


def _array(data: bytes) -> np.ndarray[Any, Any]:
    """A numpy array from the bytes of an npy file, by its header: no np.load, no pickle."""
    import numpy as np

    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise TraceError(f"its npy version is {version}, allowed are {sorted(readers)}")
    shape, fortran, dtype = readers[version](stream, max_header_size=HEADER_LIMIT)
    if dtype.kind not in "iu":
        raise TraceError(f"its dtype is {dtype}, allowed are integers")
    if len(shape) != 2 or min(shape) < 1:
        raise TraceError(f"its shape is {list(shape)}, allowed is [N, topk] with rows in it")
    expected, actual = shape[0] * shape[1] * dtype.itemsize, len(data) - stream.tell()
    if expected != actual:
        raise TraceError(f"its header declares {expected} bytes of ids, it has {actual}")
    flat = np.frombuffer(data, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if fortran else "C")


def _check(indices: np.ndarray[Any, Any], topk: int, num_experts: int) -> None:
    import numpy as np

    if indices.shape[1] != topk:
        raise TraceError(f"its rows have {indices.shape[1]} ids, allowed is topk={topk}")
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= num_experts:
        raise TraceError(
            f"its ids go from {low} to {high}, allowed are 0 to num_experts-1={num_experts - 1}"
        )
    ordered = np.sort(indices, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    if repeated.any():
        row = int(repeated.argmax())
        raise TraceError(f"row {row} is {indices[row].tolist()}, allowed are distinct ids in a row")


# Between the launcher and the ranks.


def file_name(sha256: str) -> str:
    return f"trace-{sha256}.i32"


def freeze(traces: Iterable[Trace], launch_dir: Path) -> None:
    """Writes each distinct trace to the launch's folder, before its ranks start."""
    for trace in {trace.sha256: trace for trace in traces}.values():
        launch_dir.mkdir(parents=True, exist_ok=True)
        (launch_dir / file_name(trace.sha256)).write_bytes(trace.rows)


def thaw(names: Mapping[str, str], sha256: str, launch_dir: Path, topk: int) -> Tensor:
    """[N, K] int64 expert ids on the CPU; `names` are the launch's trace files by sha256.

    Raises ValueError when the file's content has another sha256.
    """
    import torch

    data = bytearray((launch_dir / names[sha256]).read_bytes())
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{launch_dir / names[sha256]}: its sha256 is not {sha256}")
    return torch.frombuffer(data, dtype=torch.int32).view(-1, topk).long()
