"""Sweeps of four cells for the tests of `reproduce`, and the pairings of two of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import analysis
from analysis.packing import side_by_side
from runners.records import record
from runners.records.emulation import Emulation
from runners.records.record import Record, cell_key
from runners.records.sealed import sealed
from tests.support import analysis_factory as factory

EMULATED = {**factory.ENVIRONMENT, "emulated": dataclasses.asdict(Emulation())}
CELLS = {name: factory.cell(name, ranks=2) for name in ("simple", "tp", "ep", "dp")}


def sweep(folder: Path, records: list[Record], command: str = "", **further: str) -> str:
    folder.mkdir(exist_ok=True)
    for one in records:
        record.write(folder, one)
    plan = {"name": folder.name, "command": command, "cells": [], **further}
    (folder / "plan.json").write_text(sealed(plan), "utf-8")
    return str(folder)


def launches(name: str, scale: float = 1.0, **fields: Any) -> list[Record]:
    """Six launches of a cell, of which each is off by half a percent."""
    return [
        factory.measured(CELLS[name], launch=n, scale=scale, launch_effect=0.002, noise=0.002,
                         measure={"samples": 6}, **fields)
        for n in range(6)
    ]  # fmt: skip


def calibrated(name: str, scale: float = 1.0) -> list[Record]:
    return launches(name, scale, calibration={**factory.CALIBRATION, "ranks": 2})


def verdicts(there: str, here: str, **refusals: str) -> dict[str, side_by_side.Pairing]:
    reasons = {cell_key(CELLS[name]): reason for name, reason in refusals.items()}
    pairs = side_by_side.pairings(analysis.load(there), analysis.load(here), 0.02, reasons)
    return {pair.cell.strategy: pair for pair in pairs}
