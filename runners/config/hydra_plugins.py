"""Makes the launchers and the sweeper known to Hydra: `register` before `hydra.main` runs.

Hydra registers a class from anywhere, but instantiates it only by a name below `hydra_plugins`, and
looks that name up by importing. Here the name stands for this module, so that the code can lie in
runners/ and no other program finds our plugins among its own.
"""

import importlib
import sys
from types import ModuleType

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

Plugins.instance()  # it executes the modules of Hydra's own plugins anew: ours come after

from runners.config.launcher import PACKAGE, MoeLauncher
from runners.config.schema import defaults, help_text
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
    """Our plugins, beside those that Hydra found by itself; the knobs, as `knobs` in the defaults
    of conf/config.yaml, and their help."""
    for plugin in (MoeLauncher, SlurmLauncher, MoeSweeper):
        Plugins.instance().register(plugin)
    _name_this_module(PACKAGE)
    store = ConfigStore.instance()
    store.store(name="knobs", node=defaults(), provider="moe-bench")
    OmegaConf.register_new_resolver("knob_help", _template, replace=True)
    store.store(group="hydra/help", name="knobs", node={"template": "${knob_help:}"})


def _template() -> str:
    """The help as Hydra's template of it, in which $ has a meaning."""
    return f"{help_text().replace('$', '$$')}\n$FLAGS_HELP"
