"""The real sweep at full size: simple beside transformers' layer, for three models, in time.

Every sweep is `runners/bench.py` in a process of its own, ended by SIGINT when its time is over: it
keeps what it has measured. Where Hydra is not installed, the wheels of `make gpu-wheels` serve it.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import Part
from runners.host import project_paths
from runners.records import record, stats
from runners.records.record import Record
from runners.records.sealed import RecordError

MODELS = ("mixtral_8x7b", "qwen3_30b_a3b", "deepseek_v3")
OURS = "simple"
PEER = "peer_transformers"
VARIANTS = ("peer_transformers_eager", "peer_transformers_batched")
BATCHES = (1, 128, 1024, 16384)
SWEEPS = "sweeps"  # in DIR
PACKAGES = "packages"  # in DIR: unpacked wheels
WHEELS = project_paths.CODE / ".cache" / "gpu-wheels"  # as in the Makefile
NEEDED = ("hydra", "omegaconf", "antlr4")
INTERRUPT_S = 8.0  # from SIGINT, after which bench.py writes its records, to SIGKILL
LEAST_S = 25.0  # for another sweep
# Short enough for a cell in about 3 s beside its build and check. A wave has the cells of one
# batch: when a sweep is cut, the waves before are complete.
MEASURE = {
    "samples": 5, "samples_max": 12, "wall_limit_s": 1.0, "warmup_max": 4, "phases": 0,
    "anchors": 2, "wave_cells": 3, "calibration_limit_s": 4, "cell_limit_s": 60,
}  # fmt: skip
TINY_MEASURE = {
    "samples": 3, "samples_max": 4, "wall_limit_s": 0.3, "phases": 0, "anchors": 0,
    "block_ms": 2, "block_gloo_ms": 4, "calibrate": "false",
}  # fmt: skip


@dataclass(frozen=True)
class SweepCase:
    """One sweep of the part."""

    model: str
    strategies: tuple[str, ...]
    name: str  # of its folder


def cases(tiny: bool) -> list[SweepCase]:
    """First every model beside transformers' usual variant; then, where there is time, beside its
    other variants, with `simple` again."""
    if tiny:
        peers = (PEER,) if find_spec("transformers") else ()
        return [SweepCase("mixtral_8x7b", (OURS, *peers), "mixtral_8x7b")]
    usual = [SweepCase(model, (OURS, PEER), model) for model in MODELS]
    return usual + [SweepCase(model, (OURS, *VARIANTS), f"{model}-variants") for model in MODELS]


def command_of(case: SweepCase, folder: Path, tiny: bool) -> list[str]:
    """The sweep's command line, without Python."""
    settings: dict[str, Any] = {
        "tracker": "none", "backend": "gloo" if tiny else "nccl", "world_size": 1,
        "dtype": "bfloat16", "model.scale": 64 if tiny else 1, "tokens": "sharded",
        "model": case.model, "strategy": ",".join(case.strategies),
        "batch_size": "1,16" if tiny else ",".join(map(str, BATCHES)),
        "report": "false", "on_invalid": "skip", "name": "gpu",
    }  # fmt: skip
    if case.model == "deepseek_v3":
        settings["model.shared_experts"] = 0  # transformers' layer has none
    settings |= {f"measure.{k}": v for k, v in (TINY_MEASURE if tiny else MEASURE).items()}
    settings["hydra.sweep.dir"] = folder / SWEEPS / case.name
    return ["runners/bench.py", "-m", *(f"{key}={value}" for key, value in settings.items())]


def run(part: Part) -> None:
    variables = module_variables(part)
    if variables is None:
        return None
    todo = cases(part.tiny)
    first = 1 if part.tiny else len(MODELS)
    for number, case in enumerate(todo):
        share_s = part.left_s() / max(1, first - number)
        if number >= first and share_s < LEAST_S:
            return part.add(cut=True, sweeps_left=[one.name for one in todo[number:]])
        one_sweep(part, case, share_s, variables)
    return None


def one_sweep(part: Part, case: SweepCase, seconds: float, variables: dict[str, str]) -> None:
    """Runs a sweep for `seconds` at most, and adds a row for every cell and one for the sweep."""
    words = command_of(case, part.folder, part.tiny)
    log = part.folder / f"{case.name}.log"
    code, cut = ended_in_time([sys.executable, *words], variables, log, seconds)
    records = records_of(part.folder / SWEEPS / case.name)
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
    command: list[str], variables: dict[str, str], log: Path, seconds: float
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
                    print(f"bench  {time.monotonic() - began_s:6.1f} s       {line.rstrip()}",
                          flush=True)  # fmt: skip
            code = process.wait()
        finally:
            for timer in timers:
                timer.cancel()
            if process.poll() is None:
                process.kill()
                process.wait()
    return code, interrupted.is_set()


def records_of(folder: Path) -> list[Record]:
    """The readable records of a sweep."""
    records = []
    for path in record.paths(folder):
        try:
            records.append(record.read(path))
        except RecordError:
            continue
    return records


def cell_row(one: Record, case: SweepCase) -> dict[str, Any]:
    """A cell's outcome and its time of a step in ms."""
    cell = one.cell
    row: dict[str, Any] = {
        "ok": one.outcome in ("measured", "interrupted"), "model": case.model, "sweep": case.name,
        "batch": cell.workload.batch_size,
        "strategy": " ".join(filter(None, (cell.strategy.name, cell.strategy.variant))),
        "outcome": one.outcome,
    }  # fmt: skip
    figures = stats.headline(one)
    if figures:
        row |= {"ms": figures["median_duration_ms"], "latency_ms": figures["latency_ms"],
                "flags": stats.flags(one), "kernel": (one.kernel or {}).get("name")}  # fmt: skip
    elif one.error:
        row["error"] = str(one.error.get("message"))[:300]
    return row


def module_variables(part: Part) -> dict[str, str] | None:
    """Variables with which the sweep's process finds its modules; None, and a row, where it would
    not."""
    variables = project_paths.module_variables(os.environ)
    if all(map(find_spec, NEEDED)):
        return variables
    wheels = sorted(WHEELS.glob("*.whl"))
    packages = part.folder / PACKAGES
    for wheel in wheels:  # unpacked: Hydra does not find its own config in a zip file
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
    lacking = [name for name in NEEDED if not (packages / name).is_dir()]
    if lacking:
        part.add(ok=False, error=f"{', '.join(lacking)}: not installed, and not in {WHEELS}; run "
                 "`make gpu-wheels` where there is a network and bring that folder")  # fmt: skip
        return None
    return {**variables, "PYTHONPATH": os.pathsep.join([variables["PYTHONPATH"], str(packages)])}


def tail(log: Path) -> str:
    """The last lines of a log in one."""
    return " ".join(log.read_text("utf-8", "replace").split("\n")[-4:]).strip()[:400]
