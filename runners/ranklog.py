"""Each rank's own file of JSON lines: written flushed, read while it grows. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class RankLog:
    """Appends lines; what was flushed is with the operating system: a dying rank keeps it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: str, flush: bool = True, **values: Any) -> None:
        self._file.write(json.dumps({"event": event, **values}, separators=(",", ":")) + "\n")
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

    def new(self) -> Iterator[dict[str, Any]]:
        """Lines in order; a last line that is not ended yet waits, a damaged one is left out."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict) and "event" in value:
                yield value


def rank_path(launch_dir: Path, rank: int) -> Path:
    return launch_dir / "samples" / f"rank{rank}.jsonl"
