"""Files that a disk, an editor or an attacker has damaged, and what the readers make of them.

Every reader either gives what was written, or names the file and leaves its bytes where they are
or beside. A line-based log may give less than was written, but nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from analysis.sources import wandb_file
from benchmarks.faults import launcher
from runners import plan
from runners.plan import LaunchPlan
from runners.records import calibrations, record, sealed, sweep_folder
from runners.records.rank_log import RankLog, rank_path
from runners.records.record import Record, Samples
from runners.records.routing_trace import TraceError, read_trace
from runners.sweep.assemble import Assembler
from runners.track.client import run_tracker

TOKENS = [
    b"NaN",
    b"1e999",
    b"-1",
    b"null",
    b'"',
    b"}",
    b"[" * 20000,
    b"\0" * 64,
    b"\xff\xfe",
    b"\n",
]
JOB = launcher.jobs({})[1]


def damaged(data: bytes, dice: random.Random) -> bytes:
    """One to three of: cut, flipped, overwritten, lost, doubled, inserted, another digit."""
    for _ in range(dice.choice([1, 1, 2, 3])):
        at = dice.randrange(len(data) + 1)
        end = min(len(data), at + dice.choice([1, 4, 64, 4096]))
        kind = dice.randrange(8)
        if kind == 0:
            data = data[:at]
        elif kind == 1 and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << dice.randrange(8))]) + data[at + 1 :]
        elif kind == 2:
            data = data[:at] + dice.randbytes(end - at) + data[end:]
        elif kind == 3:
            data = data[:at] + bytes(end - at) + data[end:]
        elif kind == 4:
            data = data[:at] + data[end:]
        elif kind == 5:
            data = data[:end] + data[at:]
        elif kind == 6:
            data = data[:at] + dice.choice(TOKENS) + data[at:]
        else:
            data = _other_digit(data, dice)
    return data


def _other_digit(data: bytes, dice: random.Random) -> bytes:
    places = [n for n, byte in enumerate(data) if 48 <= byte <= 57]
    if not places:
        return data
    at = dice.choice(places)
    return data[:at] + str((data[at] - 48 + dice.randrange(1, 10)) % 10).encode() + data[at + 1 :]


def a_record() -> Record:
    samples = Samples(
        round=list(range(6)), position=[0] * 6, steps=[2] * 6, kind=["fixed"] * 6,
        start_ns=[[10**9 * n, 10**9 * n + 5] for n in range(6)],
        end_ns=[[10**9 * n + 5000, 10**9 * n + 6000] for n in range(6)],
    )  # fmt: skip
    gate = {"ok": True, "error": 1e-7, "tolerance": 1e-4, "tokens_checked": 8, "detail": ""}
    return Record(
        JOB.key, JOB.cell, sweep="s", gate=gate, samples=samples, created="2026-01-01T00:00:00",
        measure=dataclasses.asdict(JOB.measure),
    )  # fmt: skip


def a_plan(folder: Path) -> LaunchPlan:
    cell = JOB.cell
    return LaunchPlan(0, str(folder), JOB.measure, cell.placement, [cell], [""], [[0]], [True])


def a_calibration() -> dict[str, Any]:
    rates = {"read_bytes_per_s": 1e10, "copy_bytes_per_s": 8e9}
    shared = {**rates, "matmul_flops_per_s": {"float32": 1e11}}
    return {
        "fingerprint": "f" * 12, "ranks": 2, "threads": 1, "backend": "gloo", **rates,
        "read_warm_bytes_per_s": {"65536": 5e10}, "shared": shared, "collectives": {},
        "exchanged": {"all_reduce": 0, "all_gather": 0},
        "matmul_flops_per_s": {"float32": {"1x2x3": 1e9, "peak": 1e9}},
    }  # fmt: skip


class Format:
    """A kind of file: `path` of a good one below `folder`, and `read`, which gives what it says."""

    def __init__(self, path: Path, read: Callable[[], Any], part: bool = False) -> None:
        self.path, self.read, self.part = path, read, part
        self.good, self.wanted = path.read_bytes(), read()

    def complaint(self, dice: random.Random) -> str:
        """What is wrong with how one damaged file was met; "" if nothing is."""
        data = damaged(self.good, dice)
        self.path.write_bytes(data)
        try:
            found = self.read()
        except (OSError, ValueError) as error:
            if str(self.path) not in str(error):
                return f"an error that does not name the file: {error!r}"
            found = None
        except Exception as error:
            return f"a traceback: {error!r}"
        if found is not None and not self._honest(found):
            return f"trusted: {str(found)[:300]}"
        kept = [p for p in self.path.parent.glob("*") if p.is_file() and p.read_bytes() == data]
        for path in self.path.parent.glob("*.damaged*"):
            path.unlink()
        return "" if kept else "its bytes are gone"

    def _honest(self, found: Any) -> bool:
        return all(row in self.wanted for row in found) if self.part else found == self.wanted


def formats(folder: Path) -> dict[str, Format]:
    sweep = folder / "sweep"
    path = record.write(sweep, a_record())
    found = {"wandb": _wandb(folder / "tracked"), "record": Format(path, lambda: record.read(path))}
    launch = sweep / "launches" / "0" / "launch.json"
    plan.save(a_plan(launch.parent), launch)
    found["launch.json"] = Format(launch, lambda: plan.load(launch))
    planned = sweep / sweep_folder.PLAN
    sealed.write_atomic(planned, sealed.sealed({"name": "sweep", "cells": [{"cell_id": JOB.key}]}))
    found["plan.json"] = Format(planned, lambda: sweep_folder.read_plan(sweep))
    calibrations.store(folder / "cache", a_calibration())
    cached = next((folder / "cache").glob("*.json"))
    found["calibration"] = Format(cached, lambda: _calibration(cached))
    found["rank log"] = _rank_log(folder / "log")
    found["trace"] = _trace(folder / "trace")
    return found


def _calibration(path: Path) -> dict[str, Any] | None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = calibrations.load_cached(path.parent, "f" * 12, 2, 1, "gloo")
    if found is None and not any(path.name in str(one.message) for one in told):
        raise KeyError("a damaged calibration is not named")
    return found


def _rank_log(folder: Path) -> Format:
    for rank in range(2):
        log = RankLog(rank_path(folder, rank))
        for number in range(40):
            times = {"start_ns": 10**9 * number + rank, "end_ns": 10**9 * number + 5000 + rank}
            log.write("sample", cell=0, kind="fixed", round=number, position=0, steps=2, **times)
        log.close()

    def read() -> list[Any]:
        lines = Assembler(a_plan(folder), [JOB], "s")
        lines.update()
        found = lines.record(0, 0, None).samples
        return list(zip(found.round, found.steps, found.start_ns, found.end_ns, strict=True))

    return Format(rank_path(folder, 1), read, part=True)


def _trace(folder: Path) -> Format:
    """The archive's own checksum covers its array."""
    folder.mkdir()
    path = folder / "trace.npz"
    np.savez(path, indices=np.array([[n % 4, (n + 1) % 4] for n in range(64)], dtype=np.int32))

    def read() -> Any:
        try:
            return read_trace(str(path), 2, 4)
        except TraceError as error:  # the caller names the field and the file
            raise ValueError(f"{path}: {error}") from error

    return Format(path, read)


def _wandb(folder: Path) -> Format:
    one = a_record()
    record.write(folder, one)
    done = run_tracker(folder, [one.attempt_id], {"mode": "offline", "project": "p"}, 120)
    if done.runs != 1:
        raise RuntimeError(f"no run to damage: {done.warning}")
    path = next(folder.glob("wandb/*run-*/run-*.wandb"))

    def read() -> list[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = wandb_file.load(path)
        return [item for row in rows for item in row.items() if item[1] is not None]

    return Format(path, read, part=True)


def fuzz(name: str, times: int, seed: str) -> list[str]:
    """What was found in so many damaged files of a format."""
    folder, dice = Path(tempfile.mkdtemp(prefix="damage-")), random.Random(f"{seed}:{name}")
    try:
        kind = formats(folder)[name]
        complaints = (kind.complaint(dice) for _ in range(times))
        return [text for text in complaints if text]
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)


NAMES = ("record", "wandb", "calibration", "plan.json", "launch.json", "rank log", "trace")
