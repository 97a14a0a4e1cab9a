"""Processes that a test has started, ended by their ids whatever becomes of the test."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

QUICK = [  # of a sweep that only has to run
    "measure=quick",
    "measure.block_ms=1",
    "measure.block_gloo_ms=1",
    "measure.block_floors=2",
    "report=false",
]
STARTED: list[subprocess.Popen[str]] = []


def start(command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    STARTED.append(subprocess.Popen(
        command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ))  # fmt: skip
    return STARTED[-1]


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
