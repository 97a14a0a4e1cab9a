"""What a run writes down as it goes: rows of JSON, each with its part and the time. Stdlib only."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "rows.jsonl"
SHOWN = 400  # characters of a printed row


class Rows:
    """The rows of a run, in DIR/rows.jsonl; each is complete on disk before the next begins, so
    that a run that is cut loses none. Each is printed too."""

    def __init__(
        self, folder: Path, began_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.began_s, self.clock = folder / NAME, began_s, clock
        self.path.write_text("", "utf-8")
        self.failed = 0

    def used_s(self) -> float:
        return self.clock() - self.began_s

    def add(self, part: str, row: dict[str, Any]) -> None:
        """Stores and prints a row. One with `ok` false is a failure of the run."""
        whole = {"part": part, "at_s": round(self.used_s(), 1), **row}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(whole) + "\n")
        self.failed += row.get("ok") is False
        print(line(whole)[:SHOWN], flush=True)


@dataclass(frozen=True)
class Part:
    """A part of the run while it runs."""

    name: str
    rows: Rows
    deadline_s: float  # of the clock of `rows`
    folder: Path  # of the run
    tiny: bool  # a dry run: tiny sizes, on a CPU

    def add(self, **row: Any) -> None:
        self.rows.add(self.name, row)

    def left_s(self) -> float:
        """Seconds until the deadline; 0 after it."""
        return max(0.0, self.deadline_s - self.rows.clock())

    def is_over(self) -> bool:
        return self.left_s() == 0


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last line that was cut is left out."""
    rows = []
    for text in path.read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(text))
        except ValueError:
            break
    return rows


def line(row: dict[str, Any]) -> str:
    """A row in words, for the screen."""
    words: dict[Any, str] = {True: "ok   ", False: "WRONG"}
    result = words.get(row.get("ok"), "     ")
    left_out = ("part", "at_s", "ok")
    values = [f"{key}={_shown(value)}" for key, value in row.items() if key not in left_out]
    return f"{row['part']:7} {row['at_s']:6.1f} s {result} {' '.join(values)}"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def error_of(error: BaseException) -> str:
    """An error in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:SHOWN]
