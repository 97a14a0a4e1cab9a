"""Results as lines of JSON, one per measured cell, so that a long run can be taken up again."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path("outputs/speed")
ROOT = Path(__file__).resolve().parents[2]
Row = dict[str, Any]


def load(name: str, folder: Path = FOLDER) -> list[Row]:
    """Rows of a benchmark, the newest of each cell."""
    path = folder / f"{name}.jsonl"
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
    newest = {row["cell"]: row for row in rows}
    return list(newest.values())


def append(name: str, rows: Iterable[Row], folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(word) for word in line) + " |" for line in lines)


def verdict(met: bool) -> str:
    return "met" if met else "**missed**"
