"""Starts the ranks of a launch on this machine, as processes of their own session. Torch-free."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.mpi_start import mpiexec_command
from runners.plan import LaunchPlan, save

ROOT = Path(__file__).resolve().parents[2]
GRACE_S = 5.0


@dataclass
class Started:
    """A running launch."""

    process: subprocess.Popen[bytes]
    launch_dir: Path

    def running(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        """Ends the launch's own processes: politely, then not."""
        for sign, grace_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
            if not self.running():
                return
            self.process.send_signal(sign)
            deadline = time.monotonic() + grace_s
            while self.running() and time.monotonic() < deadline:
                time.sleep(0.05)

    def failures(self) -> list[dict[str, Any]]:
        """{rank, exitcode, pid} of every rank that the agent saw fail."""
        try:
            found = json.loads((self.launch_dir / "failures.json").read_text("utf-8"))
        except (OSError, ValueError):
            return []
        return list(found)

    def log_path(self, rank: int) -> Path:
        """Where a rank's stderr went."""
        found = sorted(self.launch_dir.glob(f"logs/*/attempt_0/{rank}/stderr.log"))
        return found[0] if found else self.launch_dir / "logs" / "agent.log"


def start(plan: LaunchPlan, worker: str = "runners.worker") -> Started:
    """Freezes the plan to a file and starts its ranks; the caller polls and ends them. `worker` is
    the module that every rank runs."""
    launch_dir = Path(plan.launch_dir)
    (launch_dir / "logs").mkdir(parents=True)
    save(plan, launch_dir / "launch.json")
    if plan.placement.backend == "mpi":
        program = [sys.executable, "-m", worker, str(launch_dir / "launch.json")]
        command = mpiexec_command(plan.placement.world_size, program)
    else:
        command = torchrun_command(plan, worker)
    with (launch_dir / "logs" / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=rank_environment(plan),
            start_new_session=True,
        )
    return Started(process, launch_dir)


def torchrun_command(plan: LaunchPlan, worker: str) -> list[str]:
    """One node, rendezvous on loopback, no restarts (a restart would silently measure again)."""
    launch_dir = Path(plan.launch_dir)
    return [
        *(sys.executable, "-m", "runners.launch.agent", str(launch_dir)),
        "--standalone",
        "--local-addr=127.0.0.1",
        f"--nproc-per-node={plan.placement.world_size}",
        "--max-restarts=0",
        "--monitor-interval=0.1",
        f"--log-dir={launch_dir / 'logs'}",
        "--redirects=3",
        *("-m", worker, str(launch_dir / "launch.json")),
    ]


def rank_environment(plan: LaunchPlan) -> dict[str, str]:
    """The caller's environment with threads set explicitly and loopback for one node."""
    threads = str(plan.placement.threads)
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        "MOE_LAUNCHER_PID": str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
