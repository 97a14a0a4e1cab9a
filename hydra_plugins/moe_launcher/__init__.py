"""Hydra finds the launchers here."""

from hydra_plugins.moe_launcher.launcher import MoeLauncher
from hydra_plugins.moe_launcher.slurm import SlurmLauncher

__all__ = ["MoeLauncher", "SlurmLauncher"]
