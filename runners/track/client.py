"""Starts the tracker as a process and waits for it, bounded. Imports no W&B and never raises.

A process of its own, so that nothing of it runs inside a timed window and none of its failures
reaches a measurement: the caller gets a warning at most.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.host import project_paths
from runners.host.identity import KEYS
from runners.track.settings import allowed

LAUNCHER = "MOE_LAUNCHER_PID"  # when it dies, a tracker finishes its run and ends
MODES = ("offline", "online", "disabled")
GRACE_S = 10.0  # after SIGTERM: the tracker finishes the run it is writing
_SECRETS = re.compile(KEYS)


@dataclass(frozen=True)
class TrackerResult:
    """How a call of the tracker ended."""

    ok: bool
    runs: int = 0  # written by this call; those that were there already do not count
    warning: str = ""
    sync_command: str = ""
    mode: str = ""  # how it was written: "offline" too where a server did not answer


def resolve_mode(configured: str) -> str:
    """The mode, by its current name; raises ValueError for an unknown one."""
    mode = "offline" if configured == "dryrun" else configured  # W&B's old name
    if mode not in MODES:
        raise ValueError(f"tracker.mode={mode}: allowed is {', '.join(MODES)}")
    return mode


def run_tracker(
    sweep_dir: Path, attempt_ids: Sequence[str], tracker: Mapping[str, Any], limit_s: float
) -> TrackerResult:
    """Tracks these attempts of the sweep. `tracker` has `mode`, `project` and `entity`, as
    `runners.track.settings.defaults` returns them.

    A server that does not answer costs its timeouts once per call: pass the result's `mode` to the
    next one. The tracker and all its children have ended when this returns.
    """
    try:
        mode = resolve_mode(tracker["mode"])
        if mode == "disabled" or not attempt_ids:
            return TrackerResult(True, mode=mode)
        command = [sys.executable, "-m", "runners.track", str(sweep_dir), "--mode", mode]
        command += ["--project", str(tracker["project"])]
        command += ["--entity", str(tracker["entity"])] if tracker.get("entity") else []
        return _run([*command, "--only", *attempt_ids], limit_s)
    except Exception as error:  # a tracker costs a warning, never a measurement
        return TrackerResult(False, warning=f"tracker: {redact(str(error))}")


def _run(command: list[str], limit_s: float) -> TrackerResult:
    process = subprocess.Popen(
        command,
        env={
            **allowed(os.environ),
            **project_paths.module_variables(os.environ),
            LAUNCHER: str(os.getpid()),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C at the terminal goes to the parent only
    )
    try:
        out, err = process.communicate(timeout=limit_s)
        return _result(process.returncode, out, err)
    except subprocess.TimeoutExpired:
        remedy = "replay the rest with python -m runners.track"
        return TrackerResult(False, warning=f"tracker: ended after {limit_s:g} s; {remedy}")
    finally:
        if process.poll() is None:
            _end(process)


def _result(returncode: int, out: str, err: str) -> TrackerResult:
    lines = out.strip().splitlines()
    try:
        report = json.loads(lines[-1])
        return TrackerResult(
            ok=returncode == 0,
            runs=int(report["runs"]),
            warning="; ".join(str(text) for text in report["warnings"]),
            sync_command=str(report["sync_command"]),
            mode=str(report["mode"]),
        )
    except (IndexError, KeyError, TypeError, ValueError):
        last = redact(" ".join(err.strip().splitlines()[-1:]))
        return TrackerResult(False, warning=f"tracker: exit code {returncode}; {last}")


def _end(process: subprocess.Popen[str]) -> None:
    """SIGTERM first, so that the run being written is finished; then SIGKILL, also to W&B's own
    process, which is in another session than the tracker."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=GRACE_S)
        return
    kill_all([process.pid, *descendants(process.pid)])
    process.communicate()


def descendants(pid: int) -> list[int]:
    """Children, grandchildren ... from /proc; empty where there is no /proc."""
    children: list[int] = []
    with suppress(OSError, ValueError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += [int(word) for word in (task / "children").read_text().split()]
    return [*children, *(deeper for child in children for deeper in descendants(child))]


def kill_all(pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def redact(text: str) -> str:
    """The text without API keys, which messages of W&B or a proxy may contain."""
    key = os.environ.get("WANDB_API_KEY")
    text = text.replace(key, "[key]") if key else text
    return _SECRETS.sub("[key]", text)
