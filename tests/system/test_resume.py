"""Going on with a sweep: states worked by hand, the lock, and a launcher that was killed."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from analysis.text import status
from moe.spec import Cell, LayerSpec
from runners.config.schema import up_to_date
from runners.errors import ConfigError
from runners.plan import Job, Measure
from runners.records import record, sweep_folder
from runners.records.emulation import Emulation
from runners.records.record import Record
from runners.sweep import folder, resume
from runners.sweep.progress import Progress
from runners.sweep.settings import Settings
from runners.sweep.sweep import Sweep
from tests.support import started
from tests.unit.runners.test_cell import BASE

ROOT = Path(__file__).resolve().parents[2]
HERE = {"host": "h", "cpu_model": "c", "cores": 2, "versions": {"torch": "2"}, "git": {"sha": "a"}}
OTHER = {**HERE, "git": {"sha": "b"}}
MODES = ("missing", "failed", "stale", "force")
VERSIONS = frozenset([sweep_folder.version_of(HERE)])
QUIET = ["report=false", "tracker=none"]
SHORT = ["measure.block_ms=5", "measure.block_gloo_ms=5", "measure.block_floors=2"]
interruptible = started.interruptible


def test_without_git_the_installed_version_says_which_code_it_is() -> None:
    def of(project: str, git: dict[str, str] | None) -> resume.Version:
        return sweep_folder.version_of({"versions": {"torch": "2", "project": project}, "git": git})

    assert of("0.1.0", None) != of("0.2.0", None)
    assert of("0.1.0", None) == of("0.1.0", None)
    assert of("0.1.0", {"sha": "a"}) == of("0.2.0", {"sha": "a"})  # of a clone git knows better


def job(topk: int = 2, launches: int = 1) -> Job:
    layer = LayerSpec(topk=topk, topk_requested=topk)
    return Job(Cell(layer), Measure(launches=launches))


def attempt(of: Job, outcome: str, launch: int, environment: dict[str, Any] = HERE) -> Record:
    return Record(
        key=of.key, cell=of.cell, launch=launch, outcome=outcome, environment=dict(environment)
    )


MEASURED, FAILED, STALE = ("measured", HERE), ("failed", HERE), ("measured", OTHER)


@pytest.mark.parametrize(
    ("attempts", "launches", "state", "left"),
    [
        # state, and what each mode of missing, failed, stale, force leaves to be launched
        ([], 1, "missing", (1, 1, 1, 1)),
        ([("interrupted", HERE)], 1, "missing", (1, 1, 1, 1)),
        ([MEASURED], 1, "measured", (0, 0, 0, 1)),
        ([MEASURED], 5, "missing", (4, 4, 4, 5)),
        ([FAILED], 1, "failed", (0, 1, 0, 1)),
        ([("wrong", HERE)], 1, "wrong", (0, 1, 0, 1)),
        ([FAILED, MEASURED], 1, "measured", (0, 0, 0, 1)),
        ([("checked", HERE)], 1, "checked", (0, 0, 0, 1)),
        ([("checked", HERE)], 2, "missing", (1, 1, 1, 2)),
        ([FAILED, ("checked", HERE)], 1, "checked", (0, 0, 0, 1)),
        ([("checked", OTHER)], 1, "stale", (0, 0, 1, 1)),
        ([STALE], 1, "stale", (0, 0, 1, 1)),
        ([STALE, MEASURED], 1, "measured", (0, 0, 0, 1)),
        ([STALE, MEASURED], 3, "stale", (0, 0, 2, 2)),
    ],
)
def test_states(
    attempts: list[tuple[str, dict[str, Any]]], launches: int, state: str, left: tuple[int, ...]
) -> None:
    one = job(launches=launches)
    found = [attempt(one, outcome, n, env) for n, (outcome, env) in enumerate(attempts)]
    past = sweep_folder.Past({one.cell_id: found} if found else {})
    assert sweep_folder.state(found, VERSIONS, launches) == state
    modes = [resume.launches_left([one], past, VERSIONS, mode)[one.cell_id] for mode in MODES]
    assert tuple(modes) == left


def test_a_damaged_record_is_named_and_its_launch_number_is_not_used_again(tmp_path: Path) -> None:
    good, bad = job(2), job(4)
    whole = attempt(good, "failed", 0)
    ranks = [0] * good.cell.placement.world_size
    whole.samples = record.Samples([0], [0], [1], ["fixed"], [ranks], [ranks])
    record.write(tmp_path, whole)
    path = record.write(tmp_path, attempt(bad, "failed", 7))
    path.write_text(path.read_text()[:-9])
    past = sweep_folder.read_past(tmp_path)
    assert list(past.records) == [good.cell_id]
    (kept,) = past.records[good.cell_id]
    assert (kept.outcome, kept.attempt_id) == ("failed", whole.attempt_id)
    assert kept.samples == record.Samples()  # figures would fill the memory
    assert past.next_launch == 8
    assert len(past.damaged) == 1
    assert str(path) in past.damaged[0]
    assert path.exists()


def test_two_sweeps_never_share_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from runners.sweep import resume\n"
        "with resume.locked(Path(sys.argv[1])): print('has it', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "has it\n"
        told = f"process {first.pid} is measuring"
        with pytest.raises(ConfigError, match=told), resume.locked(tmp_path):
            raise AssertionError
    finally:
        first.kill()
        first.communicate()
    with resume.locked(tmp_path):  # a dead owner holds nothing
        pass


def bench(*overrides: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "runners" / "bench.py"), *overrides]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    out, err = process.communicate(timeout=240)
    lines = out.splitlines()
    return process.returncode, json.loads(lines[-1]) if lines else {}, err


@pytest.mark.dist
def test_a_killed_launcher_is_gone_on_with(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    process = bench(
        "-m", "strategy=simple,tp,ep", "topk=1,2", "world_size=2", "tracker=none", "report=false",
        "measure=quick", "measure.wave_cells=2", "measure.samples=30", "measure.samples_max=30",
        *SHORT, f"hydra.sweep.dir={sweep}", folder=tmp_path,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while len(list(record.paths(sweep))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    lines = sweep / "launches" / "0" / "samples" / "rank1.jsonl"
    rank = json.loads(lines.read_text().splitlines()[0])["pid"]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    while Path(f"/proc/{rank}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{rank}").exists()
    before = {path: path.read_bytes() for path in record.paths(sweep)}
    assert 2 <= len(before) < 6

    code, end, err = ended(bench(f"resume={sweep}", *QUIET, folder=tmp_path))
    assert (code, end["measured"]) == (0, 6), err
    assert "resuming: " in err
    assert all(path.read_bytes() == content for path, content in before.items())
    found = [record.read(path) for path in record.paths(sweep)]
    assert sorted(r.cell_id for r in found) == sorted({r.cell_id for r in found})
    assert {r.outcome for r in found} == {"measured"}
    assert not (tmp_path / "outputs").exists()

    launches = len(list(sweep.glob("launches/*")))
    code, end, err = ended(bench(f"resume={sweep}", *QUIET, folder=tmp_path))
    assert (code, end["measured"]) == (0, 6), err
    assert "resuming: 6 measured" in err
    assert len(list(sweep.glob("launches/*"))) == launches


@pytest.mark.dist
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_does_not_wait_for_the_gates_of_the_other_cells(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    process = bench(
        "-m", "strategy=simple,tp,ep", "topk=1,2,3,4", "world_size=2", "tracker=none",
        "report=false", "measure=quick", "measure.wave_cells=12", "measure.warmup=20",
        "measure.block_gloo_ms=30",  # a second a cell: the signal comes before the last one
        f"hydra.sweep.dir={sweep}", folder=tmp_path,
    )  # fmt: skip
    lines = sweep / "launches" / "0" / "samples" / "rank1.jsonl"
    deadline = time.monotonic() + 200
    while not (lines.exists() and '"stage":"warm-up"' in lines.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    code, end, err = ended(process)
    assert (code, end["interrupted"], end["measured"]) == (130, 12, 0), err
    assert 1 <= lines.read_text().count('"stage":"gate"') < 12
    assert '"stage":"round"' not in lines.read_text()

    code, end, err = ended(bench(f"resume={sweep}", *QUIET, folder=tmp_path))
    assert (code, end["measured"]) == (0, 12), err


def test_an_emulated_sweep_is_not_resumed_in_real_time(tmp_path: Path) -> None:
    """Its plan says so; its missing cells would be measured in another time."""
    settings = Settings(tmp_path / "dilated", emulated=Emulation(20.0))
    settings.sweep_dir.mkdir()
    folder.write_plan([job()], settings)
    assert sweep_folder.read_plan(settings.sweep_dir)["emulated"]["dilation"] == 20.0
    with pytest.raises(ConfigError, match="has times of an emulated cluster") as refused:
        resume.folder_of(str(settings.sweep_dir), tmp_path)
    assert str(settings.sweep_dir) in str(refused.value)
    assert "python -m benchmarks.emulate" in str(refused.value)
    hints = [line for _, line in status.unfinished([settings.sweep_dir])]
    assert len(hints) == 1
    assert hints[0].endswith(": measure the missing cells with python -m benchmarks.emulate")
    words = Sweep([job()], settings, Progress()).resume_words
    assert words == "a sweep of the missing cells with python -m benchmarks.emulate"

    real = Settings(tmp_path / "real")
    real.sweep_dir.mkdir()
    folder.write_plan([job()], real)
    assert "emulated" not in sweep_folder.read_plan(real.sweep_dir)
    assert resume.folder_of(str(real.sweep_dir), tmp_path) == real.sweep_dir


@pytest.mark.parametrize("where", ["nowhere", "latest"])
def test_there_must_be_something_to_go_on_with(tmp_path: Path, where: str) -> None:
    code, _, err = ended(bench(f"resume={where}", folder=tmp_path))
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "plan.json" in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_an_earlier_version_goes_on() -> None:
    """Its configs name the seed, and lack knobs that came later."""
    config = up_to_date(BASE)
    assert config == BASE
    former = copy.deepcopy(BASE)
    former["model"]["name"], former["strategy"]["name"] = "seed", "peer_seed"
    del former["measure"]["block_gloo_ms"], former["hosts"]["pass_env"]
    present = up_to_date(former)
    assert (present["model"]["name"], present["strategy"]["name"]) == (
        "reference",
        "peer_reference",
    )
    assert (present["measure"], present["hosts"]) == (BASE["measure"], BASE["hosts"])
    assert "block_gloo_ms" not in former["measure"]
