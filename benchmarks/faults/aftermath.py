"""What is left of a sweep after a fault: records, processes, states."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from runners.plan import load
from runners.records import record
from runners.records.rank_log import RankReader, rank_path

MARK = "PYTHON_MOE_TRIAL"  # in the environment of every process of a trial: all inherit PYTHON*
ORPHAN_S = 15.0  # a tracker that is asked to end finishes the run that it writes


def marked(mark: str) -> list[int]:
    """Processes of a trial that are alive."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with suppress(OSError):
            ours = f"{MARK}={mark}\0".encode() in (folder / "environ").read_bytes()
            if ours and (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(folder.name))
    return found


def orphans(mark: str) -> list[int]:
    deadline = time.monotonic() + ORPHAN_S
    while (found := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in record.paths(folder)}


def changed(before: dict[Path, bytes]) -> list[str]:
    """Earlier records that are gone or have other content."""
    return [
        f"{path} is gone or changed"
        for path, content in before.items()
        if not path.exists() or path.read_bytes() != content
    ]


def unrecorded(folder: Path, records: list[record.Record]) -> list[str]:
    """Blocks of fixed length that all ranks of a launch wrote and no record has, without those of
    wrong cells."""
    kept = {
        (one.cell_id, one.launch): one.samples.kind.count("fixed")
        for one in records
        if one.outcome != "wrong"
    }
    wrong = {(one.cell_id, one.launch) for one in records if one.outcome == "wrong"}
    found = []
    for path in folder.glob("launches/*/launch.json"):
        for attempt, count in _sampled(path).items():
            if attempt not in wrong and count != kept.get(attempt, 0):
                found.append(f"{attempt}: {count} samples on disk, {kept.get(attempt, 0)} recorded")
    return found


def _sampled(path: Path) -> dict[tuple[str, int], int]:
    """Samples of each cell that every rank has, counted without the code that makes records."""
    plan = load(path)
    ranks: list[dict[int, set[tuple[int, int]]]] = []
    for rank in range(plan.placement.world_size):
        mine: dict[int, set[tuple[int, int]]] = {}
        for line in RankReader(rank_path(path.parent, rank)).new_lines():
            if line["event"] == "sample" and line["kind"] == "fixed":
                mine.setdefault(line["cell"], set()).add((line["round"], line["position"]))
        ranks.append(mine)
    return {
        (record.cell_key(cell), plan.launch): len(
            set.intersection(*(mine.get(index, set()) for mine in ranks))
        )
        for index, cell in enumerate(plan.cells)
    }


def told(out: str) -> dict[str, Any]:
    """The launcher's last line."""
    try:
        found = json.loads(out.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {}
    return dict(found)


def measured_once(records: list[record.Record]) -> list[str]:
    """Cells measured twice."""
    seen: dict[str, int] = {}
    for one in records:
        seen[one.cell_id] = seen.get(one.cell_id, 0) + (one.outcome == "measured")
    return [f"{cell} was measured {n} times" for cell, n in seen.items() if n > 1]
