"""Hydra finds the launchers and the sweeper here."""

from hydra_plugins.moe_launcher.launcher import MoeLauncher
from hydra_plugins.moe_launcher.slurm import SlurmLauncher
from hydra_plugins.moe_launcher.sweeper import MoeSweeper

__all__ = ["MoeLauncher", "MoeSweeper", "SlurmLauncher"]
