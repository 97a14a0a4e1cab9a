"""torchtitan and DeepSpeed for real: `make peers` runs this where they are installed.

Nothing here skips: a system that is not there, or no longer computes this project's function,
fails. Named so that `make test`, which has not got them, does not collect it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dist.test_peers import bench, ranks, records

SQUARE = ["model.dim_out=32", "model.activation=silu_gated", "model.bias=none"]
PEERS = ("torchtitan", "deepspeed", "deepspeed:autoep")
CASES = {"torchtitan": 16, "deepspeed": 32, "deepspeed:autoep": 32}  # torchtitan has one dtype


@pytest.mark.dist
@pytest.mark.parametrize("number", [1, 2, 4])
def test_they_compute_this_projects_function(number: int) -> None:
    verdicts = ranks(number, list(PEERS))
    assert {name: v for name, v in verdicts.items() if not v["ok"]} == {}
    found = {peer: sum(name.split(" ")[0] == peer for name in verdicts) for peer in PEERS}
    assert found == CASES
    moved = [v["sent_bytes"] > 0 for v in verdicts.values()]
    assert all(moved) if number > 1 else not any(moved)


@pytest.mark.dist
def test_they_are_swept_beside_ours(tmp_path: Path) -> None:
    names = "ep,peer_torchtitan,peer_deepspeed,peer_deepspeed_autoep"
    own = ["tokens=sharded", "workload=zipf", "dtype=bfloat16", "mode=forward,train"]
    done = bench(tmp_path, f"strategy={names}", *own, *SQUARE, "measure.phases=2")
    assert done.returncode == 0, done.stderr
    found = records(tmp_path)
    assert [r.outcome for r in found] == ["measured"] * 8
    theirs = [r for r in found if r.cell.strategy.name.startswith("peer_")]
    assert all("experts" in (r.phases or {})["per_rank_ns"][0] for r in theirs)
