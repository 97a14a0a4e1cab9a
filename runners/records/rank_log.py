"""Each rank's own file of JSON lines, flushed while written, read while it grows. Torch-free.

Every line ends with the CRC-32 of its text without that field, so that damage is detected.
Files are flushed, not synced: a dying process loses nothing, a dying machine at most the last
round.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CRC = ',"crc":'


class RankLog:
    """Appends lines. Flushed lines are in the kernel's cache and survive the rank's death."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: str, flush: bool = True, **values: Any) -> None:
        text = json.dumps({"event": event, **values}, separators=(",", ":"))
        self._file.write(f"{text[:-1]}{CRC}{zlib.crc32(text.encode())}}}\n")
        if flush:
            self._file.flush()

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class RankReader:
    """Reads the complete lines added since the last call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self.damaged = 0  # lines skipped

    def new_lines(self) -> Iterator[dict[str, Any]]:
        """New lines in order. An incomplete last line is read later; a damaged line is skipped and
        counted."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return
        complete = data[: data.rfind(b"\n") + 1]
        self.offset += len(complete)
        for line in complete.split(b"\n")[:-1]:
            value = _checked(line)
            if value is None:
                self.damaged += 1
            else:
                yield value


def _checked(line: bytes) -> dict[str, Any] | None:
    """The fields of a line; None where its checksum or JSON is wrong."""
    text, _, rest = line.rpartition(CRC.encode())
    text += b"}"
    if rest != b"%d}" % zlib.crc32(text):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and "event" in value else None


def rank_path(launch_dir: Path, rank: int) -> Path:
    return launch_dir / "samples" / f"rank{rank}.jsonl"
