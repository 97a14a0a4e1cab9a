"""Where rows come from: folders of records, packed files, offline .wandb files, W&B projects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.errors import SourceError
from analysis.sources import records
from runners.host import project_paths
from runners.packed import download
from runners.packed.packed_file import is_packed, read_packed

LATEST = project_paths.OUTPUTS / project_paths.LATEST
API_PREFIX = "wandb:"
ALLOWED = (
    "a sweep folder, a .moebench file or its https address, offline .wandb files or "
    "wandb:entity/project"
)


def load_rows(sources: Sequence[str | Path] = (), *, samples: bool = False) -> list[dict[str, Any]]:
    """Rows (see `runners.records.flat_row.row`) of every attempt in the sources; none is
    outputs/latest.

    Raises SourceError for a source that is not there or holds no attempt.
    """
    rows: list[dict[str, Any]] = []
    digests: dict[str, str] = {}  # of packed files, by the names of their sweeps
    for source in sources or [LATEST]:
        loaded = _load_one(source, samples)
        if is_packed(source):
            loaded = _apart(loaded, read_packed(source).digest, digests)
        if not loaded:
            raise SourceError(
                f"{_named(source)}: holds no readable attempt; allowed are {ALLOWED}; "
                "name one that ended"
            )
        rows.extend(loaded)
    return rows


def _apart(
    rows: list[dict[str, Any]], digest: str, digests: dict[str, str]
) -> list[dict[str, Any]]:
    """The rows of a packed file; where another file has sweeps of their names, renamed."""
    if any(digests.setdefault(row["sweep"], digest) != digest for row in rows):
        return [{**row, "sweep": f"{row['sweep']}-{digest[:6]}"} for row in rows]
    return rows


def _load_one(source: str | Path, samples: bool) -> list[dict[str, Any]]:
    if str(source).startswith(API_PREFIX):
        from analysis.sources import wandb_api

        return list(wandb_api.load(str(source), samples=samples))
    if is_packed(source):
        from analysis.sources import packed

        return packed.load(source, samples=samples)
    path = Path(source)
    if not path.exists():
        raise SourceError(
            f"{source}: there is no such folder; allowed are {ALLOWED}; run "
            f"{project_paths.BENCH} first, or name another"
        )
    if is_wandb(path):
        from analysis.sources import wandb_file

        return list(wandb_file.load(path, samples=samples))
    return records.load(path, samples=samples)


def _named(source: str | Path) -> str:
    text = str(source)
    return download.shown(text) if download.is_address(text) else text


def is_wandb(path: Path) -> bool:
    """Whether the path is a .wandb file, a run's folder or a folder of runs, and not a sweep."""
    if path.is_file():
        return path.suffix == ".wandb"
    if (path / "cells").is_dir():
        return False
    patterns = ("*.wandb", "*run-*/*.wandb", "wandb/*run-*/*.wandb")
    return any(True for pattern in patterns for _ in path.glob(pattern))
