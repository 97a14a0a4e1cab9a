"""Cells -> groups -> waves -> the frozen files that launches read. Torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from moe.spec import Cell, RankLayout, shard_bounds
from runners.config.cell import Request
from runners.config.fields import ConfigError
from runners.records.record import (
    RecordError,
    cell_from_dict,
    cell_key,
    read_sealed,
    sealed,
    write_atomic,
)


@dataclass(frozen=True)
class Measure:
    """conf/measure: how a cell is timed. Not part of a cell's key, except `cache`."""

    samples: int = 6  # values of a step's time, at least
    samples_max: int = 40
    per_round: int = 1
    precision: float = 0.03
    wall_limit_s: float = 1.2  # of rounds, times the cells of the wave
    block: int = 0  # steps in every block; 0: two lengths, by the floor and block_ms
    block_floors: float = 20.0
    block_ms: float = 20.0  # of the long block
    block_gloo_ms: float = 100.0  # of the long block where ranks sleep while they wait
    warmup: int = 2
    warmup_max: int = 8
    order: str = "random"
    order_seed: int = 0
    launches: int = 1
    wave_cells: int = 32
    anchors: int = 6
    phases: int = 5
    cache: str = "warm"
    calibrate: bool = True
    calibration_limit_s: float = 5.0
    cell_limit_s: float = 300.0

    @property
    def rounds_min(self) -> int:
        return -(-self.samples // self.per_round)

    @property
    def rounds_max(self) -> int:
        return max(self.rounds_min, self.samples_max // self.per_round)


@dataclass
class Job:
    """One cell of the sweep, with how it is to be measured and where its config came from."""

    request: Request
    measure: Measure
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def cell(self) -> Cell:
        return self.request.cell

    @cached_property
    def key(self) -> str:
        return cell_key(self.cell)

    @property
    def cell_id(self) -> str:
        return f"{self.key}.{self.request.label}" if self.request.label else self.key


@dataclass
class LaunchGroup:
    """The jobs that can share one set of processes."""

    placement: RankLayout
    measure: Measure
    jobs: list[Job]


@dataclass
class LaunchPlan:
    """What one launch's ranks are told; frozen to a file before they start."""

    launch: int
    launch_dir: str
    measure: Measure
    placement: RankLayout
    cells: list[Cell]
    labels: list[str]
    waves: list[list[int]]  # indices into cells
    resident: list[bool]  # per wave: whether its cells can live in memory together
    calibrate: bool = False
    kernels: dict[str, str] = field(default_factory=dict)  # chosen in earlier launches
    git: dict[str, Any] | None = None  # state of the code, for records made after a crash
    calibration: dict[str, Any] | None = None
    exchanged: dict[str, int] | None = (
        None  # limits chosen earlier in the sweep (moe.parallel.algorithms)
    )
    traces: dict[str, str] = field(default_factory=dict)  # files in launch_dir by sha256
    pass_env: list[str] = field(default_factory=list)  # further variables that ranks inherit


def kernel_key(cell: Cell) -> str:
    """Cells with the same one run the same kernel, in every launch of a sweep: repeats under
    other labels or with planted work must differ in nothing else."""
    return cell_key(replace(cell, strategy=replace(cell.strategy, slowdown=0.0)))


def engine_and_ranks(cell: Cell) -> tuple[str, int]:
    """Engine and number of ranks: what a choice of algorithms is made for, once in a sweep."""
    return cell.placement.backend, cell.placement.world_size


def unique(jobs: Sequence[Job]) -> list[Job]:
    """Jobs in order with repeats of one cell and label left out; raises ConfigError when the
    repeats differ in how they are to be measured, since their records could not be told apart."""
    seen: dict[str, Job] = {}
    for job in jobs:
        first = seen.setdefault(job.cell_id, job)
        if first.measure != job.measure:
            raise ConfigError(
                f"measure: cell {job.cell_id} is asked for twice with different settings; "
                "allowed is one; give the repeats different labels (label=a)"
            )
    return list(seen.values())


def groups(jobs: Iterable[Job], isolation: str) -> list[LaunchGroup]:
    """Jobs by world size, backend, device, threads and measure; one each for isolation=cell."""
    found: dict[Any, LaunchGroup] = {}
    for number, job in enumerate(jobs):
        alone = number if isolation == "cell" else -1
        key = (job.cell.placement, job.measure, alone)
        found.setdefault(key, LaunchGroup(job.cell.placement, job.measure, [])).jobs.append(job)
    return list(found.values())


def waves(jobs: Sequence[Job], size: int) -> list[list[int]]:
    """Indices of jobs, at most `size` together, in few waves of nearly equal length.

    Jobs that differ only in their strategy or label are what gets compared, so they share a wave
    wherever the sweep names them, unless they are more than `size`.
    """
    points: dict[Any, list[int]] = {}
    for index, job in enumerate(jobs):
        points.setdefault((job.cell.layer, job.cell.workload), []).append(index)
    pieces = [
        one[slice(*shard_bounds(len(one), parts, part))]
        for one in points.values()
        for parts in [-(-len(one) // size)]
        for part in range(parts)
    ]
    found = _filled(pieces, size)
    least = max([-(-len(jobs) // max(len(found), 1)), *map(len, pieces)])
    shorter = (_filled(pieces, limit) for limit in range(least, size))
    return next((one for one in shorter if len(one) == len(found)), found)


def _filled(pieces: Iterable[list[int]], limit: int) -> list[list[int]]:
    """Consecutive pieces put together as long as they are at most `limit`."""
    found: list[list[int]] = []
    for piece in pieces:
        if found and len(found[-1]) + len(piece) <= limit:
            found[-1].extend(piece)
        else:
            found.append(list(piece))
    return found


def save(plan: LaunchPlan, path: Path) -> None:
    write_atomic(path, sealed(dataclasses.asdict(plan)))


def load(path: Path) -> LaunchPlan:
    """Raises OSError, and RecordError for what is not a whole plan of this version."""
    data = read_sealed(path)
    try:
        data["measure"] = Measure(**data["measure"])
        data["placement"] = RankLayout(**data["placement"])
        data["cells"] = [cell_from_dict(cell) for cell in data["cells"]]
        return LaunchPlan(**data)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{path}: not the plan of a launch: {error}") from error
