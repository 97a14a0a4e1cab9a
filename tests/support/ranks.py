"""Running a module of tests/dist on real ranks."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from runners.launch.local import agent_command

ROOT = Path(__file__).resolve().parents[2]


def prepare(arguments: list[str]) -> None:
    """For a module of ranks that run backward passes: the agent imports once what they import."""
    from runners.rank.worker import BACKWARD_MODULE

    importlib.import_module(BACKWARD_MODULE)


def run_ranks(module: str, ranks: int, *arguments: str, limit_s: float = 280) -> Any:
    """The JSON in the last line that `tests.dist.<module>` prints, started as a launch's ranks
    are."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [*agent_command(Path(folder), ranks), "-m", f"tests.dist.{module}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
