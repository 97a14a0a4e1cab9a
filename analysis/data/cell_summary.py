"""One cell with all its attempts put together: what verdicts, tables, plots and the fit read.

Cells travel as `CellSummary` objects. Where they are grouped or filtered by columns that a user
names, they travel as a frame with one row per cell (`cells_frame`): its column `summary` holds the
object each row was made of, and `summaries` gives these back.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from moe.spec import Cell
from runners.records import emulation, flat_row, forced_balance


@dataclass(frozen=True, eq=False)
class CellSummary:
    """A cell as one host measured it by one metric; equal only to itself.

    Figures are of one step, in ms, and nan unless the outcome is "measured". A detail is None, a
    text empty, where no attempt recorded it; details mean what `analysis.data.schema` says.
    """

    cell: Cell
    cell_id: str
    host: str
    metric: str
    outcome: str
    load: str = ""  # the workload with its parameter, see `load_of`
    attempts: list[str] = field(default_factory=list)  # ids
    sweeps: list[str] = field(default_factory=list)
    index: list[int] = field(default_factory=list)  # positions of the attempts in their frame
    launches: int = 0  # measured
    rounds: int = 0
    flags: list[str] = field(default_factory=list)
    basis: str = ""  # what the intervals cover
    median_ms: float = math.nan
    low_ms: float = math.nan
    high_ms: float = math.nan
    mean_ms: float = math.nan
    mean_low_ms: float = math.nan
    mean_high_ms: float = math.nan
    latency_ms: float = math.nan
    latency_low_ms: float = math.nan
    latency_high_ms: float = math.nan
    start_ms: float = math.nan
    throughput: float = math.nan  # tokens per second, from the mean
    throughput_low: float = math.nan
    throughput_high: float = math.nan
    key: str = ""
    label: str = ""
    model: str = ""
    cpu_model: str = ""
    gpu_model: str = ""
    cores: int | None = None
    memory_total_bytes: int | None = None
    kernel_ran: str = ""
    skew_lambda: float | None = None
    expert_skew_lambda: float | None = None
    rank_slots: list[float] = field(default_factory=list)
    expert_slots: list[float] = field(default_factory=list)
    phase_ms: dict[str, float] = field(default_factory=dict)
    phase_total_ms: float | None = None
    phase_per_rank_ms: list[dict[str, float]] = field(default_factory=list)
    traffic: list[list[dict[str, Any]]] = field(default_factory=list)
    sent_bytes_max: int | None = None
    busbw_bytes_max: int | None = None
    sent_bytes_total: int | None = None
    sent_bytes_by_collective: dict[str, int] = field(default_factory=dict)
    peak_bytes_max: int | None = None
    weights_bytes_max: int | None = None
    step_bytes_max: int | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    emulation: dict[str, Any] = field(default_factory=dict)  # empty for real ranks
    floor_ms: float | None = None
    stop_rule: str = ""
    error_message: str = ""
    error_log: str = ""
    gate_error: float | None = None
    gate_detail: str = ""
    notes: list[str] = field(default_factory=list)
    drift: float | None = None

    @property
    def measured(self) -> bool:
        return self.outcome == "measured"

    @property
    def checked(self) -> bool:
        """Whether it was proven right and is not to be timed: that it has no time is no fault."""
        return self.outcome == "checked"

    @property
    def strategy(self) -> str:
        return self.cell.strategy.name

    @property
    def world_size(self) -> int:
        return self.cell.placement.world_size

    @property
    def cluster(self) -> str:
        """The emulated cluster in words; empty for real ranks."""
        known = emulation.of_values(self.emulation)
        return known.words if known else ""

    @cached_property
    def config(self) -> dict[str, Any]:
        """The fields of the cell by the names of their columns."""
        return flat_row.flat_config(self.cell)

    def value(self, column: str) -> Any:
        """What `cells_frame` has in this column; AttributeError for a column it does not have."""
        return self.config[column] if column in self.config else getattr(self, column)


FIELDS = tuple(f.name for f in dataclasses.fields(CellSummary))


def of_attempt(attempt: Mapping[str, Any], figures: Mapping[str, Any]) -> CellSummary:
    """The summary with the cell and the details of one attempt (a row) and these other fields."""
    details = {name: attempt[name] for name in FIELDS if name in attempt}
    fields = {**details, "load": load_of(attempt), **figures}
    return CellSummary(flat_row.cell_of(attempt), **fields)


def cells_frame(cells: Iterable[CellSummary]) -> pd.DataFrame:
    """One row per cell: its config, the fields of its CellSummary, and itself as `summary`."""
    return pd.DataFrame([
        {**s.config, **{n: getattr(s, n) for n in FIELDS if n != "cell"}, "summary": s}
        for s in cells
    ])  # fmt: skip


def summaries(cells: pd.DataFrame) -> list[CellSummary]:
    """The CellSummary of every row of a frame made by `cells_frame`, or of some of its rows."""
    return list(cells["summary"])


def measured(cells: pd.DataFrame) -> pd.DataFrame:
    """The rows of cells, or of attempts, that were measured."""
    return cells[cells["outcome"] == "measured"]


def load_of(attempt: Mapping[str, Any]) -> str:
    """The workload of a row in words: "learned", "forced balance", "zipf 1.2", "hot_rank 0.5 of ep
    4", "trace 1a2b3c4d"."""
    work = flat_row.cell_of(attempt).workload
    words = [forced_balance.label(work.kind)]
    words += [f"{work.parameter:g}"] if work.parameter else []
    words += [f"of ep {work.nominal_ep}"] if work.nominal_ep else []
    words += [work.trace_sha256[:8]] if work.trace_sha256 else []
    return " ".join(words)
