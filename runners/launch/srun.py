"""Starts the ranks of a launch with srun, inside an allocation of Slurm. Torch-free."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.host.inherited import SLURM, inherited
from runners.host.network import first_address, free_port, resolve
from runners.launch.local import LaunchProcess, rank_environment
from runners.plan import SHARED_FOLDER, LaunchPlan, save

LIMIT_S = 60.0
FAILED = re.compile(r"srun: error: \S+: tasks? (\d+)\S*: (.+)")
EXIT_CODE = re.compile(r"Exited with exit code (\d+)")
SIGNALS = {"Killed": 9, "Out Of Memory": 9, "Segmentation fault": 11, "Aborted": 6, "Bus error": 7,
           "Illegal instruction": 4, "Floating point exception": 8, "Terminated": 15}  # fmt: skip


def ask(*command: str) -> str:
    """Output of one of Slurm's commands; raises OSError or SubprocessError."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT_S,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout.strip()


def node_addresses(nodelist: str) -> list[str]:
    """Addresses of an allocation's nodes, in the order in which ranks are assigned."""
    return [_address(name) for name in ask("scontrol", "show", "hostnames", nodelist).split()]


def _address(node: str) -> str:
    """The address that Slurm itself uses: the node's name need not resolve."""
    match = re.search(r"\bNodeAddr=(\S+)", ask("scontrol", "show", "node", node))
    return resolve(match[1] if match else node)


def job_state(job_id: str) -> str:
    """Slurm's state of a job (RUNNING, CANCELLED ...); "" where Slurm does not answer."""
    try:
        match = re.search(r"\bJobState=(\w+)", ask("scontrol", "show", "job", job_id))
    except (OSError, subprocess.SubprocessError):
        return ""
    return match[1] if match else ""


@dataclass
class SrunLaunchProcess(LaunchProcess):
    """One step of the allocation."""

    job_id: str = ""
    on_stop: Callable[[], None] = lambda: None  # called when the scheduler has ended the job

    def end(self) -> None:
        super().end()
        if self.process.returncode and job_state(self.job_id) not in ("RUNNING", ""):
            self.on_stop()

    def failures(self) -> list[dict[str, Any]]:
        """The first failure only: srun then ends the other ranks."""
        try:
            return first_failure((self.launch_dir / "logs" / "agent.log").read_text("utf-8"))
        except (OSError, ValueError):
            return []


def first_failure(log: str) -> list[dict[str, Any]]:
    """[{rank, exitcode, pid}] from srun's messages; a signal is a negative exit code."""
    for rank, what in FAILED.findall(log):
        code = EXIT_CODE.match(what)
        signals = [-number for name, number in SIGNALS.items() if what.startswith(name)]
        if code or signals:
            exitcode = int(code[1]) if code else signals[0]
            return [{"rank": int(rank), "exitcode": exitcode, "pid": None}]
    return []


def srun_command(plan: LaunchPlan) -> list[str]:
    """Consecutive ranks share a node, in the order of the nodes. Slurm does not bind ranks:
    they pin themselves. With --overlap a step that is slow to end does not delay the next."""
    place, logs = plan.placement, Path(plan.launch_dir) / "logs" / "srun" / "attempt_0" / "%t"
    return [
        "srun",
        f"--nodes={place.nodes}",
        f"--ntasks={place.world_size}",
        f"--ntasks-per-node={place.ranks_per_node}",
        "--distribution=block",
        "--kill-on-bad-exit=1",
        "--cpu-bind=none",
        "--mpi=none",
        "--overlap",
        "--export=ALL",
        f"--output={logs / 'stdout.log'}",
        f"--error={logs / 'stderr.log'}",
        *(sys.executable, "-m", "runners.rank.srun", f"{plan.launch_dir}/launch.json"),
    ]


class SrunStart:
    """Starts launches inside an allocation."""

    def __init__(self, addresses: list[str], interface: str, on_stop: Callable[[], None]) -> None:
        self.addresses, self.interface, self.on_stop = addresses, interface, on_stop

    def __call__(self, plan: LaunchPlan) -> LaunchProcess:
        launch_dir = Path(plan.launch_dir)
        if plan.placement.nodes > 1:
            plan.files = SHARED_FOLDER
        for rank in range(plan.placement.world_size):
            (launch_dir / "logs" / "srun" / "attempt_0" / str(rank)).mkdir(parents=True)
        save(plan, launch_dir / "launch.json")
        with (launch_dir / "logs" / "agent.log").open("wb") as log:
            process = subprocess.Popen(
                srun_command(plan),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.variables(plan),
                start_new_session=True,
            )
        job_id = os.environ.get("SLURM_JOB_ID", "")
        return SrunLaunchProcess(process, launch_dir, job_id=job_id, on_stop=self.on_stop)

    def variables(self, plan: LaunchPlan) -> dict[str, str]:
        """The ranks' environment, the variables by which srun finds its allocation, and the address
        of rank 0 as other nodes reach it."""
        variables = rank_environment(plan) | inherited(os.environ, SLURM)
        for name in ("SLURM_CPU_BIND", "SLURM_NTASKS_PER_NODE", "SLURM_DISTRIBUTION"):
            variables.pop(name, None)  # the batch script's; srun would take them as options
        address = first_address(self.addresses[: plan.placement.nodes])
        if plan.placement.nodes > 1 and "GLOO_SOCKET_IFNAME" not in os.environ:
            del variables["GLOO_SOCKET_IFNAME"]  # every node chooses its own
        return {
            **variables,
            "MASTER_ADDR": address,
            "MASTER_PORT": str(free_port(address)),
            "MOE_INTERFACE": self.interface,
        }
