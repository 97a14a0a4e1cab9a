"""The sweep on a real Slurm: two nodes of two ranks. Run by `make test-slurm`, which fails where
Slurm cannot be started; the file's name keeps it out of `make test`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runners.records import record, stats
from tests.support import readme_sweep, started
from tests.system.slurm.cluster import Cluster, NoSlurm, running

ROOT = Path(__file__).resolve().parents[3]
ON_SLURM = ["hydra/launcher=slurm", "hosts.ranks_per_node=2"]
QUICK = started.QUICK
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
nothing_stays = started.nothing_stays


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    try:
        with running() as cluster:
            yield cluster
    except NoSlurm as error:
        pytest.fail(f"Slurm cannot be started: {error}")


def bench(slurm: Cluster, folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """The user's own command, with the sweep's folder below `folder`."""
    sweep = f"hydra.sweep.dir={folder}/sweep"
    where = [] if any(word.startswith("resume=") for word in overrides) else [sweep]
    program = [sys.executable, str(ROOT / "runners" / "bench.py")]
    command = [*program, *overrides, *ON_SLURM[:1], *where]
    return started.start(command, cwd=folder, env=slurm.variables)


def records(folder: Path) -> list[record.Record]:
    return [record.read(path) for path in record.paths(folder / "sweep")]


def job_ids(folder: Path) -> list[str]:
    return list(json.loads((folder / "sweep" / "slurm" / "jobs.json").read_text()).values())


def test_the_readme_sweep_on_two_nodes_of_two_ranks(slurm: Cluster, tmp_path: Path) -> None:
    words = [*readme_sweep.OVERRIDES, *QUICK, "measure.calibrate=true"]
    sweep = bench(slurm, tmp_path, "-m", *words)
    code, end, err = started.ended(sweep)
    assert (code, end["measured"], end["failed"], end["tracked"]) == (0, 9, 0, 9), err
    assert len(job_ids(tmp_path)) == 1  # one allocation for all cells
    readme_sweep.check(tmp_path / "sweep")
    found = records(tmp_path)
    for one in found:
        assert one.environment["files"] == "shared folder"
        where = one.environment["topology"]
        assert where["node_of"] == [0, 0, 1, 1]
        assert where["clock"] == "end barrier inside the sample"
        assert len(where["nodes"]) == 2
        assert one.cell.placement.nodes == 2
        assert (one.gate or {})["ok"]
        for tier in ("intra", "inter"):
            assert (one.calibration or {})["tiers"][tier]["all_to_all"]["alpha_s"] >= 0
    # Both nodes are one machine here, and the record knows it.
    assert all(r.environment["local_ranks"] == 4 for r in found)
    assert all("oversubscribed" in stats.flags(r) for r in found)
    logs = list((tmp_path / "sweep").glob("launches/0/logs/srun/attempt_0/*/stderr.log"))
    assert len(logs) == 4


def test_a_cancelled_job_is_gone_on_with(slurm: Cluster, tmp_path: Path) -> None:
    process = bench(slurm, tmp_path, *started.SLOW_SWEEP)
    started.wait_for(lambda: len(list(record.paths(tmp_path / "sweep"))) >= 2, process)
    assert slurm.run("scancel", *job_ids(tmp_path)).returncode == 0
    code, end, err = started.ended(process)
    assert code == 1, err
    assert "resume=" in err
    before = {path: path.read_bytes() for path in record.paths(tmp_path / "sweep")}
    kept = [record.read(path) for path in before]
    assert not [one for one in kept if one.outcome in ("failed", "wrong")]  # nobody is to blame
    assert 2 <= sum(one.outcome == "measured" for one in kept) == end["measured"] < 6

    code, end, err = started.ended(bench(slurm, tmp_path, f"resume={tmp_path}/sweep"))
    assert (code, end["measured"]) == (0, 6), err
    assert all(path.read_bytes() == content for path, content in before.items())
    measured = [one.cell_id for one in records(tmp_path) if one.outcome == "measured"]
    assert len(measured) == len(set(measured)) == 6


def test_an_interrupt_leaves_the_job_and_says_how_to_attach(slurm: Cluster, tmp_path: Path) -> None:
    process = bench(slurm, tmp_path, *started.SLOW_SWEEP)
    started.wait_for(lambda: list(record.paths(tmp_path / "sweep")), process)
    process.send_signal(signal.SIGINT)
    code, _, err = started.ended(process)
    assert code == 130, err
    job = job_ids(tmp_path)[0]
    attach = next(line for line in err.splitlines() if line.startswith("to attach: "))
    assert f"resume={tmp_path}/sweep" in attach
    assert job in slurm.run("squeue", "--noheader", "--format=%i").stdout.split()
    code, end, err = started.ended(bench(slurm, tmp_path, f"resume={tmp_path}/sweep"))
    assert (code, end["measured"]) == (0, 6), err
    assert job_ids(tmp_path) == [job]  # watched, not queued again


def test_a_requeued_job_measures_what_is_missing(slurm: Cluster, tmp_path: Path) -> None:
    process = bench(slurm, tmp_path, *started.SLOW_SWEEP)
    started.wait_for(lambda: len(list(record.paths(tmp_path / "sweep"))) >= 2, process)
    assert slurm.run("scontrol", "requeue", *job_ids(tmp_path)).returncode == 0
    code, end, err = started.ended(process)
    assert (code, end["measured"]) == (0, 6), err
    found = [one for one in records(tmp_path) if one.outcome == "measured"]
    assert len({one.cell_id for one in found}) == len(found) == 6
    assert len({one.launch for one in found}) == 2


def test_allocations_of_two_shapes_run_beside_each_other(slurm: Cluster, tmp_path: Path) -> None:
    code, end, err = started.ended(bench(
        slurm, tmp_path, "-m", "strategy=tp,ep", "threads=1,2", "world_size=2",
        "hosts.ranks_per_node=2", *QUICK,
    ))  # fmt: skip
    assert (code, end["measured"], end["tracked"]) == (0, 4, 4), err
    assert len(job_ids(tmp_path)) == 2
    found = records(tmp_path)
    assert len({one.launch for one in found}) == 2
    assert all("topology" not in one.environment for one in found)  # each on one node


def test_a_rank_that_dies_fails_its_cell_only(slurm: Cluster, tmp_path: Path) -> None:
    process = bench(slurm, tmp_path, *started.SLOW_SWEEP)
    lines = tmp_path / "sweep" / "launches" / "0" / "samples" / "rank3.jsonl"
    started.wait_for(lambda: lines.exists() and '"kind":"long"' in lines.read_text(), process)
    os.kill(json.loads(lines.read_text().splitlines()[0])["pid"], signal.SIGKILL)
    code, end, err = started.ended(process)
    assert (code, end["measured"], end["failed"]) == (1, 5, 1), err
    failed = next(one for one in records(tmp_path) if one.outcome == "failed")
    assert (failed.error or {})["rank"] == 3
    assert "signal 9" in (failed.error or {})["message"]


def test_what_slurm_refuses_is_said_in_one_line(slurm: Cluster, tmp_path: Path) -> None:
    code, _, err = started.ended(bench(
        slurm, tmp_path, "-m", "strategy=tp", "world_size=2", "hydra.launcher.partition=nowhere",
    ))  # fmt: skip
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "nowhere" in err
    code, _, err = started.ended(
        bench(slurm, tmp_path, "-m", "world_size=6", "hosts.ranks_per_node=2", *QUICK)
    )
    assert code == 2
    assert "takes 3 nodes, here allowed is 2" in err
