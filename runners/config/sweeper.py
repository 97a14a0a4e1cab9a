"""`hydra/sweeper=moe`: the product of all values, as Hydra's basic sweeper makes it.

The basic sweeper writes a file before anything is checked, composes every job twice, accepts an
empty sweep, and rewrites overrides that are no sweep, not always faithfully. Here the launcher
composes and checks, and makes the folder after that.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from runners.config import recorded_cells
from runners.config.launcher import PACKAGE
from runners.errors import ConfigError


@dataclass
class MoeSweeperConf:
    _target_: str = f"{PACKAGE}.MoeSweeper"
    params: dict[str, str] = field(default_factory=dict)  # values by key, as an experiment has them


ConfigStore.instance().store(
    group="hydra/sweeper", name="moe", node=MoeSweeperConf, provider="moe_launcher"
)


class MoeSweeper(Sweeper):
    __module__ = PACKAGE

    def __init__(self, params: dict[str, str]) -> None:
        self.params = params

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Passes all jobs to the launcher in one call. Raises ConfigError for an empty sweep, and
        what the launcher raises."""
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        preset = [f"{key}={value}" for key, value in self.params.items()]
        words, named = choices([*preset, *arguments], loader)
        source = None if named is None else self._source(named)
        if source is not None:
            jobs = recorded_cells.jobs(source, words)
        else:
            jobs = [list(job) for job in itertools.product(*words.values())]
        ended: Sequence[JobReturn] = self.launcher.launch(jobs, initial_job_idx=0)
        return [job.return_value for job in ended]  # with other launchers: raises what a job raised

    def _source(self, override: Override) -> str | None:
        """What `cells=` names; raises ConfigError for a list, and beside a preset sweep."""
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line}: allowed is one source; name a single one")
        if self.params:
            raise ConfigError(
                f"{override.input_line}: allowed without an experiment that is a sweep itself; "
                "leave experiment out"
            )
        value = override.value()
        if value is None:
            return None
        source = str(override.input_line).partition("=")[2]
        if isinstance(value, QuotedString):
            source = str(value.text)
        if not source.strip(" '\""):
            raise ConfigError(
                f"{override.input_line}: names no source; {recorded_cells.ALLOWED}; name one of "
                "them, or leave it out"
            )
        return source


def choices(
    arguments: Sequence[str], loader: ConfigLoader
) -> tuple[dict[str, list[str]], Override | None]:
    """The choices of every key, where a later override replaces an earlier one, and the override
    that names a source of cells. Raises ConfigError for a sweep over nothing."""
    parser = OverridesParser.create(config_loader=loader)
    words: dict[str, list[str]] = {}
    source = None
    for override in parser.parse_overrides(list(arguments)):
        if override.get_key_element() == recorded_cells.KNOB:
            source = override
            continue
        each = words[override.get_key_element()] = _words(override)
        if not each:
            raise ConfigError(_empty(override, loader.get_group_options(override.key_or_group)))
    return words, source


def _words(override: Override) -> list[str]:
    """One override per value; an override that is no sweep stays as it was typed."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{override.input_line}: allowed are single values, and lists of them; list the values"
        )
    key = override.get_key_element()
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _empty(override: Override, options: Sequence[str]) -> str:
    key = override.get_key_element()
    if not isinstance(override.value(), Glob):
        return f"{override.input_line}: no value at all; name at least one: {key}=VALUE"
    if options:
        return f"{override.input_line}: matches none; allowed are {', '.join(options)}"
    return (
        f"{override.input_line}: glob chooses among the files of a folder of conf/, and {key} has "
        f"none; list the values: {key}=A,B"
    )
