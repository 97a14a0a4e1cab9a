"""Makes the launchers and the sweeper known to Hydra: `register` before `hydra.main` runs.

Hydra registers a class from anywhere, but instantiates it only by a name below `hydra_plugins`, and
looks that name up by importing. Here the name stands for this module, so that the code can lie in
runners/ and no other program finds our plugins among its own.
"""

import importlib
import sys
from types import ModuleType

from hydra.core.plugins import Plugins

Plugins.instance()  # it executes the modules of Hydra's own plugins anew: ours come after

from runners.config.launcher import PACKAGE, MoeLauncher
from runners.config.slurm_launcher import SlurmLauncher
from runners.config.sweeper import MoeSweeper

__all__ = ["MoeLauncher", "MoeSweeper", "SlurmLauncher"]


def _name_this_module(name: str) -> None:
    """Lets Hydra import this module as `name`, a submodule of `hydra_plugins`."""
    parent, _, child = name.partition(".")
    try:
        package = importlib.import_module(parent)  # other plugins may be installed
    except ImportError:
        package = sys.modules[parent] = ModuleType(parent)
        package.__path__ = []  # a package without files
    sys.modules[name] = sys.modules[__name__]
    setattr(package, child, sys.modules[__name__])


def register() -> None:
    """Our plugins, beside those that Hydra found by itself."""
    for plugin in (MoeLauncher, SlurmLauncher, MoeSweeper):
        Plugins.instance().register(plugin)
    _name_this_module(PACKAGE)
