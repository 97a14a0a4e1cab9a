"""The packed file of a sweep as an artifact of its summary run: offline, synced, online, moved.

The client is the real one and the server a loopback stand-in. Report, plots and packed file are
replaced by small ones here; test_wandb_online.py has a summary of the real ones.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runners.host.project_paths import CODE as ROOT
from runners.packed import packed_file
from runners.packed.names import file_name
from tests.support import wandb_records
from tests.support.wandb_server import ENTITY, KEY, StandIn

LIMIT_S = 120.0
NAME = "2026-01-02_03-04-05_topk"  # the group of wandb_records
CONTENT = bytes(range(256)) * 20
# The tracker with a summary run of one history row. argv: what the packing does, then its own.
TRACKER = f"""
import sys
from runners.track import cli, summary
from runners.track.run import Run

def summary_run(sweep, runs, scratch):
    return Run(id=summary.summary_id(runs), name="summary", group=runs[0].group,
               job_type="summary", tags=(), notes="", config={{"summary_of": runs[0].group}},
               summary={{"tracked_rows": 1}}, history=[{{"a": 1}}], exit_code=0)

def analysis(verb, sweep, output):
    if sys.argv[1] == "refuses":
        raise summary.NoSummary("packing was refused")
    if sys.argv[1] == "packs":
        output.write_bytes(bytes.fromhex("{CONTENT.hex()}"))

cli.summary_run, summary._analysis = summary_run, analysis
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return wandb_records.write_sweep(tmp_path / "a sweep", wandb_records.grid(size=2))


def run_in(home: Path, words: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """The command where nothing of W&B is set and the home folder is `home`."""
    home.mkdir(exist_ok=True)
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("WANDB", "XDG"))}
    environment = {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        words, env=environment, cwd=home, capture_output=True, text=True, timeout=LIMIT_S
    )


def track(sweep: Path, mode: str, packing: str = "packs", **variables: str) -> dict[str, Any]:
    """What the tracker's last line says, with its exit code."""
    words = [sys.executable, "-c", TRACKER, packing, str(sweep), "--summary", "--project", "p"]
    done = run_in(sweep.parent / "home", [*words, "--mode", mode], **variables)
    assert done.stdout, done.stderr
    assert KEY not in done.stdout + done.stderr
    return {"code": done.returncode, **json.loads(done.stdout.splitlines()[-1])}


def sync(folder: Path, server: StandIn, runs: int = 3) -> None:
    logs = [str(path) for path in folder.glob("wandb/offline-run-*")]
    assert len(logs) == runs
    wandb = str(Path(sys.executable).with_name("wandb"))
    home = folder.parent / "home"
    done = run_in(home, [wandb, "sync", *logs], **server.environment())
    assert done.returncode == 0, done.stderr


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]


def run_file(server: StandIn) -> bytes | None:
    """The packed file as one of the summary run's files on the server."""
    named = {path: content for path, content in server.uploads.items() if "/upload/" in path}
    contents = [content for path, content in named.items() if path.endswith(f"/{NAME}.moebench")]
    assert len(contents) <= 1
    return contents[0] if contents else None


def test_offline_it_lies_in_the_sweeps_folder_and_nothing_elsewhere(sweep: Path) -> None:
    told = track(sweep, "offline")
    assert (told["code"], told["runs"], told["warnings"]) == (0, 3, [])
    (path,) = sweep.glob(f"wandb/offline-run-*/files/{NAME}.moebench")
    assert path.read_bytes() == CONTENT
    assert files_in(sweep.parent / "home") == []
    again = track(sweep, "offline")
    assert (again["code"], again["runs"], again["skipped"]) == (0, 0, 3)
    assert list(sweep.glob(f"wandb/*/files/{NAME}.moebench")) == [path]


def test_synced_it_is_an_artifact_of_the_summary_run(sweep: Path) -> None:
    track(sweep, "offline")
    with StandIn() as server:
        sync(sweep, server)
        (artifact,) = server.artifacts.all
        assert (artifact.type, artifact.name) == ("moebench", NAME)
        assert artifact.files == {f"{NAME}.moebench": CONTENT}
        assert artifact.is_whole
        assert artifact.fields["runName"] == summary_of(server)
        assert run_file(server) == CONTENT


def summary_of(server: StandIn) -> str:
    (name,) = (run.name for run in server.runs.values() if run.fields.get("jobType") == "summary")
    return name


def test_a_moved_sweep_still_brings_the_file(sweep: Path) -> None:
    """W&B's log has the path the file had: the artifact stays without content, as W&B says only in
    its own log. The run's files are found beside the log."""
    track(sweep, "offline")
    moved = sweep.rename(sweep.with_name("moved"))
    with StandIn() as server:
        sync(moved, server)
        assert run_file(server) == CONTENT
        (artifact,) = server.artifacts.all
        assert (artifact.files, artifact.state) == ({}, "PENDING")


