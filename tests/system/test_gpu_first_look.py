"""The GPU script on a processor: it must work on the day that a GPU is at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_dry_run_goes_through_all_parts(tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu.first_look", *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    run(str(tmp_path), "600")
    lines = (tmp_path / "first_look.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    gates = [row for row in rows if row["part"] == "gate"]
    assert len(gates) == 7 * 4 * 3 * 2
    assert [row for row in gates if not row.get("ok")] == []
    assert all(0 <= row["rms_share"] < 1 for row in gates)
    speed = [row for row in rows if row["part"] == "speed"]
    assert [row["model"] for row in speed] == ["tiny"]
    assert speed[0]["grouped_ms"] > 0 and "error" not in speed[0]
    assert [row["part"] for row in rows][-1] == "end"
    printed = run("table", str(tmp_path / "first_look.jsonl"))
    assert "gate: 168 of 168 agree" in printed
    assert "float16: largest share of a limit: row 0." in printed
