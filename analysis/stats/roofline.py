"""How near a cell is to what its machine can do: limits from the calibration in its record.

Two limits, kept apart. Compute: the arithmetic of the step at the calibrated matrix rate, or the
weights it must read at the calibrated bandwidth for that many bytes, whichever takes longer.
Communication: every collective of the busiest rank at the calibrated alpha + beta * bytes sent.
A fraction over 1 means that the limit is wrong, not that the cell is fast.

FLOPs and bytes are those of `moe.cost`, summed over the ranks.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis import numbers
from analysis.data.facets import series_names
from moe import cost, peers
from moe.parallel.algorithms import fit_name
from moe.spec import RankLayout, StrategySpec
from runners.records import flat_row

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


def flops(cell: Any) -> float:
    """Of the experts in one step over all ranks, the router's left out; replicated `simple` does
    the whole of it on every rank."""
    of = peers.equivalent(flat_row.cell_of(cell))
    times = cost.TRAIN_FACTOR if of.workload.mode == "train" else 1
    return times * sum(
        cost.expert_flops(of, cost.expected(of, rank)) + cost.shared_flops(of, rank)
        for rank in range(of.placement.world_size)
    )


def weight_bytes(cell: Any) -> float:
    """Least that all ranks together must read: the experts that slots can have reached, once."""
    of = peers.equivalent(flat_row.cell_of(cell))
    layer, work = of.layer, of.workload
    reached = float(min(layer.num_experts, layer.topk))  # one token reaches topk experts
    slots = cell["expert_slots"]
    if isinstance(slots, list) and slots:
        reached = float(sum(1 for count in slots if count))
    everyone = of.strategy.name == "simple" and work.tokens == "replicated"
    copies = of.placement.world_size if everyone else 1
    alone = dataclasses.replace(of, strategy=StrategySpec(), placement=RankLayout(world_size=1))
    return copies * cost.touched_weight_bytes(alone, cost.Load(0, touched=reached))


def bound(cell: Any) -> Bound | None:
    """None for a cell without a time or whose record has no calibration that can be used."""
    calibration = cell["calibration"]
    if not calibration or cell["outcome"] != "measured":
        return None
    try:
        compute = 1e3 * max(flops(cell) / matrix_rate(cell), weight_bytes(cell) / read_rate(cell))
        talk = 1e3 * communication_s(cell)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return Bound(compute, talk, float(cell["median_ms"]))


def matrix_rate(cell: Any) -> float:
    """FLOP/s of all ranks together at this dtype."""
    calibration, dtype = cell["calibration"], str(cell["dtype"])
    alone = float(calibration["matmul_flops_per_s"][dtype]["peak"])
    shared = (calibration.get("shared") or {}).get("matmul_flops_per_s", {}).get(dtype)
    return max(alone, float(shared or 0.0))


def read_rate(cell: Any) -> float:
    """Bytes/s of all ranks together: from memory when cold; warm at the best rate that sets of at
    least a rank's size of weights are re-read with, on as many cores as there are ranks."""
    calibration = cell["calibration"]
    shared = (calibration.get("shared") or {}).get("read_bytes_per_s") or 0.0
    memory = max(float(calibration["read_bytes_per_s"]), float(shared))
    if cell["cache"] == "cold":
        return memory
    ranks = int(cell["world_size"])
    each = weight_bytes(cell) / ranks
    rates = {float(size): float(r) for size, r in calibration["read_warm_bytes_per_s"].items()}
    held = [size for size in rates if size <= each] or [min(rates)]
    workers = min(ranks, int(cell["cores"] or ranks))
    return max(memory, max(rates[s] for s in rates if s >= max(held)) * workers)


def communication_s(cell: Any) -> float:
    """alpha * calls + beta * bytes over the collectives of the busiest rank; 0 for none.

    KeyError for a collective that the calibration does not have.
    """
    fits = cell["calibration"].get("collectives") or {}
    busiest = 0.0
    for rank in cell["traffic"]:
        total = 0.0
        for call in rank:
            fit = fits[fit_name(str(call["collective"]), str(call.get("algorithm") or ""))]
            sent = float(call.get("sent_bytes") or 0)
            total += fit["alpha_s"] * int(call.get("calls") or 1) + fit["beta_s_per_byte"] * sent
        busiest = max(busiest, total)
    return busiest


def wrong(cells: pd.DataFrame) -> list[str]:
    """Cells faster than a limit: the limit, or what it was made from, is wrong."""
    found = []
    for name, (_, cell) in zip(series_names(cells), cells.iterrows(), strict=True):
        limit = bound(cell)
        if limit and limit.wrong:
            fraction = max(limit.compute_fraction, limit.communication_fraction)
            found.append(
                f"{name} {cell['cell_id']} reaches {fraction:.0%} of its limit; "
                "calibrate again on a quiet machine (python -m runners.calibrate)"
            )
    return found


def rows(cells: pd.DataFrame) -> list[list[str]]:
    """Header and a line per cell that has limits; nothing where none has."""
    found = []
    for name, (_, cell) in zip(series_names(cells), cells.iterrows(), strict=True):
        limit = bound(cell)
        if limit:
            found.append([
                name, str(cell["cell_id"]), numbers.short(limit.median_ms),
                numbers.short(limit.compute_ms), _percent(limit.compute_fraction),
                numbers.short(limit.communication_ms), _percent(limit.communication_fraction),
            ])  # fmt: skip
    return [list(HEADER), *found] if found else []


def _percent(fraction: float) -> str:
    return f"{fraction:.1%}" if math.isfinite(fraction) else "-"
