"""`hydra/launcher=slurm`: runs the bench's cells in Slurm allocations, many cells in each.

python runners/bench.py -m hydra/launcher=slurm hosts.ranks_per_node=8 world_size=16,64 ...
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

from runners.config.launcher import PACKAGE, MoeLauncher


@dataclass
class Slurm:
    """What a job asks for; "" is the cluster's default."""

    _target_: str = f"{PACKAGE}.SlurmLauncher"
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    nodelist: str = ""
    exclusive: bool = True  # no other jobs on the nodes while we measure
    time_min: int = 0  # 0: from the plan
    max_requeues: int = 3  # after its time was up
    setup: list[str] = field(default_factory=list)  # shell commands before the measuring starts
    extra: dict[str, Any] = field(default_factory=dict)  # further options of sbatch


ConfigStore.instance().store(
    group="hydra/launcher", name="slurm", node=Slurm, provider="moe_launcher"
)


class SlurmLauncher(MoeLauncher):
    """Composes and validates as MoeLauncher does; the bench then runs the cells as Slurm jobs."""

    __module__ = PACKAGE

    def __init__(self, **settings: Any) -> None:
        """The bench reads the settings from the config's own node, in a run and in a multirun."""
        super().__init__()
