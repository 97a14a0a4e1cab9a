"""Which cells of a packed file or sweep this machine can measure, and what it would record.

    python -m runners.config.cells_here SOURCE [KEY=VALUE ...]

prints a line of JSON for the analysis, which imports neither torch nor this package:
{"cells": {cell id: why it cannot run here, or null}, "environment": as a record has it}. The
overrides are those of the sweep that would measure the cells.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from moe.spec import Cell
from runners.config import hydra_plugins
from runners.config.cell_overrides import Recorded, config_of
from runners.config.recorded_cells import Recordings, recordings
from runners.config.refusal import told
from runners.config.resolution import Composed, plain
from runners.config.schema import SweepKnobs, values
from runners.config.sweeper import choices
from runners.config.validate import validate
from runners.errors import ConfigError
from runners.host import environment, project_paths
from runners.host.inherited import inherited_by_ranks
from runners.host.machine import NodeResources, this_machine

# What decides of no cell whether it can run.
NOT_OF_CELLS = ("tracker", "report", "name", "on_error", "on_invalid", "isolation", "hydra")
BAD = (ConfigError, HydraException, OmegaConfBaseException)


def refusals(recorded: Sequence[Recorded], machine: NodeResources) -> dict[str, str | None]:
    """Why each cell cannot run on a node like `machine`, by its id; None where it can."""
    reasons: dict[str, str | None] = {}
    for one in recorded:
        try:
            config = config_of(one)
        except ConfigError as error:
            reasons[one.cell_id] = str(error)
            continue
        if one.cell.workload.kind == "trace":
            config["workload"]["trace"] = None
        _, errors = validate([Composed(config, [])], machine)
        reasons[one.cell_id] = errors.get(0)
    return reasons


def refusals_with(
    recorded: Recordings, machine: NodeResources, overrides: Sequence[str]
) -> dict[str, str | None]:
    """As `refusals`, with overrides that are typed beside the cells; a cell can run where any of
    its jobs can. Raises ConfigError for overrides that no sweep has."""
    hydra_plugins.register()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(project_paths.CONF)):
            loader = GlobalHydra.instance().config_loader()
            assert isinstance(loader, ConfigLoaderImpl)
            words, source = choices(overrides, loader)
            if source:
                raise ConfigError(
                    f"--override {source.input_line}: names a second source; leave it out"
                )
            for job in itertools.product(*words.values()):
                values(_composed(loader, job), SweepKnobs)
            if all(_is_of_sweep(key) for key in words):
                return refusals(recorded.cells, machine)
            return {one.cell_id: _refusal(loader, recorded, one, machine, words)
                    for one in recorded.cells}  # fmt: skip
    except Exception as error:  # of Hydra come errors of any kind
        raise ConfigError(told(error, overrides)) from error


def _is_of_sweep(key: str) -> bool:
    return key.replace("/", ".").split(".")[0] in NOT_OF_CELLS


def _refusal(
    loader: ConfigLoaderImpl,
    recorded: Recordings,
    one: Recorded,
    machine: NodeResources,
    words: Mapping[str, Sequence[str]],
) -> str | None:
    try:
        jobs = recorded.jobs_of(one, words)
        composed = [Composed(_composed(loader, job), list(job)) for job in jobs]
    except BAD as error:
        return told(error, [])
    able, errors = validate(composed, machine)
    return None if able else errors[0]


def _composed(loader: ConfigLoaderImpl, overrides: Sequence[str]) -> dict[str, Any]:
    config = loader.load_configuration("config", list(overrides), run_mode=RunMode.MULTIRUN)
    return plain(config)


def captured(cells: Sequence[Cell], machine: NodeResources) -> dict[str, Any]:
    """The environment of a launch here, as far as it is known before: with the GPUs where a cell
    computes on them, with the variables that ranks inherit."""
    on_gpus = machine.cuda_devices and any(cell.placement.device == "cuda" for cell in cells)
    git = environment.git_state(project_paths.CLONE)
    facts = environment.capture("cuda" if on_gpus else "cpu", git=git or {})
    return facts | {"variables": environment.variables(inherited_by_ranks(os.environ, ()))}


def main(words: Sequence[str]) -> int:
    """Exit code 2, with one line on standard error, for a source or overrides that cannot be
    used."""
    source, *overrides = words
    machine = this_machine()
    try:
        recorded = recordings(source)
        reasons = (
            refusals_with(recorded, machine, overrides)
            if overrides
            else refusals(recorded.cells, machine)
        )
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    cells = [one.cell for one in recorded.cells]
    print(json.dumps({"cells": reasons, "environment": captured(cells, machine)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
