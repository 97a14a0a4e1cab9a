"""One rank that srun has started: sets torch's variables from Slurm's, then runs the worker.

python -m runners.rank.srun LAUNCH_FILE, with MASTER_ADDR and MASTER_PORT set
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from runners.host.network import use_interface
from runners.plan import load


def place(slurm: Mapping[str, str], world_size: int, nodes: int) -> dict[str, str]:
    """RANK and related variables; raises KeyError outside of an srun step."""
    return {
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(world_size // nodes),
        "GROUP_RANK": slurm["SLURM_NODEID"],
    }


def main(arguments: list[str]) -> int:
    plan = load(Path(arguments[0]))
    os.environ |= place(os.environ, plan.placement.world_size, plan.placement.nodes)
    if plan.placement.nodes > 1:
        master, interface = os.environ["MASTER_ADDR"], os.environ.get("MOE_INTERFACE", "")
        use_interface(os.environ, master, interface)
    from runners.rank import worker  # imports torch, which reads variables when imported

    return worker.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
