"""Each rank's own file of JSON lines: written flushed, read while it grows. Torch-free.

Every line ends with the CRC-32 of its own text without that field, so that a damaged one is known.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CRC = ',"crc":'


class RankLog:
    """Appends lines; what was flushed is with the operating system: a dying rank keeps it."""

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
    """Reads the whole lines that have been added since it last looked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self.damaged = 0  # lines that were left out

    def new(self) -> Iterator[dict[str, Any]]:
        """Lines in order; a last line that is not ended yet waits, a damaged one is left out and
        counted."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.split(b"\n")[:-1]:
            value = _checked(line)
            if value is None:
                self.damaged += 1
            else:
                yield value


def _checked(line: bytes) -> dict[str, Any] | None:
    """The line's fields, where it is what was written."""
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
