"""`hydra/launcher=slurm`: the bench's cells as allocations of Slurm, each measuring many of them.

python runners/bench.py -m hydra/launcher=slurm hosts.ranks_per_node=8 world_size=16,64 ...
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

from runners.config.launcher import PACKAGE, MoeLauncher


@dataclass
class SlurmLauncherConf:
    """What a job asks for; "" is the cluster's default."""

    _target_: str = f"{PACKAGE}.SlurmLauncher"
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    nodelist: str = ""
    exclusive: bool = True  # nobody else on the nodes: what is measured is ours
    time_min: int = 0  # 0: from the plan
    max_requeues: int = 3  # after its time was up
    setup: list[str] = field(default_factory=list)  # shell commands before the measuring starts
    extra: dict[str, Any] = field(default_factory=dict)  # further options of sbatch


ConfigStore.instance().store(
    group="hydra/launcher", name="slurm", node=SlurmLauncherConf, provider="moe_launcher"
)


class SlurmLauncher(MoeLauncher):
    """The same composition and validation; the bench is told where its cells are to run."""

    __module__ = PACKAGE

    def __init__(self, **settings: Any) -> None:
        """The settings reach the bench as the config's own node, in a run and in a multirun."""
        super().__init__()
