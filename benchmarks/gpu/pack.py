"""What a run leaves to take away: at most 8 files of at most 16 MiB each, in DIR/pack.

rows.jsonl, the summary, and sweeps.tar.gz, which `python -m analysis` reads when it is unpacked. It
has plans, configs, records and logs; tables, pictures and pages can be made from these again.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu import rows, summary
from benchmarks.gpu.rows import error_of
from benchmarks.gpu.sweep import FOLDER as SWEEPS

FOLDER = "pack"
FILES, FILE_BYTES = 8, 16 << 20
LOG_BYTES = 256 << 10  # of one log; longer ones stay behind
KEPT = ("plan.json", "cells/**/*.json", "launches/*/launch.json", "launches/**/*.log")


def pack(folder: Path, about: dict[str, Any]) -> list[str]:
    """Writes DIR/pack; returns a line for every file, and for what was left out."""
    target = folder / FOLDER
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    shutil.copy(folder / rows.NAME, target)
    about = about | {"limits": limits(folder / SWEEPS)}
    made = summary.summary_of(rows.read(folder / rows.NAME), about)
    text = json.dumps(made, indent=1) + "\n"
    (target / summary.file_name(made)).write_text(text, "utf-8")
    plans = (folder / SWEEPS).glob("*/plan.json")
    sweeps = sorted(path.parent for path in plans if not path.parent.is_symlink())  # not latest
    whole = target / f"{SWEEPS}.tar.gz"
    if sweeps:
        write(whole, sweeps, folder)
        if not fits(whole):
            whole.unlink()
            for sweep in sweeps:
                write(target / f"{SWEEPS}-{sweep.name}.tar.gz", [sweep], folder)
    return [*lines(target)]


def limits(sweeps: Path) -> dict[str, Any]:
    """How near the cells come to their machine's limits, by the analysis: how many have one, the
    largest fraction of it, and cells above it; or why that is not known."""
    if not sweeps.is_dir():
        return {"unknown": "nothing was measured"}
    try:
        import analysis
        from analysis.stats import roofline, summarize

        bounds = roofline.bounded(summarize.summarize(analysis.load(sweeps)))
    except Exception as error:  # the summary does without
        return {"unknown": error_of(error)}
    if not bounds:
        return {"unknown": "no calibration"}
    fractions = {name: bound.compute_fraction for name, _, bound in bounds}
    above = [name for name, _, bound in bounds if bound.wrong]
    return {"cells": len(fractions), "largest": max(fractions.values()), "above": above}


def fits(path: Path) -> bool:
    return path.stat().st_size <= FILE_BYTES


def lines(target: Path) -> Iterator[str]:
    """A line for every file of the pack; removes those that are too large or too many."""
    smallest_first = sorted(target.iterdir(), key=lambda path: path.stat().st_size)
    for number, path in enumerate(smallest_first):
        size = f"{path.name} {path.stat().st_size / 1024:.0f} KiB"
        if number < FILES and fits(path):
            yield size
        else:
            path.unlink()
            yield f"{size}: left out, the limits are {FILES} files and {FILE_BYTES >> 20} MiB each"


def write(path: Path, sweeps: list[Path], folder: Path) -> None:
    """An archive of what `KEPT` names in each sweep, below sweeps/NAME/."""
    with tarfile.open(path, "w:gz") as archive:
        for sweep in sweeps:
            for file in sorted({file for pattern in KEPT for file in sweep.glob(pattern)}):
                large = file.suffix == ".log" and file.stat().st_size > LOG_BYTES
                if file.is_file() and not file.is_symlink() and not large:
                    archive.add(file, file.relative_to(folder))
