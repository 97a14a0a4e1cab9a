"""Starts an emulated launch, as runners/launch/local.py starts a real one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from runners.errors import ConfigError
from runners.launch import launch_files
from runners.launch.local import LaunchProcess, rank_environment, save_plan
from runners.plan import LaunchPlan

TRIAL_S = 30.0
# Names of network namespaces are files in /run/netns: a private /run needs no cleaning up.
PRIVATE_RUN = 'mount -t tmpfs tmpfs /run && mkdir /run/netns && exec "$@"'
TRIAL = (
    "from benchmarks.emulate.network import set_up; "
    "from runners.records.emulation import Emulation; set_up(3, Emulation())"
)
# Freed memory is kept, as GPUs' allocators do: otherwise large steps would map theirs anew.
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}


def private(command: Sequence[str]) -> list[str]:
    """The command where /run and the network are its own; as another user than root, in a user
    namespace."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--net", "--mount", "sh", "-c", PRIVATE_RUN, "sh", *command]


def check() -> None:
    """Raises ConfigError where namespaces, bridges or HTB cannot be had."""
    for tool, package in (("unshare", "util-linux"), ("ip", "iproute2"), ("tc", "iproute2")):
        if shutil.which(tool) is None:
            raise ConfigError(f"emulation: {tool} is missing; install {package} (Linux only)")
    try:
        done = subprocess.run(
            private([sys.executable, "-c", TRIAL]), capture_output=True, text=True, timeout=TRIAL_S,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"emulation: {error}") from error
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise ConfigError(
            "emulation: no network namespaces with shaped links here: "
            f"{reason}; run it as root, or where user "
            "namespaces are allowed"
        )


def start(
    plan: LaunchPlan, rates_path: Path, agent: str = "benchmarks.emulate.agent"
) -> LaunchProcess:
    """Starts the ranks of the plan; the caller polls and ends them. `agent` is the module that sets
    up their links."""
    launch_dir = Path(plan.launch_dir)
    save_plan(plan)
    program = [sys.executable, "-m", agent, str(launch_dir / "launch.json")]
    with (launch_dir / "logs" / launch_files.AGENT_LOG).open("wb") as log:
        process = subprocess.Popen(
            private([*program, str(rates_path)]), stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, env={**rank_environment(plan), **KEPT_MEMORY},
            start_new_session=True,
        )  # fmt: skip
    return LaunchProcess(process, launch_dir)
