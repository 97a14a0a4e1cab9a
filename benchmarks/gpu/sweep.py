"""Sweeps of a part: `runners/bench.py` in a process of its own, in time.

It is ended by SIGINT when its time is over: it keeps what it has measured.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import Part
from moe.cost import TRAIN_FACTOR, expected, expert_flops, touched_weight_bytes
from moe.spec import StrategySpec
from runners.host import project_paths
from runners.records import record, stats
from runners.records.record import Record

FOLDER = "sweeps"  # in DIR
INTERRUPT_S = 8.0  # from SIGINT, after which bench.py writes its records, to SIGKILL
TINY_MEASURE = {
    "samples": 3, "samples_max": 4, "wall_limit_s": 0.3, "phases": 0, "anchors": 0,
    "block_ms": 2, "block_gloo_ms": 4, "calibrate": "false",
}  # fmt: skip


@dataclass(frozen=True)
class SweepCase:
    """One sweep of a part: its folder's name, and the settings in which it differs."""

    name: str
    settings: Mapping[str, Any]


def command_of(case: SweepCase, measure: Mapping[str, Any], folder: Path, tiny: bool) -> list[str]:
    """The sweep's command line, without Python."""
    settings: dict[str, Any] = {
        "tracker": "none", "backend": "gloo" if tiny else "nccl", "world_size": 1,
        "dtype": "bfloat16", "model.scale": 64 if tiny else 1, "tokens": "sharded",
        "report": "false", "on_invalid": "skip", "name": "gpu", **case.settings,
    }  # fmt: skip
    settings |= {f"measure.{k}": v for k, v in (TINY_MEASURE if tiny else measure).items()}
    settings["hydra.sweep.dir"] = folder / FOLDER / case.name
    return ["runners/bench.py", "-m", *(f"{key}={value}" for key, value in settings.items())]


def one_sweep(
    part: Part, case: SweepCase, measure: Mapping[str, Any], seconds: float,
    variables: Mapping[str, str],
) -> None:  # fmt: skip
    """Runs a sweep for `seconds` at most, and adds a row for every cell and one for the sweep."""
    words = command_of(case, measure, part.folder, part.tiny)
    log = part.folder / f"{case.name}.log"
    code, cut = ended_in_time([sys.executable, *words], variables, log, seconds, part.name)
    records, _ = record.read_all(part.folder / FOLDER / case.name)
    for one in records:
        part.add(**cell_row(one, case))
    row: dict[str, Any] = {
        "sweep": case.name, "cut": cut, "exit_code": code, "cells": len(records),
        "command": shlex.join(["python", *words]),
    }  # fmt: skip
    if code and not cut:
        row |= {"ok": False, "error": tail(log)}
    part.add(**row)


def ended_in_time(
    command: list[str], variables: Mapping[str, str], log: Path, seconds: float, name: str
) -> tuple[int, bool]:
    """Runs a command in the project's root; returns its exit code, and whether its time was over.
    Prints the lines that it writes about its progress."""
    interrupted = threading.Event()
    began_s = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=project_paths.CODE, env={**os.environ, **variables},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

        def interrupt() -> None:
            interrupted.set()
            process.send_signal(signal.SIGINT)

        timers = [threading.Timer(max(0.0, seconds - INTERRUPT_S), interrupt),
                  threading.Timer(seconds, process.kill)]  # fmt: skip
        for timer in timers:
            timer.start()
        try:
            assert process.stderr is not None
            for line in process.stderr:
                file.write(line)
                file.flush()
                if line.startswith("["):
                    print(f"{name:7} {time.monotonic() - began_s:6.1f} s       {line.rstrip()}",
                          flush=True)  # fmt: skip
            code = process.wait()
        finally:
            for timer in timers:
                timer.cancel()
            if process.poll() is None:
                process.kill()
                process.wait()
    return code, interrupted.is_set()


def strategy_of(strategy: StrategySpec) -> str:
    """Its name, a peer's variant, and the kernel where one was asked for."""
    kernel = "" if strategy.kernel == "auto" else strategy.kernel
    return " ".join(filter(None, (strategy.name, strategy.variant, kernel)))


def cell_row(one: Record, case: SweepCase) -> dict[str, Any]:
    """A cell's outcome, and its time of a step in ms and as a rate of arithmetic."""
    cell = one.cell
    row: dict[str, Any] = {
        "ok": one.outcome in ("measured", "interrupted"), "model": one.meta["model"],
        "sweep": case.name,
        "batch": cell.workload.batch_size, "mode": cell.workload.mode, "graph": cell.strategy.graph,
        "strategy": strategy_of(cell.strategy),
        "outcome": one.outcome,
    }  # fmt: skip
    figures = stats.headline(one)
    if figures:
        load = expected(cell)
        passes = TRAIN_FACTOR if cell.workload.mode == "train" else 1
        flops = passes * expert_flops(cell, load)  # as published rates count them
        row["TFLOP_s"] = flops / figures["median_duration_ms"] * 1e-9
        row["read_MB"] = touched_weight_bytes(cell, load) / 1e6
        row |= {"ms": figures["median_duration_ms"], "latency_ms": figures["latency_ms"],
                "flags": stats.flags(one), "kernel": (one.kernel or {}).get("name")}  # fmt: skip
    elif one.error:
        row["error"] = str(one.error.get("message"))[:300]
    return row


def tail(log: Path) -> str:
    """The last lines of a log in one."""
    return " ".join(log.read_text("utf-8", "replace").split("\n")[-4:]).strip()[:400]
