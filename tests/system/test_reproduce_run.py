"""A sweep, packed, and measured again: with real ranks, by the commands that a user types."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runners.records import record
from tests.support import started

nothing_stays, interruptible = started.nothing_stays, started.interruptible
ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 240
VERDICTS = ("same within 2%", "faster", "slower", "no difference shown")
SWEEP = ["-m", "strategy=simple,tp", "topk=1,2", "world_size=2", "tracker=none", *started.QUICK]


def python(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=LIMIT_S, cwd=folder,
        env=variables,
    )  # fmt: skip


def sweep(folder: Path) -> None:
    bench = str(ROOT / "runners" / "bench.py")
    done = python(bench, *SWEEP, "hydra.sweep.dir=there", folder=folder)
    assert done.returncode == 0, done.stderr


def keys(folder: Path) -> set[str]:
    return {record.read(path).cell_id for path in record.paths(folder)}


@pytest.mark.dist
def test_a_packed_sweep_is_measured_again_with_a_verdict_for_each_cell(tmp_path: Path) -> None:
    sweep(tmp_path)
    packed = python("-m", "analysis", "pack", "there", "-o", "x.moebench", "--no-pictures",
                    folder=tmp_path)  # fmt: skip
    assert packed.returncode == 0, packed.stderr
    again = ["x.moebench", "--run", "-o", "here", "--override", "tracker=none", "--format", "csv"]
    done = python("-m", "analysis", "reproduce", *again, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 cells correct and measured" in done.stderr  # the sweep's own words
    rows = [line for line in done.stdout.splitlines() if line.startswith('"')]
    assert len(rows) == 4
    assert all(row.rsplit(",", 1)[1] in VERDICTS for row in rows)
    assert keys(tmp_path / "here") == keys(tmp_path / "there")
    measure = {json.dumps(record.read(path).measure, sort_keys=True)
               for name in ("there", "here") for path in record.paths(tmp_path / name)}  # fmt: skip
    assert len(measure) == 1
    assert "There and here are one machine, with the same commit." in done.stdout


@pytest.mark.dist
@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_reproduction_leaves_a_sweep_that_can_be_shown(tmp_path: Path) -> None:
    sweep(tmp_path)
    longer = ("tracker=none", "measure.samples=5000", "measure.samples_max=5000")
    overrides = [word for text in longer for word in ("--override", text)]
    words = ["-m", "analysis", "reproduce", "there", "--run", "-o", "here", *overrides]
    process = subprocess.Popen(
        [sys.executable, *words], cwd=tmp_path, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    started.STARTED.append(process)
    samples = tmp_path / "here" / "launches" / "0" / "samples"
    started.wait_for(lambda: any(samples.glob("rank*.jsonl")), process)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "reproduce there --with" in err
