"""The gate on real ranks: right strategies pass, every mutant is caught."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def verdicts(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--local-addr=127.0.0.1", f"--nproc-per-node={request.param}", "--max-restarts=0",
               str(ROOT / "tests" / "gate_ranks.py")]  # fmt: skip
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


@pytest.mark.dist
def test_every_mutant_is_caught_at_every_dtype_and_batch(
    verdicts: dict[str, dict[str, Any]],
) -> None:
    mutants = {name: v for name, v in verdicts.items() if name.startswith("mutant")}
    assert len(mutants) == 7 * 3 * 3
    assert [name for name, verdict in mutants.items() if verdict["ok"]] == []


@pytest.mark.dist
def test_every_right_strategy_agrees_with_the_oracle(verdicts: dict[str, dict[str, Any]]) -> None:
    right = {name: v for name, v in verdicts.items() if name.startswith("right")}
    assert len(right) == (5 * 2 - 1) * 3 * 4 * 2
    assert {name: v for name, v in right.items() if not v["ok"]} == {}
    assert all(v["error"] <= v["tolerance"] and v["tokens_checked"] > 0 for v in right.values())
