"""Cells -> groups -> waves -> the plan files that launches read. Torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from moe.knob import knob
from moe.spec import MEASURE, Cell, RankLayout, shard_bounds
from runners.errors import ConfigError
from runners.records.record import cell_from_dict, cell_key
from runners.records.routing_trace import Trace
from runners.records.sealed import RecordError, read_sealed, sealed, unsealed, write_atomic

# LaunchPlan.files, how the ranks' files reach the launcher from other machines.
SHARED_FOLDER, STREAM, RAY = "shared folder", "stream to node 0", "Ray"


@dataclass(frozen=True)
class Measure:
    """How a cell is timed. Not part of a cell's key, except `cache`."""

    samples: int = knob(6, "samples of every cell, at least", MEASURE, least=1)
    samples_max: int = knob(40, "samples of every cell, at most", MEASURE, least=1)
    per_round: int = knob(1, "samples of a cell in one round", MEASURE, least=1)
    precision: float = knob(0.03, "relative half-width of the 95% interval to stop at", MEASURE)
    wall_limit_s: float = knob(
        1.2, "a wave stops when rounds took this long", MEASURE, unit="s/cell"
    )
    block: int = knob(
        0, "steps in every block; auto: two lengths (docs/methodology.md)", MEASURE, conf="auto",
        least=1, words={"auto": 0},
    )  # fmt: skip
    block_floors: float = knob(
        20.0, "the long block lasts at least this many floors; on GPUs at least 100", MEASURE
    )
    block_ms: float = knob(20.0, "and this long; the short one a quarter of it", MEASURE, unit="ms")
    block_gloo_ms: float = knob(100.0, "the same with gloo, whose ranks sleep", MEASURE, unit="ms")
    warmup: int = knob(2, "warm-up samples: kept, but never counted", MEASURE)
    warmup_max: int = knob(8, "warm-up samples at most, while the cell has not settled", MEASURE)
    order: str = knob("random", "order of cells in a round", MEASURE, allowed=("random", "product"))
    order_seed: int = knob(0, "seed of the random order", MEASURE)
    launches: int = knob(1, "whole launches of every group", MEASURE, least=1)
    wave_cells: int = knob(32, "cells interleaved with each other", MEASURE, least=1)
    anchors: int = knob(6, "samples of the anchor cell at start, middle and end; 0: none", MEASURE)
    phases: int = knob(5, "separate passes that time the layer's parts; 0: none", MEASURE)
    cache: str = knob(
        "warm", "cold: rotate over copies larger than the last-level cache", MEASURE,
        allowed=("warm", "cold"),
    )  # fmt: skip
    calibrate: bool = knob(True, "measure this machine's limits, once", MEASURE)
    calibration_limit_s: float = knob(5.0, "time for that", MEASURE, least=1, unit="s")
    cell_limit_s: float = knob(300.0, "ends a cell that stands still this long", MEASURE, unit="s")

    @property
    def rounds_min(self) -> int:
        return -(-self.samples // self.per_round)

    @property
    def rounds_max(self) -> int:
        return max(self.rounds_min, self.samples_max // self.per_round)


@dataclass
class Job:
    """One cell of the sweep, its measuring settings, and where it comes from."""

    cell: Cell
    measure: Measure
    label: str = ""
    notes: tuple[str, ...] = ()  # changes that made the cell runnable
    meta: dict[str, Any] = field(default_factory=dict)  # model, scale and overrides, for the record
    trace: Trace | None = field(default=None, repr=False)  # of workload.trace_sha256
    config: dict[str, Any] = field(default_factory=dict)  # the resolved config

    @cached_property
    def key(self) -> str:
        return cell_key(self.cell)

    @property
    def cell_id(self) -> str:
        return f"{self.key}.{self.label}" if self.label else self.key


ISOLATIONS = ("group", "cell")  # one launch for many cells, or each


@dataclass
class LaunchGroup:
    """The jobs that can share one set of processes."""

    placement: RankLayout
    measure: Measure
    jobs: list[Job]


@dataclass
class LaunchPlan:
    """The plan of one launch; written to a file before its ranks start."""

    launch: int
    launch_dir: str
    measure: Measure
    placement: RankLayout
    cells: list[Cell]
    labels: list[str]
    waves: list[list[int]]  # indices into cells
    resident: list[bool]  # per wave: whether its cells fit in memory together
    calibrate: bool = False
    kernels: dict[str, str] = field(default_factory=dict)  # chosen in earlier launches
    git: dict[str, Any] | None = None  # state of the code, for records made after a crash
    calibration: dict[str, Any] | None = None
    exchanged: dict[str, int] | None = (
        None  # limits chosen earlier in the sweep (moe.parallel.algorithms)
    )
    traces: dict[str, str] = field(default_factory=dict)  # files in launch_dir by sha256
    pass_env: list[str] = field(default_factory=list)  # further variables that ranks inherit
    files: str = ""  # how the ranks' files reach the launcher; "": it is on the ranks' machine


def kernel_key(cell: Cell) -> str:
    """Key of the choice of a kernel. Cells that differ only in label or planted work share it, so
    that in all launches of a sweep such repeats differ in nothing else."""
    return cell_key(replace(cell, strategy=replace(cell.strategy, slowdown=0.0)))


def engine_and_ranks(cell: Cell) -> tuple[str, int]:
    """Key of the choice of collective algorithms, made once per sweep: engine, number of ranks.
    Messages from GPUs are never timed, so nothing is chosen by them for others."""
    place = cell.placement
    return f"{place.backend} staged" if place.staged else place.backend, place.world_size


def unique(jobs: Sequence[Job]) -> list[Job]:
    """Jobs in order, without repeats of a cell and label; raises ConfigError when repeats differ in
    how they are to be measured, since their records could not be told apart."""
    seen: dict[str, Job] = {}
    for job in jobs:
        first = seen.setdefault(job.cell_id, job)
        if first.measure != job.measure:
            raise ConfigError(
                f"measure: cell {job.cell_id} is asked for twice with different settings; "
                "allowed is one; give the repeats different labels (label=a)"
            )
    return list(seen.values())


def shape_name(placement: RankLayout) -> str:
    """Name of the shape of ranks: nodes, ranks per node, backend and threads. Cells of a shape can
    share a cluster's nodes."""
    p = placement
    device = "-cuda" if p.staged else ""  # which the backend does not tell
    return f"{p.nodes}x{p.ranks_per_node}-{p.backend}{device}-{p.threads}threads"


def by_shape(jobs: Iterable[Job]) -> dict[str, list[Job]]:
    """Jobs by the name of their shape."""
    shapes: dict[str, list[Job]] = {}
    for job in jobs:
        shapes.setdefault(shape_name(job.cell.placement), []).append(job)
    return shapes


def groups(jobs: Iterable[Job], isolation: str) -> list[LaunchGroup]:
    """Groups of jobs by placement and measure; with isolation=cell one group per job."""
    by_key: dict[Any, LaunchGroup] = {}
    for number, job in enumerate(jobs):
        alone = number if isolation == "cell" else -1
        key = (job.cell.placement, job.measure, alone)
        by_key.setdefault(key, LaunchGroup(job.cell.placement, job.measure, [])).jobs.append(job)
    return list(by_key.values())


def waves(jobs: Sequence[Job], size: int) -> list[list[int]]:
    """Splits jobs into few waves of nearly equal length: indices, at most `size` per wave.

    Jobs that differ only in their strategy or label are compared with each other, so they share a
    wave, unless they are more than `size`.
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
    packed = _pack(pieces, size)
    least = max([-(-len(jobs) // max(len(packed), 1)), *map(len, pieces)])
    shorter = (_pack(pieces, limit) for limit in range(least, size))
    return next((one for one in shorter if len(one) == len(packed)), packed)


def _pack(pieces: Iterable[list[int]], limit: int) -> list[list[int]]:
    """Joins consecutive pieces as long as they are at most `limit` together."""
    packed: list[list[int]] = []
    for piece in pieces:
        if packed and len(packed[-1]) + len(piece) <= limit:
            packed[-1].extend(piece)
        else:
            packed.append(list(piece))
    return packed


def text_of(plan: LaunchPlan) -> str:
    """A plan as it is written to a file or sent to a node."""
    return sealed(dataclasses.asdict(plan))


def save(plan: LaunchPlan, path: Path) -> None:
    write_atomic(path, text_of(plan))


def load(path: Path) -> LaunchPlan:
    """Reads a plan; raises OSError, or RecordError unless it is complete and of this version."""
    return _plan(read_sealed(path), str(path))


def from_text(text: str) -> LaunchPlan:
    """The inverse of `text_of`; raises RecordError."""
    try:
        return _plan(unsealed(text.encode()), "the plan of a launch")
    except (ValueError, RecursionError) as error:
        raise RecordError(f"the plan of a launch: {error}") from error


def _plan(data: dict[str, Any], name: str) -> LaunchPlan:
    try:
        data["measure"] = Measure(**data["measure"])
        data["placement"] = RankLayout(**data["placement"])
        data["cells"] = [cell_from_dict(cell) for cell in data["cells"]]
        return LaunchPlan(**data)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{name}: not the plan of a launch: {error}") from error
