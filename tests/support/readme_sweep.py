"""README's sweep at two nodes of two ranks, however its ranks are started: what it must leave."""

from __future__ import annotations

from pathlib import Path

import analysis

OVERRIDES = ("strategy=simple,tp,ep", "topk=2,4,8", "world_size=4", "hosts.ranks_per_node=2",
             "threads=1")  # fmt: skip
KEYS = ("1333790e6556", "2fa68b601b2b", "4497f70dc935", "916eb1c3d2f1", "ae34df3c5b9c",
        "d17e046027a3", "d2b0530c1628", "d3c4ab23edbb", "da0cc22e9e78")  # fmt: skip


def check(sweep_dir: Path) -> None:
    """Its cells, by key, are all measured, once each."""
    frame = analysis.load(sweep_dir)
    assert tuple(sorted(frame["key"])) == KEYS
    assert set(frame["outcome"]) == {"measured"}
    assert set(frame["nodes"]) == {2}
