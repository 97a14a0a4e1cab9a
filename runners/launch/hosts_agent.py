"""torchrun's agent of one of several nodes. Torch-free."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from runners.config.hosts import Hosts
from runners.host.network import own_address, resolve, use_interface
from runners.launch import launch_files
from runners.launch.local import rank_environment
from runners.plan import LaunchPlan, save


def agent_command(plan: LaunchPlan, hosts: Hosts) -> list[str]:
    """torchrun's agent of one node. With the static rendezvous rank 0 is on node 0, beside its
    parent, and torch does not guess from host names where the store runs."""
    launch_dir, address = Path(plan.launch_dir), resolve(hosts.address)
    agent_dir = launch_files.agent_folder(launch_dir, hosts.node_rank)
    agent_dir.mkdir(parents=True, exist_ok=True)
    return [
        *(sys.executable, "-m", "runners.launch.torchrun_agent", str(agent_dir)),
        f"--nnodes={plan.placement.nodes}",
        f"--node-rank={hosts.node_rank}",
        f"--nproc-per-node={plan.placement.ranks_per_node}",
        "--rdzv-backend=static",
        f"--master-addr={address}",
        f"--master-port={hosts.port}",
        f"--rdzv-conf=timeout={int(hosts.wait_s)}",
        f"--local-addr={own_address(address)}",
        "--max-restarts=0",
        "--monitor-interval=0.1",
        f"--log-dir={launch_files.node_logs(launch_dir, hosts.node_rank)}",
        "--redirects=3",
        *("-m", "runners.worker", str(launch_dir / "launch.json")),
    ]


def start_agent(plan: LaunchPlan, hosts: Hosts, token: str) -> subprocess.Popen[bytes]:
    """Saves the plan and starts this node's agent. `token` identifies the ranks of a launch to each
    other."""
    launch_dir = Path(plan.launch_dir)
    if not (launch_dir / "launch.json").exists():
        save(plan, launch_dir / "launch.json")
    variables = rank_environment(plan)
    if "GLOO_SOCKET_IFNAME" not in os.environ:
        del variables["GLOO_SOCKET_IFNAME"]  # loopback, for one host only
    variables["MOE_LAUNCH_TOKEN"] = token
    use_interface(variables, resolve(hosts.address), hosts.interface)
    logs = launch_files.node_logs(launch_dir, hosts.node_rank)
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / launch_files.AGENT_LOG).open("wb") as log:
        return subprocess.Popen(
            agent_command(plan, hosts),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )
