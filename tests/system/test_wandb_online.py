"""The real client against a loopback stand-in: what is sent, synced and read back.

This proves the client's side only, not what W&B's own servers do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import analysis
from analysis.errors import SourceError, SourceWarning
from analysis.sources import wandb_api, wandb_file
from runners.host.project_paths import CODE as ROOT
from runners.records import flat_row
from runners.records.record import Record
from runners.track.client import TrackerResult, descendants, run_tracker
from tests.support import wandb_records
from tests.support.started import QUICK
from tests.support.wandb_server import ENTITY, StandIn

PROJECT = f"wandb:{ENTITY}/p"
LIMIT_S = 120.0
BAD = {3: "failed", 4: "wrong"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        if name != "WANDB_SERVICE":  # this process's own W&B process, from an earlier test
            monkeypatch.delenv(name)
    for name in ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "home"))
    with StandIn() as running:
        point_at(running, monkeypatch)
        yield running


def point_at(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)


def write(sweep: Path, found: list[Record]) -> list[Record]:
    wandb_records.write_sweep(sweep, found)
    return found


def track(sweep: Path, found: list[Record], mode: str = "online") -> TrackerResult:
    tracker = {"mode": mode, "project": "p"}
    return run_tracker(sweep, [r.attempt_id for r in found], tracker, LIMIT_S)


def send(result: TrackerResult, folder: Path) -> None:
    """Runs the printed line, with the tests' own python and wandb."""
    assert result.sync_command.startswith(("wandb sync ", "python -m runners.track "))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        result.sync_command, shell=True, check=True, cwd=folder, env=environment,
        timeout=LIMIT_S, capture_output=True,
    )  # fmt: skip


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: str(row["created"]))


def wanted(found: list[Record], samples: bool = False) -> list[dict[str, Any]]:
    return [flat_row.row(record, samples) for record in found]


def lines(server: StandIn) -> dict[str, int]:
    return {name: len(run.history) for name, run in server.runs.items()}


def test_online_then_api_gives_the_records_rows(server: StandIn, tmp_path: Path) -> None:
    found = write(tmp_path, wandb_records.grid(BAD))
    assert track(tmp_path, found) == TrackerResult(True, 9, "", "", "online")
    server.requests.clear()
    assert plain(wandb_api.load(PROJECT)) == wanted(found)
    assert Counter(server.requests)["Runs"] == 1
    assert len(server.requests) <= 3
    assert plain(wandb_api.load(PROJECT, samples=True)) == wanted(found, samples=True)
    assert {run.state for run in server.runs.values()} == {"finished", "failed"}
    before = lines(server)
    assert track(tmp_path, found).runs == 0
    assert lines(server) == before


def test_a_synced_sweep_reads_the_same_and_is_synced_once(server: StandIn, tmp_path: Path) -> None:
    sweep = tmp_path / "a sweep"
    found = write(sweep, wandb_records.grid(BAD))
    result = track(sweep, found, "offline")
    assert server.requests == []
    send(result, tmp_path)
    assert plain(wandb_api.load(PROJECT, samples=True)) == wanted(found, samples=True)
    again = track(sweep, found, "offline")
    assert (again.runs, again.sync_command) == (0, "")
    assert track(sweep, found, "online").runs == 0


def test_three_sources_give_one_frame(server: StandIn, tmp_path: Path) -> None:
    found = write(tmp_path, wandb_records.grid(BAD))
    send(track(tmp_path, found, "offline"), tmp_path)
    sources = (tmp_path, tmp_path / "wandb", PROJECT)
    truth, *others = (analysis.load(source, samples=True) for source in sources)
    assert len(truth) == 9
    for other in others:
        pd.testing.assert_frame_equal(truth, other)


def test_offline_runs_sent_online_are_not_synced_again(server: StandIn, tmp_path: Path) -> None:
    found = write(tmp_path, wandb_records.grid(size=2))
    assert track(tmp_path, found, "offline").sync_command
    assert track(tmp_path, found, "online") == TrackerResult(True, 2, "", "", "online")


def test_filters_reach_the_server(server: StandIn, tmp_path: Path) -> None:
    track(tmp_path, write(tmp_path, wandb_records.grid()))
    for query, count in (
        ("topk=2,4&strategy=ep", 2),
        ("job_type=tp", 3),
        ("group=2026-01-02_03-04-05_topk&config.topk=8", 3),
        ('filters={"summary_metrics.num_samples": {"$gt": 5}}', 9),
        ("tag=oversubscribed", 9),
    ):
        assert len(wandb_api.load(f"{PROJECT}?{query}")) == count, query


