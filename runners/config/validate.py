"""Checks all cells of a sweep before anything starts. Torch-free except for counting GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from moe import peers
from moe.build import supports
from moe.spec import Unsupported
from runners.config.cell import job_of
from runners.config.hosts import node_of
from runners.config.memory import available_bytes, check_memory
from runners.config.resolution import Composed
from runners.errors import ConfigError
from runners.host.machine import NodeResources
from runners.plan import Job

LISTED_ERRORS = 20


def validate(
    composed: Sequence[Composed], machine: NodeResources
) -> tuple[dict[int, Job], dict[int, str]]:
    """Jobs and errors by position, for nodes like `machine`."""
    here_bytes = available_bytes()  # asked once: a large sweep has ten thousand cells
    jobs: dict[int, Job] = {}
    errors: dict[int, str] = {}
    for number, (config, overrides) in enumerate(composed):
        try:
            node = node_of(config, machine)
            job = job_of(config, node, overrides)
            peers.check_installed(job.cell)
            supports(job.cell)
            check_memory(job, replace(node, memory_bytes=node.memory_bytes or here_bytes))
            jobs[number] = job
        except (ConfigError, Unsupported) as error:
            errors[number] = str(error)
    return jobs, errors


def format_errors(errors: Mapping[int, str]) -> str:
    """One line: every distinct error with its number of cells, LISTED_ERRORS at most."""
    counts: dict[str, int] = {}
    for error in errors.values():
        counts[error] = counts.get(error, 0) + 1
    shown = [f"{error} ({n} cells)" if n > 1 else error for error, n in counts.items()]
    more = f"; and {len(shown) - LISTED_ERRORS} more" if len(shown) > LISTED_ERRORS else ""
    return "; ".join(shown[:LISTED_ERRORS]) + more
