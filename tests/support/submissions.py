"""Packed files as `check --submission` sees them, and what it says of them."""

from __future__ import annotations

from typing import Any

from analysis.packing import submission
from moe.spec import Cell
from runners.packed.packed_file import Packed
from runners.records.record import Record
from tests.support import analysis_factory as factory

EMULATED = {
    "dilation": 20.0,
    "ranks_per_node": 2,
    "intra_mbit_s": 90.0,
    "inter_mbit_s": 10.0,
    "mtu": 1500,
}
CHECKED = {"ok": True, "after": {"ok": True}}
SPACIOUS = {**factory.ENVIRONMENT, "cores": 8, "local_ranks": 8}
EVEN = {"expert_slots": [16384] * 8, "rank_slots": [16384] * 8}  # of 65,536 tokens and top-k 2


def measured(name: str = "tp", of: Cell | None = None, **fields: Any) -> Record:
    """A record that nothing can be said against."""
    made: dict[str, Any] = {"gate": CHECKED, "environment": SPACIOUS, **fields}
    return factory.measured(of or factory.cell(name), **made)


def packed(*records: Record, **fields: Any) -> Packed:
    """A file with these attempts, all of which were planned."""
    plan = {"cells": [{"cell_id": one.cell_id, "overrides": []} for one in records]}
    return Packed(**{"name": "a", "manifest": {}, "plan": plan, "records": records, **fields})


def review(*records: Record, **fields: Any) -> submission.Review:
    return submission.of_packed(packed(*records, **fields))


def only_problem(result: submission.Review) -> str:
    assert len(result.problems) == 1, result.problems
    return result.problems[0]