@pytest.mark.parametrize("source", ["wandb:", "wandb:a/b/c", "wandb:/p", "wandb:a/p?x", "a/p"])
def test_what_is_no_project_is_refused(source: str) -> None:
    with pytest.raises(SourceError, match="allowed is"):
        wandb_api.parse(source)


def test_a_project_that_is_not_there(server: StandIn) -> None:
    with pytest.raises(SourceError, match="wandb:tester/nope: cannot be read"):
        wandb_api.load("wandb:tester/nope")


def test_foreign_and_unfinished_runs_are_named(server: StandIn, tmp_path: Path) -> None:
    track(tmp_path, write(tmp_path, wandb_records.grid(size=2)))
    server.stored("foreign", entity=ENTITY, project="p")
    next(iter(server.runs.values())).state = "crashed"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SourceWarning)
        assert len(wandb_api.load(PROJECT)) == 2
    told = " ".join(str(w.message) for w in caught)
    assert "run foreign left out: not a run of this project" in told
    assert "is crashed" in told


def test_samples_that_are_missing_are_said(server: StandIn, tmp_path: Path) -> None:
    track(tmp_path, write(tmp_path, wandb_records.grid(size=1)))
    del next(iter(server.runs.values())).history[-1]
    with pytest.warns(SourceWarning, match="6 of its 7 samples"):
        assert wandb_api.load(PROJECT, samples=True) == []


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_waited_for(server: StandIn, tmp_path: Path, status: int) -> None:
    found = write(tmp_path, wandb_records.grid(size=2))
    server.fail(status, seconds=2.0)
    assert track(tmp_path, found) == TrackerResult(True, 2, "", "", "online")
    server.fail(status, seconds=1.0, only="HistoryPage")
    assert plain(wandb_api.load(PROJECT, samples=True)) == wanted(found, samples=True)


def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("INIT", "FINISH", "HTTP"):
        monkeypatch.setenv(f"WANDB_{name}_TIMEOUT", "4")


def refuse(server: StandIn) -> None:
    server.stop()


def deny(server: StandIn) -> None:
    server.fail(401)


def never_start(server: StandIn) -> None:
    server.fail(503, only="UpsertBucket")


@pytest.mark.parametrize("fault", [refuse, deny, never_start])
def test_no_server_costs_a_warning_and_nothing_else(
    server: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[StandIn], None],
) -> None:
    short_timeouts(monkeypatch)
    found = write(tmp_path, wandb_records.grid(size=2))
    fault(server)
    result = track(tmp_path, found)
    assert (result.ok, result.runs, result.mode) == (False, 2, "offline"), result.warning
    assert "writing offline instead" in result.warning
    assert os.environ["WANDB_API_KEY"] not in result.warning
    assert plain(wandb_file.load(tmp_path, samples=True)) == wanted(found, samples=True)


