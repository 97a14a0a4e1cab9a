"""How near a cell is to what its machine can do: limits from the calibration in its record.

Two limits, kept apart. Compute: the arithmetic of the step at the calibrated matrix rate, or the
weights it must read at the calibrated bandwidth for that many bytes, whichever takes longer.
Communication: every collective of the busiest rank at the calibrated alpha + beta * bytes sent.
A fraction over 1 means that the limit is wrong, not that the cell is fast.

    S = B*K slots, D in, H hidden, O out, E experts, R ranks
    FLOPs of a step = 2*S*(D*H + H*O), gated 2*S*(2*D*H + H*O); shared experts B slots each
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis import numbers
from analysis.panels import series_names
from moe.spec import DTYPE_BYTES

TRAIN_FACTOR = 3  # a backward pass does twice the products of the forward pass
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


def matrix_sizes(cell: Any) -> int:
    """Elements of one expert's matrices: DH + HO, gated 2DH + HO."""
    gates = 2 if str(cell["activation"]).endswith("gated") else 1
    return int(cell["hidden"]) * (gates * int(cell["dim"]) + int(cell["dim_out"]))


def flops(cell: Any) -> float:
    """Of one step over all ranks; replicated `simple` does the whole of it on every rank."""
    slots = int(cell["batch_size"]) * (int(cell["topk"]) + int(cell["shared_experts"]))
    times = TRAIN_FACTOR if cell["mode"] == "train" else 1
    return 2.0 * slots * matrix_sizes(cell) * times * _copies(cell)


def _copies(cell: Any) -> int:
    everyone = cell["strategy"] == "simple" and cell["tokens"] == "replicated"
    return int(cell["world_size"]) if everyone else 1


def weight_bytes(cell: Any) -> float:
    """Least that all ranks together must read: the experts that slots can have reached, once."""
    reached = min(int(cell["num_experts"]), int(cell["topk"]))  # one token reaches topk experts
    slots = cell["expert_slots"]
    if isinstance(slots, list) and slots:
        reached = sum(1 for count in slots if count)
    experts = reached + int(cell["shared_experts"])
    return float(experts * matrix_sizes(cell) * DTYPE_BYTES[cell["dtype"]] * _copies(cell))


def bound(cell: Any) -> Bound | None:
    """None for a cell without a time or whose record has no calibration that can be used."""
    calibration = cell["calibration"]
    if not calibration or cell["outcome"] != "measured":
        return None
    try:
        compute = 1e3 * max(flops(cell) / matrix_rate(cell), weight_bytes(cell) / read_rate(cell))
        talk = 1e3 * communication_s(cell)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
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
            fit = fits[str(call["collective"])]
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
