"""A real `wandb agent` whose program is our command, against the loopback stand-in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.sources import wandb_api
from runners.records import flat_row, record
from tests.support.started import QUICK
from tests.support.wandb_server import ENTITY, StandIn

ROOT = Path(__file__).resolve().parents[2]
AGENT = """
from wandb.wandb_agent import Agent
Agent.POLL_INTERVAL = 0.5  # seconds, of 5
from wandb.cli.cli import cli
cli()
"""
COMMAND = ["${env}", "python", str(ROOT / "runners" / "bench.py"), "-m", "${args_no_hyphens}"]


@pytest.mark.dist
def test_an_agents_values_become_a_sweep_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`strategy: "simple,ep"` is one value to W&B and two cells to us; the agent's own settings
    (WANDB_RUN_ID, WANDB_SWEEP_ID, WANDB_SWEEP_PARAM_PATH, WANDB_DIR) are in no run of ours."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    with StandIn() as server:
        values = {"strategy": "simple,ep", "world_size": 1, "topk": 2, "tracker.mode": "online"}
        server.sweep = {"command": [*COMMAND, *QUICK], "program": "bench.py", "method": "grid"}
        args = {name: {"value": value} for name, value in values.items()}
        server.commands = [{"type": "run", "run_id": "w1", "program": "bench.py", "args": args}]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            [sys.executable, "-c", AGENT, "agent", "--count", "1", f"{ENTITY}/theirs/s1"],
            cwd=tmp_path,
            env={**os.environ, **server.environment(), "PATH": path, "WANDB_CONFIG_DIR": "none"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        (sweep,) = tmp_path.glob("outputs/*_sweep")
        made = [record.read(path) for path in record.paths(sweep)]
        assert sorted(one.cell.strategy.name for one in made) == ["ep", "simple"], done.stderr
        assert {(run.entity, run.project) for run in server.runs.values()} == {(ENTITY, "theirs")}
        assert "w1" not in server.runs and len(server.runs) == 2, done.stderr
        monkeypatch.chdir(tmp_path)
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        rows = wandb_api.load(f"wandb:{ENTITY}/theirs", samples=True)
    wanted = [flat_row.row(one, samples=True) for one in made]
    by_id = {str(row["attempt_id"]): row for row in rows}
    assert [by_id[str(row["attempt_id"])] for row in wanted] == wanted
