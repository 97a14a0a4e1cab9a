"""The parts of a run, and when each must have ended. Stdlib only."""

from __future__ import annotations

from collections.abc import Sequence

BUDGET_S = 540.0
PARTS = {  # share of the budget, in seconds of BUDGET_S, and what the part does
    "facts": (5, "card, driver, versions, a copy, a product, what a launch and a wait cost"),
    "forms": (64, "strategies x kernels x dtypes x modes at one rank through the whole check"),
    "waits": (16, "waits of a step against their budget; CUDA graphs against eager steps"),
    "ranks": (33, "2 and 4 ranks on the one GPU, staged through the host: check only"),
    "kernels": (205, "bench.py: expert kernels and their rivals, forward, train and CUDA graphs"),
    "bench": (205, "bench.py at full size: simple beside transformers, three models, four batches"),
}
RESERVE = 1 - sum(share for share, _ in PARTS.values()) / BUDGET_S  # to start and to pack


def deadlines(names: Sequence[str], budget_s: float) -> dict[str, float]:
    """When each part must have ended, in seconds since the run began. The budget is divided among
    the parts that are named; what one leaves of its time is the later ones'."""
    whole = sum(PARTS[name][0] for name in names)
    ends: dict[str, float] = {}
    before = 0
    for name in names:
        before += PARTS[name][0]
        ends[name] = budget_s * (1 - RESERVE) * before / whole
    return ends
