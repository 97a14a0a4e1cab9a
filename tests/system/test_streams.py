"""A reader that leaves early, as `| head` does, is no error and changes nothing that is done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runners.host import streams
from tests.support import started

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120
QUICK = [word for word in started.QUICK if not word.startswith("report")]


def unread(*words: str, errors_too: bool = False) -> subprocess.CompletedProcess[str]:
    """The command with a standard output that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return subprocess.run(
            [sys.executable, *words], stdout=writing, text=True, timeout=LIMIT_S, cwd=ROOT,
            stderr=writing if errors_too else subprocess.PIPE,
        )  # fmt: skip
    finally:
        os.close(writing)


PROGRAMS = (["runners/bench.py"], ["-m", "runners.track"], ["-m", "runners.calibrate"],
            ["-m", "analysis"])  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda words: words[-1])
def test_help_that_is_not_read_to_its_end(program: list[str]) -> None:
    done = unread(*program, "--help")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [["--cfg", "job"], ["--info", "defaults"]])
def test_what_hydra_prints(words: list[str]) -> None:
    done = unread("runners/bench.py", *words)
    assert (done.returncode, done.stderr) == (0, "")


def test_errors_keep_their_code_without_a_reader() -> None:
    done = unread("runners/bench.py", "-m", "topk=none", errors_too=True)
    assert done.returncode == 2


def test_work_after_the_reader_has_left_is_done(tmp_path: Path) -> None:
    """Also by a process that writes to the same pipe, which would be ended by a signal."""
    code = (
        "import subprocess, sys; from pathlib import Path\n"
        "from runners.host.streams import reader_may_leave\n"
        "with reader_may_leave():\n"
        "    print('x' * 100_000, flush=True); print('y', file=sys.stderr)\n"
        "    subprocess.run(['sh', '-c', 'echo more && touch \"$0\"', sys.argv[1]], check=True)\n"
        "    print('last')\n"
        "sys.exit(7)\n"
    )
    assert unread("-c", code, str(tmp_path / "done"), errors_too=True).returncode == 7
    assert (tmp_path / "done").exists()


def test_output_that_is_read_is_the_same() -> None:
    code = (
        "import sys; from runners.host.streams import reader_may_leave\n"
        "print('before')\n"
        "with reader_may_leave(): print('während'); print('er', file=sys.stderr)\n"
        "print('after')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=LIMIT_S, cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.stdout.decode() == "before\nwährend\nafter\n"
    assert done.stderr == b"er\n"


def test_streams_that_are_no_files_and_none_at_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sys.stdout
    with streams.reader_may_leave():
        assert sys.stdout is before
        print("caught")
    assert capsys.readouterr().out == "caught\n"
    monkeypatch.setattr(sys, "stderr", None)
    with streams.reader_may_leave():
        assert sys.stderr is None


@pytest.mark.dist
def test_a_sweep_that_nobody_looks_at_any_more(tmp_path: Path) -> None:
    """Progress, tables and the last line have no reader; cells, tables and the exit code stay."""
    where = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    words = ["-m", "strategy=simple", "world_size=1", "tracker=none", *QUICK]
    done = unread("runners/bench.py", *words, "measure.calibrate=false", where, errors_too=True)
    assert done.returncode == 0
    assert len(list(tmp_path.glob("sweep/cells/*/record-0.json"))) == 1
    assert (tmp_path / "sweep" / "tables" / "tables.csv").stat().st_size > 0
