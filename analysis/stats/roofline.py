"""How near a cell is to what its machine can do: limits from the calibration in its record.

Two limits, kept apart. Compute: the arithmetic of the step at the calibrated matrix rate, or the
weights it must read at the calibrated bandwidth for that many bytes, whichever takes longer.
Communication: every collective of the busiest rank at the calibrated alpha + beta * bytes sent; of
GPUs, whose times are no line, the least that the timed messages allow.
A fraction over 1 means that the limit is wrong, not that the cell is fast.

FLOPs and bytes are those of `moe.cost`, summed over the ranks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis import numbers
from analysis.data.cell_summary import CellSummary, summaries
from analysis.data.series import series_names
from moe import cost, peers
from moe.parallel.algorithms import fit_name
from moe.spec import RankLayout, StrategySpec

WRONG = 1.0
HEADER = (
    *("cell", "id", "median ms", "compute limit ms", "fraction", "communication limit ms"),
    "fraction",
)


@dataclass(frozen=True)
class Bound:
    """Limits in ms and the fractions of them that the median reaches; nan for what is unknown."""

    compute_ms: float
    communication_ms: float
    median_ms: float

    @property
    def compute_fraction(self) -> float:
        return self.compute_ms / self.median_ms

    @property
    def communication_fraction(self) -> float:
        return self.communication_ms / self.median_ms

    @property
    def wrong(self) -> bool:
        return max(self.compute_fraction, self.communication_fraction) > WRONG


def flops(summary: CellSummary) -> float:
    """FLOPs of the experts in one step over all ranks, without the router's (`moe.cost`); every
    rank of replicated `simple` does all of them, and each counts."""
    cell = peers.equivalent(summary.cell)
    times = cost.TRAIN_FACTOR if cell.workload.mode == "train" else 1
    return times * sum(
        cost.expert_flops(cell, cost.expected(cell, rank)) + cost.shared_flops(cell, rank)
        for rank in range(cell.placement.world_size)
    )


def weight_bytes(summary: CellSummary) -> float:
    """Least bytes of weights that all ranks together read in a step: each expert that a slot
    reached once (`moe.cost`); topk experts where the record has no slots."""
    cell = peers.equivalent(summary.cell)
    layer, work = cell.layer, cell.workload
    reached = float(min(layer.num_experts, layer.topk))  # one token reaches topk experts
    if summary.expert_slots:
        reached = float(sum(1 for count in summary.expert_slots if count))
    everyone = cell.strategy.name == "simple" and work.tokens == "replicated"
    copies = cell.placement.world_size if everyone else 1
    alone = dataclasses.replace(cell, strategy=StrategySpec(), placement=RankLayout(world_size=1))
    return copies * cost.touched_weight_bytes(alone, cost.Load(0, touched=reached))


def bound(summary: CellSummary) -> Bound | None:
    """None for a cell without a time or whose record has no calibration that can be used."""
    if not summary.calibration or not summary.measured:
        return None
    try:
        compute_s = max(
            flops(summary) / matrix_rate(summary), weight_bytes(summary) / read_rate(summary)
        )
        return Bound(1e3 * compute_s, 1e3 * communication_s(summary), summary.median_ms)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def matrix_rate(summary: CellSummary) -> float:
    """FLOP/s of all ranks together at the cell's dtype; KeyError where it is not calibrated."""
    calibration, dtype = summary.calibration, summary.cell.layer.dtype
    alone = float(calibration["matmul_flops_per_s"][dtype]["peak"])
    shared = (calibration.get("shared") or {}).get("matmul_flops_per_s", {}).get(dtype)
    return max(alone, float(shared or 0.0))


def read_rate(summary: CellSummary) -> float:
    """Bytes/s of all ranks together: from memory when cold; warm at the best rate that sets of at
    least a rank's size of weights are re-read with, on as many cores, or GPUs, as there are
    ranks."""
    calibration, ranks = summary.calibration, summary.world_size
    shared = (calibration.get("shared") or {}).get("read_bytes_per_s") or 0.0
    memory = max(float(calibration["read_bytes_per_s"]), float(shared))
    on_gpu = summary.cell.placement.device == "cuda"
    if summary.cell.workload.cache == "cold":
        return memory
    each = weight_bytes(summary) / ranks
    rates = {float(size): float(r) for size, r in calibration["read_warm_bytes_per_s"].items()}
    fitting = [size for size in rates if size <= each] or [min(rates)]
    workers = ranks if on_gpu or summary.emulation else min(ranks, summary.cores or ranks)
    return max(memory, max(rates[s] for s in rates if s >= max(fitting)) * workers)


def communication_s(summary: CellSummary) -> float:
    """Seconds of the busiest rank's collectives: sum of alpha * calls + beta * bytes sent; 0 for
    none. KeyError for a collective that the calibration does not have."""
    fits = summary.calibration.get("collectives") or {}
    on_gpu = summary.cell.placement.device == "cuda"
    busiest = 0.0
    for rank in summary.traffic:
        total = 0.0
        for call in rank:
            fit = fits[fit_name(str(call["collective"]), str(call.get("algorithm") or ""))]
            sent, calls = float(call.get("sent_bytes") or 0), int(call.get("calls") or 1)
            if on_gpu and fit.get("points"):
                total += calls * least_s(fit["points"], sent / calls)
            else:
                total += fit["alpha_s"] * calls + fit["beta_s_per_byte"] * sent
        busiest = max(busiest, total)
    return busiest


def least_s(points: Sequence[Sequence[float]], sent: float) -> float:
    """Least time in s of one call that sends so many bytes, by the timed [bytes, median, minimum]:
    of the largest that is not larger, and at the best rate of all."""
    by_size = sorted(points, key=lambda point: point[0])
    smaller = [least for size, _, least in by_size if size <= sent]
    rates = [size / least for size, _, least in points if size]
    return max([*smaller[-1:], sent / max(rates) if rates else 0.0])


def bounded(cells: pd.DataFrame) -> list[tuple[str, CellSummary, Bound]]:
    """(series, cell, limits) of every cell that has limits."""
    named = zip(series_names(cells), summaries(cells), strict=True)
    return [(name, summary, limit) for name, summary in named if (limit := bound(summary))]


def wrong(cells: pd.DataFrame) -> list[str]:
    """A line per cell that is faster than a limit: the limit, or its calibration, is wrong."""
    return [
        f"{name} {summary.cell_id} reaches "
        f"{max(limit.compute_fraction, limit.communication_fraction):.0%} of its limit; "
        "calibrate again on a quiet machine (python -m runners.calibrate)"
        for name, summary, limit in bounded(cells)
        if limit.wrong
    ]


def rows(cells: pd.DataFrame) -> list[list[str]]:
    """Header and a line per cell that has limits; nothing where none has."""
    lines = [
        [
            name, summary.cell_id, numbers.short(limit.median_ms),
            numbers.short(limit.compute_ms), _percent(limit.compute_fraction),
            numbers.short(limit.communication_ms), _percent(limit.communication_fraction),
        ]
        for name, summary, limit in bounded(cells)
    ]  # fmt: skip
    return [list(HEADER), *lines] if lines else []


def _percent(fraction: float) -> str:
    return f"{fraction:.1%}" if math.isfinite(fraction) else "-"