def test_a_server_gone_in_mid_run(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that was on its way and those after it wait on disk; the printed line sends all."""
    short_timeouts(monkeypatch)
    found = write(tmp_path, wandb_records.grid(size=3))
    vanish_at(server, "file_stream")
    result = track(tmp_path, found)
    assert (result.ok, result.runs) == (False, 3)
    assert plain(wandb_file.load(tmp_path, samples=True)) == wanted(found, samples=True)
    for name in ("INIT", "FINISH", "HTTP"):
        monkeypatch.delenv(f"WANDB_{name}_TIMEOUT")
    with StandIn() as later:
        point_at(later, monkeypatch)
        send(result, tmp_path)
        assert plain(wandb_api.load(PROJECT, samples=True)) == wanted(found, samples=True)
        assert track(tmp_path, found, "offline") == TrackerResult(True, 0, "", "", "offline")


def vanish_at(server: StandIn, request: str) -> None:
    def fault(asked: str) -> int | None:
        if asked == request:
            threading.Thread(target=server.stop, daemon=True).start()
            return 503
        return None

    server.fault = fault


def test_an_interrupted_online_tracker_is_completed(server: StandIn, tmp_path: Path) -> None:
    """Killed while its second run was open: the replay adds what lacks and doubles no row."""
    found = write(tmp_path, wandb_records.grid(size=3, count=50))
    server.fault = lambda asked: time.sleep(0.5) if asked == "file_stream" else None
    command = [sys.executable, "-m", "runners.track", str(tmp_path), "--mode", "online"]
    process = subprocess.Popen([*command, "--project", "p"], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for(lambda: len(server.runs) == 2)
    family = [process.pid, *descendants(process.pid)]
    for pid in family:
        os.kill(pid, signal.SIGKILL)
    process.wait(timeout=20)
    server.fault = lambda asked: None
    assert any(run.state == "running" for run in server.runs.values())
    assert track(tmp_path, found).ok
    assert set(lines(server).values()) == {51}
    assert plain(wandb_api.load(PROJECT, samples=True)) == wanted(found, samples=True)


@pytest.mark.parametrize("last_step", [2, 6])
def test_half_a_run_on_the_server_is_completed(
    server: StandIn, tmp_path: Path, last_step: int
) -> None:
    """Three of seven rows arrived, with a summary as old as they are, or newer."""
    found = write(tmp_path, wandb_records.grid(size=1))
    track(tmp_path, found)
    run = next(iter(server.runs.values()))
    spans = [json.loads(line)["makespan_ms"] for line in run.history]
    del run.history[3:]
    run.summary["_step"] = last_step
    run.state = "crashed"
    assert track(tmp_path, found) == TrackerResult(True, 1, "", "", "online")
    after = [json.loads(line) for line in run.history]
    assert [row["makespan_ms"] for row in after] == spans
    assert [row["_step"] for row in after] == list(range(7))
    assert run.state == "finished"
    assert plain(wandb_api.load(PROJECT)) == wanted(found)
    assert track(tmp_path, found, "offline").runs == 0  # it would be synced a second time


def wait_for(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_sweeps_report_and_plots_are_one_run(server: StandIn, tmp_path: Path) -> None:
    """Sent, synced and skipped like any other, and no attempt to those who load the project."""
    sweep = tmp_path / "sweep"
    found = write(sweep, wandb_records.grid(size=3))
    command = [sys.executable, "-m", "runners.track", str(sweep), "--summary", "--project", "p"]

    def told(mode: str) -> dict[str, Any]:
        done = subprocess.run(
            [*command, "--mode", mode], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))

    assert told("offline")["runs"] == 4
    assert (told("offline")["runs"], told("offline")["skipped"]) == (0, 4)
    assert len(list(sweep.glob("wandb/offline-run-*/files/media/images/plots/*.png"))) > 3
    (page,) = sweep.glob("wandb/offline-run-*/files/media/html/*.html")
    assert "In short" in page.read_text("utf-8")
    assert told("online")["runs"] == 4
    (summary,) = [run for run in server.runs.values() if run.fields.get("jobType") == "summary"]
    assert summary.state == "finished" and len(summary.history) == 1
    assert "plots/memory" in json.loads(summary.history[0])
    (artifact,) = server.artifacts.all
    assert artifact.is_whole and artifact.fields["runName"] == summary.name
    (packed,) = sweep.glob(f"wandb/offline-run-*/files/{artifact.name}.moebench")
    assert artifact.files == {packed.name: packed.read_bytes()}
    assert len(analysis.load(packed)) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error", SourceWarning)
        assert plain(wandb_api.load(PROJECT)) == wanted(found)
        assert len(analysis.load(sweep / "wandb")) == 3


@pytest.mark.dist
def test_a_measured_sweep_synced_equals_its_records(server: StandIn, tmp_path: Path) -> None:
    """What the bench measured and the line that it printed: nothing here is made by hand."""
    sweep = tmp_path / "sweep"
    words = ["-m", "strategy=simple,tp,ep", "topk=2,4", "world_size=2", *QUICK]
    words += ["tracker.project=p", f"hydra.sweep.dir={sweep}"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "runners" / "bench.py"), *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=2 * LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert server.requests == [], "offline is the default, whatever the server's address says"
    (line,) = [line for line in done.stderr.splitlines() if "wandb sync " in line]
    send(TrackerResult(True, sync_command=line[line.index("wandb sync ") :]), tmp_path)
    truth, other = (analysis.load(source, samples=True) for source in (sweep, PROJECT))
    assert len(truth) == 6 and (truth["outcome"] == "measured").all()
    pd.testing.assert_frame_equal(truth, other)
