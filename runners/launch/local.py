"""Starts the ranks of a launch on this machine, in a session of their own. Torch-free."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from runners.host.inherited import rank_variables
from runners.host.isolation import NETWORK
from runners.host.timeout import call_with_timeout
from runners.launch import launch_files
from runners.mpi.start import mpiexec_command
from runners.plan import LaunchPlan, save

GRACE_S = 5.0


class RunningLaunch(Protocol):
    """The ranks of a launch, wherever they run."""

    def running(self) -> bool: ...

    def end(self) -> None:
        """Ends the launch's own processes; whatever they wrote is then in the launch's folder."""

    def killed_by(self) -> int:
        """The signal that ended the ranks' parent; 0 where it exited, or `end` ended it."""

    def lost_node(self) -> str:
        """Which node was lost, and how that was seen; "" where none was."""

    def failures(self) -> list[dict[str, Any]]:
        """{rank, exitcode, pid} of every rank that its parent saw fail."""

    def log_path(self, rank: int) -> Path:
        """The file of a rank's stderr."""


@dataclass
class LaunchProcess:
    """A running launch whose ranks have a parent on this machine, and write into a folder that
    this machine sees."""

    process: subprocess.Popen[bytes]
    launch_dir: Path
    ended: bool = False  # by `end`
    ranks_per_node: int = 0  # of several nodes that have an agent each

    def running(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        """SIGTERM, then SIGKILL."""
        self.ended = self.ended or self.running()
        for sign, grace_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
            if not self.running():
                return
            self.process.send_signal(sign)
            deadline = time.monotonic() + grace_s
            while self.running() and time.monotonic() < deadline:
                time.sleep(0.05)

    def killed_by(self) -> int:
        return max(0, -(self.process.returncode or 0)) if not self.ended else 0

    def lost_node(self) -> str:
        return ""

    def failures(self) -> list[dict[str, Any]]:
        return launch_files.failures(self.launch_dir)

    def log_path(self, rank: int) -> Path:
        return launch_files.log_path(self.launch_dir, rank, self.ranks_per_node)


Start = Callable[["LaunchPlan"], RunningLaunch]  # how the ranks of a launch are started


def start(plan: LaunchPlan, worker: str = "runners.worker", anew: bool = False) -> LaunchProcess:
    """Saves the plan and starts its ranks; the caller polls and ends them. `worker` is the module
    whose `main` every rank runs. `anew`: each rank is a process that imports torch by itself, not
    a fork of one that has."""
    launch_dir = Path(plan.launch_dir)
    agent_log = call_with_timeout("the launch's folder", lambda: _prepare(plan, launch_dir))
    variables = rank_environment(plan)
    if plan.placement.backend == "mpi":
        program = [sys.executable, "-m", worker, str(launch_dir / "launch.json")]
        mpiexec = mpiexec_command(plan.placement.world_size, program, variables)
        command = [sys.executable, "-m", "runners.host.isolation", *_alone(plan), *mpiexec]
    else:
        command = torchrun_command(plan, worker, anew)
    with agent_log as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )
    return LaunchProcess(process, launch_dir)


def save_plan(plan: LaunchPlan) -> None:
    """Makes the launch's folder, with the plan in it."""
    launch_dir = Path(plan.launch_dir)
    (launch_dir / "logs").mkdir(parents=True)
    save(plan, launch_dir / "launch.json")


def _prepare(plan: LaunchPlan, launch_dir: Path) -> IO[bytes]:
    save_plan(plan)
    return (launch_dir / "logs" / launch_files.AGENT_LOG).open("wb")


def _alone(plan: LaunchPlan) -> list[str]:
    """The option for a private network, where ranks need no other network than each other."""
    usual = os.environ.get("GLOO_SOCKET_IFNAME", "lo") == "lo"
    return ["--alone"] if usual and plan.placement.device == "cpu" else []


def torchrun_command(plan: LaunchPlan, worker: str, anew: bool) -> list[str]:
    launch_dir = Path(plan.launch_dir)
    options = [*_alone(plan), *(["--anew"] if anew else [])]
    return [
        *agent_command(launch_dir, plan.placement.world_size, *options),
        f"--log-dir={launch_dir / 'logs'}",
        "--redirects=3",
        *("-m", worker, str(launch_dir / "launch.json")),
    ]


def agent_command(folder: Path, ranks: int, *options: str) -> list[str]:
    """One node, rendezvous on loopback, no restarts (a restart would silently measure again)."""
    return [
        *(sys.executable, "-m", "runners.launch.torchrun_agent", *options, str(folder)),
        "--standalone",
        "--local-addr=127.0.0.1",
        f"--nproc-per-node={ranks}",
        "--max-restarts=0",
        "--monitor-interval=0.1",
    ]


def rank_environment(plan: LaunchPlan) -> dict[str, str]:
    """The environment of the ranks: variables allowed by `runners.host.inherited` and
    `hosts.pass_env`, thread counts, loopback for one node, and the token that identifies the ranks
    to each other."""
    return {
        **rank_variables(os.environ, plan.placement.threads, plan.pass_env),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        "MOE_LAUNCHER_PID": str(os.getpid()),
        "MOE_LAUNCH_TOKEN": secrets.token_hex(16),
        NETWORK: "loopback",
        "PYTHONUNBUFFERED": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
