"""`hydra/launcher=ray`: runs the bench's cells on the nodes of a Ray cluster.

python runners/bench.py -m hydra/launcher=ray hosts.ranks_per_node=8 world_size=16,64 ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore

from runners.config.launcher import PACKAGE, MoeLauncher
from runners.config.ray_options import RayOptions


@dataclass
class RayLauncherConf(RayOptions):
    _target_: str = f"{PACKAGE}.RayLauncher"


ConfigStore.instance().store(
    group="hydra/launcher", name="ray", node=RayLauncherConf, provider="moe_launcher"
)


class RayLauncher(MoeLauncher):
    """Composes and validates as MoeLauncher does; the bench then runs the cells on Ray."""

    __module__ = PACKAGE

    def __init__(self, **settings: Any) -> None:
        """The bench reads the settings from the config's own node, in a run and in a multirun."""
        super().__init__()
