"""Hydra finds the launcher here."""

from hydra_plugins.moe_launcher.launcher import MoeLauncher

__all__ = ["MoeLauncher"]
