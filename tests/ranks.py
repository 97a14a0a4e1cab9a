"""Running a file of this folder on real ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def run_ranks(file: str, ranks: int, *arguments: str, limit_s: float = 280) -> Any:
    """The JSON in the last line that `file` prints when torchrun starts it on `ranks` ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--local-addr=127.0.0.1", f"--nproc-per-node={ranks}", "--max-restarts=0",
               str(ROOT / "tests" / file), *arguments]  # fmt: skip
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
