"""One trial: a sweep, a fault in it, a judgement."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults import aftermath
from benchmarks.faults.actions import Trial
from benchmarks.faults.catalogue import Fault
from runners.records import record

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120.0  # for one launcher; an undisturbed one takes about seven seconds


@dataclass
class Verdict:
    """Empty lists are what is promised."""

    lost: list[str] = field(default_factory=list)  # records lost or torn, samples not recorded
    hung: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # not the stated outcome
    seconds: float = 0.0

    def all(self) -> list[str]:
        return [*self.lost, *self.hung, *self.orphans, *self.wrong]


def run(fault: Fault, seed: str, keep: Path | None = None) -> Verdict:
    """One trial in a folder that is gone afterwards, unless something was found."""
    began, verdict = time.monotonic(), Verdict()
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=keep))
    trial = Trial(folder / "sweep", random.Random(seed))
    mark = uuid.uuid4().hex
    try:
        fault.before(trial)
        _judge(fault, trial, mark, verdict)
    finally:
        _clean_up(fault, trial, mark, verdict)
    verdict.wrong += trial.wrong
    verdict.seconds = time.monotonic() - began
    if not verdict.all():
        shutil.rmtree(folder, ignore_errors=True)
    return verdict


def _judge(fault: Fault, trial: Trial, mark: str, verdict: Verdict) -> None:
    plant = fault.planted(trial.dice) if fault.plant else {}
    end = launch(trial, mark, fault.options, plant, verdict, fault.hand)
    verdict.orphans += [f"process {pid} is alive" for pid in aftermath.orphans(mark)]
    said = " ".join(end.get("said", []))
    if fault.resumed:
        before = aftermath.contents(trial.folder)
        trial.wrapper.clear()
        options = {**fault.options, "mode": fault.resumed}
        end = launch(trial, mark, options, {}, verdict, resumed=True)
        verdict.lost += aftermath.changed(before)
        verdict.orphans += [f"process {pid} is alive" for pid in aftermath.orphans(mark)]
    ended = tuple(end.get(name, -1) for name in ("measured", "failed", "wrong", "exit_code"))
    if ended != fault.ends:
        verdict.wrong.append(f"ended with {ended}, promised is {fault.ends}: {end} {plant}")
    if fault.says and fault.says not in said:
        verdict.wrong.append(f"does not say {fault.says!r}: {said!r} {plant}")
    records, torn = record.read_all(trial.folder)
    verdict.lost += [*torn, *aftermath.unrecorded(trial.folder, records)]
    verdict.wrong += aftermath.measured_once(records)


def launch(
    trial: Trial,
    mark: str,
    options: dict[str, Any],
    plant: dict[str, Any],
    verdict: Verdict,
    hand: Any = lambda trial: None,
    resumed: bool = False,
) -> dict[str, Any]:
    """One launcher from its start to its end, by itself, by the fault, or by the limit."""
    program = [sys.executable, "-m", "benchmarks.faults.launcher"]
    if resumed and not (trial.folder / "plan.json").exists():
        options = {**options, "mode": ""}  # it had not begun
    planted = {aftermath.MARK: mark, "PYTHON_MOE_PLANT": json.dumps(plant)}
    trial.process = subprocess.Popen(
        [*trial.wrapper, *program, str(trial.folder), json.dumps(options)],
        env={**os.environ, **trial.environment, **planted},
        cwd=ROOT, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    trial.deadline = time.monotonic() + LIMIT_S
    hand(trial)
    try:
        out, err = trial.process.communicate(timeout=max(1.0, trial.deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        verdict.hung.append(f"the launcher is alive after {LIMIT_S:g} s")
        trial.process.kill()
        out, err = trial.process.communicate()
    if "Traceback" in err:
        verdict.wrong.append(f"a traceback: {err[-2000:]}")
    return aftermath.told(out)


def _clean_up(fault: Fault, trial: Trial, mark: str, verdict: Verdict) -> None:
    for pid in aftermath.marked(mark):  # only what this trial has started
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    try:
        fault.after(trial)
    except (OSError, subprocess.SubprocessError) as error:
        verdict.wrong.append(f"could not undo the fault: {error}")
