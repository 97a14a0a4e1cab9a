"""Processes that a test has started, ended by their ids whatever becomes of the test."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

QUICK = [  # of a sweep that only has to run
    "measure=quick",
    "measure.block_ms=1",
    "measure.block_gloo_ms=1",
    "measure.block_floors=2",
    "report=false",
]
# Six cells on two nodes in three waves, long enough to be caught in the middle.
SLOW_SWEEP = ["-m", "strategy=simple,tp,ep", "topk=1,2", "world_size=4", "hosts.ranks_per_node=2",
              "tracker=none", *QUICK, "measure.wave_cells=2", "measure.samples=60",
              "measure.samples_max=60"]  # fmt: skip
LIMIT_S = 240.0
STARTED: list[subprocess.Popen[str]] = []


def start(command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    STARTED.append(subprocess.Popen(
        command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ))  # fmt: skip
    return STARTED[-1]


def ended(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    """(exit code, the last line of stdout, stderr) of a sweep."""
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    lines = out.splitlines()
    return process.returncode, json.loads(lines[-1]) if lines else {}, err


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """While the process runs."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    yield
    for process in STARTED:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=30)
        process.kill()
    STARTED.clear()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What a shell starts in the background ignores Ctrl-C, with nohup a closed terminal too, and
    so would all that a test starts."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
