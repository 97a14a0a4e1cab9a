"""Registers the launchers and the sweeper with Hydra: call `register` before `hydra.main` runs.

Hydra instantiates a plugin only by a module name below `hydra_plugins`. Such a name is made an
alias of this module, so that the code stays in runners/ and other programs do not find our plugins.
"""

import importlib
import sys
from types import ModuleType

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

Plugins.instance()  # first: it executes the modules of Hydra's own plugins again

from runners.config import host_variables
from runners.config.launcher import PACKAGE, MoeLauncher
from runners.config.ray_launcher import RayLauncher
from runners.config.schema import defaults, help_text
from runners.config.slurm_launcher import SlurmLauncher
from runners.config.sweeper import MoeSweeper

__all__ = ["MoeLauncher", "MoeSweeper", "RayLauncher", "SlurmLauncher"]


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
    """Registers our plugins, the knobs (`knobs` in the defaults of conf/config.yaml), their help,
    and the resolver of conf/hosts/auto.yaml."""
    for plugin in (MoeLauncher, SlurmLauncher, RayLauncher, MoeSweeper):
        Plugins.instance().register(plugin)
    _name_this_module(PACKAGE)
    store = ConfigStore.instance()
    store.store(name="knobs", node=defaults(), provider="moe-bench")
    OmegaConf.register_new_resolver("knob_help", _template, replace=True)
    OmegaConf.register_new_resolver("host_variables", host_variables.of_this_host, replace=True)
    store.store(group="hydra/help", name="knobs", node={"template": "${knob_help:}"})


def _template() -> str:
    """The help as a Hydra template, in which $ must be escaped."""
    return f"{help_text().replace('$', '$$')}\n$FLAGS_HELP"
