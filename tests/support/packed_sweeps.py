"""Small sweeps with plans, and packed files of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis import cli
from runners.records import record
from runners.records.record import Record
from runners.records.sealed import sealed
from tests.support import analysis_factory as factory

COMMAND = "python runners/bench.py -m strategy=tp,ep topk=2,4"


def records(sweep: str = "sweep", **fields: Any) -> list[Record]:
    cells = [factory.cell(name, topk=k, ranks=2) for name in ("tp", "ep") for k in (2, 4)]
    return [factory.measured(of, sweep=sweep, **fields) for of in cells]


def sweep(folder: Path, attempts: list[Record] | None = None, command: str = COMMAND) -> Path:
    """A sweep's folder with its plan."""
    attempts = records() if attempts is None else attempts
    for one in attempts:
        record.write(folder, one)
    planned = [
        {"cell_id": one.cell_id, "cell": {}, "notes": [], "overrides": ["topk=2"]}
        for one in attempts
    ]
    plan = {"name": folder.name, "command": command, "resumed": [], "cells": planned,
            "isolation": "cell"}  # fmt: skip
    (folder / "plan.json").write_text(sealed(plan))
    return folder


def packed(source: Path, target: Path, *options: str) -> Path:
    assert cli.main(["pack", str(source), "-o", str(target), *options]) == 0
    return target
