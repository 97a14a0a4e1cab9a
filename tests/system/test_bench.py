"""The user's own command, with real ranks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runners.records import record
from runners.records.sweep_folder import read_refused
from tests.support import started

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 240
QUICK = started.QUICK


def bench(*overrides: str, folder: Path, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs runners/bench.py with its sweep folder below `folder`."""
    where = [f"hydra.sweep.dir={folder}/sweep", f"hydra.run.dir={folder}/sweep"]
    return subprocess.run(
        [sys.executable, str(root / "runners" / "bench.py"), *overrides, *where],
        capture_output=True, text=True, timeout=LIMIT_S, cwd=folder,
    )  # fmt: skip


def last_line(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def records(folder: Path) -> list[record.Record]:
    return [record.read(path) for path in record.paths(folder / "sweep")]


@pytest.mark.dist
def test_a_sweep_ends_with_records_tables_plots_and_offline_runs(tmp_path: Path) -> None:
    quick = [word for word in QUICK if not word.startswith("report")]
    done = bench("-m", "strategy=simple,tp,ep", "topk=2,4", "world_size=2", *quick, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    end = last_line(done)
    assert (end["measured"], end["failed"], end["wrong"], end["tracked"]) == (6, 0, 0, 6)
    assert 0 < end["timed_s"] < end["wall_s"]
    found = records(tmp_path)
    assert {(r.cell.strategy.name, r.cell.layer.topk) for r in found} == {
        (s, k) for s in ("simple", "tp", "ep") for k in (2, 4)
    }
    assert all((r.gate or {})["ok"] and len(r.samples.steps) >= 6 for r in found)
    assert {r.launch for r in found} == {0}  # one torchrun for all of them
    assert len({r.samples.position[-1] for r in found}) == 6
    sweep = tmp_path / "sweep"
    assert len(list(sweep.glob("wandb/**/run-*.wandb"))) == 6
    assert list(sweep.glob("plots/*.png"))
    assert list(sweep.glob("tables/*.md"))
    assert "tp" in done.stdout
    assert (tmp_path / "latest").resolve() == sweep.resolve()


@pytest.mark.dist
def test_a_single_run_takes_the_same_path(tmp_path: Path) -> None:
    done = bench("strategy=serial", "world_size=2", "tracker=none", *QUICK, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (found,) = records(tmp_path)
    assert found.outcome == "measured"
    assert found.cell.placement.world_size == 1
    assert last_line(done)["tracked"] == 0


@pytest.mark.dist
def test_a_rank_killed_in_mid_sweep_fails_its_cell_only(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "runners" / "bench.py"), "-m", "strategy=simple,tp,ep"]
    command += ["world_size=2", "tracker=none", "report=false", "measure.calibrate=false"]
    command += ["measure.samples=60", "measure.samples_max=60", "measure.block_ms=10"]
    command += ["measure.block_gloo_ms=10", f"hydra.sweep.dir={tmp_path}/sweep"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    lines = tmp_path / "sweep" / "launches" / "0" / "samples" / "rank1.jsonl"
    pid, deadline = 0, time.monotonic() + 120
    while not pid and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
        text = lines.read_text() if lines.exists() else ""
        if '"stage":"round"' in text:
            pid = json.loads(text.splitlines()[0])["pid"]
    assert pid, "the rounds never began"
    os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1, err
    end = json.loads(out.splitlines()[-1])
    assert (end["measured"], end["failed"]) == (2, 1), err
    failed = [r for r in records(tmp_path) if r.outcome == "failed"]
    assert len(failed) == 1
    error = failed[0].error or {}
    assert error["rank"] == 1
    assert "signal 9" in error["message"]
    assert (tmp_path / "sweep" / error["log"]).exists()
    assert error["log"] in err
    measured = [r for r in records(tmp_path) if r.outcome == "measured"]
    assert {r.launch for r in measured} == {1}
    assert failed[0].samples.round or failed[0].launch == 0


BAD = {
    "topk=9": ["topk=9", "num_experts=8"],
    "world_size=0": ["world_size=0", "1 to"],
    "batch_size=-1": ["batch_size=-1", "1 to"],
    "batch_size=2.5": ["batch_size=2.5", "whole numbers"],
    "dtype=int3": ["dtype", "float32"],
    "strategy=psychic": ["strategy", "psychic", "simple"],
    "bananas=1": ["bananas"],
    "backend=nccl": ["backend=nccl", "CUDA"],
    "name=../../up": ["name", "letters"],
    "num_experts=7 strategy=ep": ["num_experts", "7"],
    "model.hidden=129 strategy=tp": ["hidden", "129"],
    "model=deepseek_v3 model.scale=1": ["model.scale", "GiB"],
}


@pytest.mark.parametrize(
    ("flag", "overrides"),
    [("", text) for text in BAD]
    + [("-m", text) for text in ("topk=9", "strategy=psychic", "bananas=1", "name=../../up")],
)
def test_bad_input_is_one_line_and_starts_nothing(
    tmp_path: Path, flag: str, overrides: str
) -> None:
    done = bench(*flag.split(), *overrides.split(), "tracker=none", folder=tmp_path)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert all(word in lines[0] for word in BAD[overrides]), lines[0]
    assert not (tmp_path / "sweep" / "launches").exists()
    assert not done.stdout


def test_every_impossible_cell_is_listed_before_anything_starts(tmp_path: Path) -> None:
    done = bench("-m", "topk=2,9,10", "strategy=simple,tp", *QUICK, folder=tmp_path)
    assert done.returncode == 2
    assert "topk=9" in done.stderr
    assert "topk=10" in done.stderr
    assert not (tmp_path / "sweep" / "launches").exists()


@pytest.mark.dist
def test_impossible_cells_can_be_skipped(tmp_path: Path) -> None:
    done = bench(
        "-m", "topk=2,9", "on_invalid=skip", "world_size=1", "tracker=none", *QUICK, folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    end = last_line(done)
    assert (end["measured"], end["skipped"], end["exit_code"]) == (1, 1, 0)
    assert "1 of 2 cells correct and measured, 1 skipped" in done.stderr
    ((overrides, reason),) = read_refused(tmp_path / "sweep")
    assert "topk=9" in overrides and "topk=9" in reason


@pytest.mark.dist
def test_it_works_from_a_folder_with_a_space_and_without_being_installed(tmp_path: Path) -> None:
    root = tmp_path / "a clone"
    for part in ("moe", "runners", "analysis", "conf"):
        shutil.copytree(ROOT / part, root / part)
    done = bench("world_size=2", "strategy=ep", *QUICK, folder=root, root=root)
    assert done.returncode == 0, done.stderr
    assert last_line(done)["tracked"] == 1


@pytest.mark.dist
def test_a_dead_tracker_costs_a_warning_never_a_timing(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "wandb").write_text("not a folder")
    done = bench("world_size=1", *QUICK, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning" in done.stderr
    assert last_line(done)["measured"] == 1
