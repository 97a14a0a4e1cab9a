"""Which cells of a packed file or sweep this machine can measure, and what it would record.

    python -m runners.config.cells_here SOURCE [workload.trace=FILE]

prints a line of JSON for the analysis, which imports neither torch nor this package:
{"cells": {cell id: why it cannot run here, or null}, "environment": as a record has it}.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from moe.spec import Cell
from runners.config.cell_overrides import Recorded, config_of
from runners.config.recorded_cells import TRACE, recorded_cells
from runners.config.resolution import Composed
from runners.config.validate import validate
from runners.errors import ConfigError
from runners.host import environment, project_paths
from runners.host.inherited import inherited_by_ranks
from runners.host.machine import NodeResources, this_machine


def refusals(
    recorded: Sequence[Recorded], machine: NodeResources, trace: str = ""
) -> dict[str, str | None]:
    """Why each cell cannot run on a node like `machine`, by its id; None where it can. `trace` is
    the file of recorded choices."""
    reasons: dict[str, str | None] = {}
    for one in recorded:
        try:
            config = config_of(one)
        except ConfigError as error:
            reasons[one.cell_id] = str(error)
            continue
        if one.cell.workload.kind == "trace":
            config["workload"]["trace"] = trace or None
        _, errors = validate([Composed(config, [])], machine)
        reasons[one.cell_id] = errors.get(0)
    return reasons


def captured(cells: Sequence[Cell], machine: NodeResources) -> dict[str, Any]:
    """The environment of a launch here, as far as it is known before: with the GPUs where a cell
    computes on them, with the variables that ranks inherit."""
    on_gpus = machine.cuda_devices and any(cell.placement.device == "cuda" for cell in cells)
    git = environment.git_state(project_paths.CLONE)
    facts = environment.capture("cuda" if on_gpus else "cpu", git=git or {})
    return facts | {"variables": environment.variables(inherited_by_ranks(os.environ, ()))}


def main(words: Sequence[str]) -> int:
    """Exit code 2, with one line on standard error, for a source that cannot be used."""
    source, *more = words
    trace = next((word.partition("=")[2] for word in more if word.startswith(f"{TRACE}=")), "")
    machine = this_machine()
    try:
        recorded = recorded_cells(source)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    reasons = refusals(recorded, machine, trace)
    cells = [one.cell for one in recorded if reasons[one.cell_id] is None]
    print(json.dumps({"cells": reasons, "environment": captured(cells, machine)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