def test_a_moved_sweep_that_is_replayed_has_the_artifact(sweep: Path) -> None:
    track(sweep, "offline")
    moved = sweep.rename(sweep.with_name("moved"))
    with StandIn() as server:
        assert track(moved, "online", **server.environment())["runs"] == 3
        assert [one.is_whole for one in server.artifacts.all] == [True]


def test_online_it_is_an_artifact_too_and_once(sweep: Path) -> None:
    with StandIn() as server:
        told = track(sweep, "online", **server.environment())
        assert (told["code"], told["runs"], told["mode"]) == (0, 3, "online"), told
        (artifact,) = server.artifacts.all
        assert artifact.is_whole and artifact.files == {f"{NAME}.moebench": CONTENT}
        assert artifact.fields["entityName"] == ENTITY
        assert run_file(server) == CONTENT
        again = track(sweep, "online", **server.environment())
        assert (again["runs"], again["skipped"], len(server.artifacts.all)) == (0, 3, 1)
        assert files_in(sweep.parent / "home") == []


@pytest.mark.parametrize("refused", ["CreateArtifact", "CommitArtifact"])
def test_a_server_that_refuses_the_artifact_costs_a_warning(sweep: Path, refused: str) -> None:
    with StandIn() as server:
        server.fail(403, only=refused)
        told = track(sweep, "online", **server.environment())
        assert (told["code"], told["runs"], told["mode"]) == (1, 3, "online")
        (warning,) = told["warnings"]
        assert f"the server did not take {NAME}.moebench as an artifact of run" in warning
        assert run_file(server) == CONTENT
        assert {run.state for run in server.runs.values()} == {"finished"}


def test_a_server_that_is_busy_with_it_is_waited_for_in_bounds(sweep: Path) -> None:
    """The run is not finished in time either: as with any server that is lost, it waits on disk,
    and a replay completes run and artifact."""
    with StandIn() as server:
        server.fail(503, only="CreateArtifact")
        limits = {f"WANDB_{name}_TIMEOUT": "4" for name in ("INIT", "HTTP")}
        limits["WANDB_FINISH_TIMEOUT"] = "2"
        told = track(sweep, "online", **server.environment(), **limits)
        assert (told["code"], told["runs"], told["mode"]) == (1, 3, "offline")
        assert any("did not take" in text for text in told["warnings"])
        assert told["sync_command"].startswith("python -m runners.track ")
        server.fault = lambda request: None
        again = track(sweep, "online", **server.environment())
        assert (again["code"], again["runs"], again["skipped"]) == (0, 1, 2)
        assert server.runs[summary_of(server)].state == "finished"
        assert server.artifacts.all[-1].is_whole


@pytest.mark.parametrize(
    ("packing", "warning"),
    [("refuses", "packing was refused"), ("leaves nothing", f"is without {NAME}.moebench")],
)
def test_a_file_that_cannot_be_packed_costs_a_warning(
    sweep: Path, packing: str, warning: str
) -> None:
    told = track(sweep, "offline", packing)
    assert (told["code"], told["runs"]) == (1, 3)
    assert len(told["warnings"]) == 1 and warning in told["warnings"][0]
    assert len(list(sweep.glob("wandb/offline-run-*/run-summary-*.wandb"))) == 1


def test_a_project_and_its_offline_logs_pack_to_the_same_bytes(sweep: Path) -> None:
    track(sweep, "offline")
    home = sweep.parent / "home"
    with StandIn() as server:
        sync(sweep, server)
        packed = []
        for source in (f"wandb:{ENTITY}/p?topk=2", str(sweep / "wandb")):
            words = [sys.executable, "-m", "analysis", "pack", source, "--no-pictures"]
            done = run_in(home, [*words, "-o", "mine.moebench"], **server.environment())
            assert done.returncode == 0, done.stderr
            assert "2 cells in 2 attempts" in done.stdout
            packed.append((home / "mine.moebench").read_bytes())
    assert packed[0] == packed[1]


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("2026-01-02_03-04-05_topk", "2026-01-02_03-04-05_topk"),
        ("a b/ü:c", "a-b---c"),
        ("..", "sweep"),
        ("", "sweep"),
        ("x" * 300, "x" * 60),
        ("-o", "o"),
    ],
)
def test_the_name_is_the_groups_as_wandb_allows_it(group: str, name: str) -> None:
    assert file_name(group) == name
    assert packed_file.NAME.fullmatch(name)


def test_a_copied_sweep_can_be_copied_and_read(sweep: Path, tmp_path: Path) -> None:
    """Links of W&B's to its own log stay inside the folder, so that a copy is whole."""
    track(sweep, "offline")
    links: list[Path] = [path for path in files_in(sweep) if path.is_symlink()]
    assert links and all(link.exists() for link in links)
    assert all(link.resolve().is_relative_to(sweep.resolve()) for link in links)
    assert shutil.copytree(sweep, tmp_path / "copy").is_dir()
