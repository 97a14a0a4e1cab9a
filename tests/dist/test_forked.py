"""torchrun's agent with forked ranks: they are what new processes would be, and fail alike."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from runners.launch import forked
from runners.launch.local import agent_command

RANKS = 8
ROOT = Path(__file__).resolve().parents[2]
WAYS = pytest.mark.parametrize("options", [(), ("--anew",)], ids=["forked", "anew"])


def command(folder: Path, mode: str, options: tuple[str, ...] = (), ranks: int = 2) -> list[str]:
    logs = [f"--log-dir={folder / 'logs'}", "--redirects=3"]
    worker = ["-m", "tests.dist.forked_worker", mode, str(folder)]
    return [*agent_command(folder, ranks, *options), *logs, *worker]


def run(
    folder: Path, mode: str, options: tuple[str, ...] = (), ranks: int = 2
) -> tuple[int, list[dict[str, Any]]]:
    """The agent's exit code, and what it says of ranks that failed."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        command(folder, mode, options, ranks), env=env, capture_output=True, text=True, timeout=120
    )
    path = folder / "failures.json"
    failures = json.loads(path.read_text()) if path.exists() else []
    return done.returncode, failures


def log(folder: Path, rank: int, stream: str) -> str:
    (path,) = folder.glob(f"logs/*/attempt_0/{rank}/{stream}.log")
    return path.read_text()


@pytest.mark.dist
@WAYS
def test_a_rank_has_its_own_variables_and_the_usual_handlers(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    assert run(tmp_path, "tell", options) == (0, [])
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for rank, one in enumerate(told):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        assert one["variables"] == place
        assert (one["handlers"], one["interrupt"]) == ([True] * 3, True)
        assert (one["threads"], one["cuda"]) == (2, False)
        assert log(tmp_path, rank, "stdout") == f"said by {rank}\n"
    assert told[0]["agent"] == told[1]["agent"]


@pytest.mark.dist
def test_no_rank_begins_before_all_are_forked(tmp_path: Path) -> None:
    """A rank that is forked while another connects may be forked with a lock that is held."""
    assert run(tmp_path, "tell", ranks=RANKS) == (0, [])
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    assert [one["forked"] for one in told] == [RANKS] * RANKS


@pytest.mark.dist
@pytest.mark.parametrize(
    ("mode", "options", "exitcode"),
    [("raise", (), 1), ("raise", ("--anew",), 1), ("killed", (), -9), ("code", (), 1)],
)
def test_a_rank_that_fails_is_named_with_its_exit_code(
    tmp_path: Path, mode: str, options: tuple[str, ...], exitcode: int
) -> None:
    code, failures = run(tmp_path, mode, options)
    assert code == 1
    ended_by_agent = (0, -signal.SIGTERM)
    own = [(one["rank"], one["exitcode"]) for one in failures]
    assert [one for one in own if one != ended_by_agent] == [(1, exitcode)]
    if mode == "raise":
        said = log(tmp_path, 1, "stderr")
        assert "ValueError: planted" in said
        assert "Traceback" in said


@pytest.mark.dist
@pytest.mark.parametrize("mode", ["leave", "one leaves"])
def test_a_rank_that_leaves_without_a_word_is_not_waited_for(tmp_path: Path, mode: str) -> None:
    """torch's own context waits for a value of every rank."""
    assert run(tmp_path, mode) == (0, [])


@pytest.mark.dist
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_ranks_end_with_their_agent(tmp_path: Path, sign: signal.Signals) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    agent = subprocess.Popen(
        command(tmp_path, "wait"), env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        pids = [int(path.read_text()) for path in tmp_path.glob("*.json")]
        assert len(pids) == 2
        agent.send_signal(sign)
        agent.wait(60)
        while any(map(alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(alive, pids))
    finally:
        agent.kill()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_ranks_are_not_forked_where_cuda_has_been_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert forked.may_fork()
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    assert not forked.may_fork()


@pytest.mark.parametrize("before", [None, "0"])
def test_devices_are_counted_without_beginning_cuda(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    monkeypatch.delenv(forked.NVML, raising=False)
    if before is not None:
        monkeypatch.setenv(forked.NVML, before)
    with forked.without_cuda():
        assert os.environ[forked.NVML] == "1"
    assert os.environ.get(forked.NVML) == before
