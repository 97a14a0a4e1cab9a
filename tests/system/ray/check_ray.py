"""The sweep on a real Ray: two nodes of two ranks that share no folder. Run by `make test-ray` as
root, which fails where Ray or network namespaces cannot be started; the file's name keeps it out of
`make test`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runners.records import record
from tests.support import platform_starts, readme_sweep, started
from tests.system.ray.cluster import CLIENT_PORT, DASHBOARD_PORT, Cluster, NoRay, running

ROOT = Path(__file__).resolve().parents[3]
QUICK = started.QUICK
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
nothing_stays = started.nothing_stays


@pytest.fixture(scope="module")
def ray() -> Iterator[Cluster]:
    try:
        with running() as cluster:
            yield cluster
    except NoRay as error:
        pytest.fail(f"Ray cannot be started: {error}")


@pytest.fixture
def folder(ray: Cluster, request: pytest.FixtureRequest) -> Path:
    """A folder that the second node does not see."""
    path = ray.folder / re.sub(r"\W", "-", request.node.name[5:])
    path.mkdir()
    return path


def bench(
    ray: Cluster, folder: Path, *overrides: str, address: str = "", program: str = ""
) -> subprocess.Popen[str]:
    """The user's own command on the first node; `program` may wrap it."""
    sweep = f"hydra.sweep.dir={folder}/sweep"
    where = [] if any(word.startswith("resume=") for word in overrides) else [sweep]
    script = str(ROOT / "runners" / "bench.py")
    start = [sys.executable, *(["-c", program, script] if program else [script])]
    command = [*start, *overrides, "hydra/launcher=ray", *where]
    variables = {**ray.variables, "RAY_ADDRESS": address or ray.address}
    return started.start(ray.net.run(0, *command), cwd=folder, env=variables)


def records(folder: Path) -> list[record.Record]:
    return [record.read(path) for path in record.paths(folder / "sweep")]


def ranks(ray: Cluster) -> list[str]:
    return [line for line in ray.remaining() if "torchrun_agent" in line]


def free_cpus(ray: Cluster) -> float:
    code = (
        f"import ray; ray.init('{ray.address}', log_to_driver=False); "
        "print('free', ray.available_resources().get('CPU', 0))"
    )
    out = ray.run(sys.executable, "-c", code).stdout
    return float(out.split("free")[1])


def group_states(ray: Cluster) -> str:
    """States of all placement groups there have been."""
    code = (
        f"import ray; ray.init('{ray.address}', log_to_driver=False); "
        "print(*(one['state'] for one in ray.util.placement_group_table().values()))"
    )
    return ray.run(sys.executable, "-c", code).stdout


def test_the_readme_sweep_on_two_nodes_of_two_ranks(ray: Cluster, folder: Path) -> None:
    before = ray.net.received_bytes(1)
    code, end, err = started.ended(
        bench(ray, folder, "-m", *readme_sweep.OVERRIDES, *QUICK, "measure.calibrate=true")
    )
    assert (code, end["measured"], end["failed"], end["tracked"]) == (0, 9, 0, 9), err
    readme_sweep.check(folder / "sweep")
    for one in records(folder):
        topology = one.environment["topology"]
        assert topology["node_of"] == [0, 0, 1, 1]
        assert topology["clock"] == "end barrier inside the sample"
        assert one.environment["files"] == "Ray"
        assert (one.gate or {})["ok"]
        assert (one.calibration or {})["tiers"]["inter"]["all_to_all"]["alpha_s"] >= 0
    assert len({one.launch for one in records(folder)}) == 1  # one start of the ranks for all
    logs = list(
        (folder / "sweep" / "launches" / "0" / "logs").glob("node*/*/attempt_0/*/stderr.log")
    )
    assert len(logs) == 4  # both nodes' logs came
    assert ray.net.received_bytes(1) - before > 100_000  # tokens did travel through the cable
    assert free_cpus(ray) == 4


def test_a_recorded_routing_travels_to_the_nodes(ray: Cluster, folder: Path) -> None:
    import numpy as np

    rows = np.stack([np.arange(64) % 8, (np.arange(64) + 3) % 8], axis=1)
    np.save(folder / "rows.npy", rows)
    code, end, err = started.ended(bench(
        ray, folder, "-m", "workload=trace", f"workload.trace={folder}/rows.npy", "strategy=ep",
        "strategy.placement=by_node", "world_size=4", "hosts.ranks_per_node=2", "tracker=none",
        *QUICK,
    ))  # fmt: skip
    assert (code, end["measured"]) == (0, 1), err
    (one,) = records(folder)
    slots = (one.skew or {})["expert_slots"]
    assert slots == [2 * n for n in [1] * 8]  # 8 tokens, each of the first rows


def test_a_killed_node_fails_no_cell_and_each_is_measured_once(ray: Cluster, folder: Path) -> None:
    process = bench(ray, folder, *started.SLOW_SWEEP)
    started.wait_for(lambda: len(list(record.paths(folder / "sweep"))) >= 2, process)
    ray.kill_node(1)
    started.wait_for(lambda: "PENDING" in group_states(ray), process)  # one node is not enough
    ray.start_node(1)
    code, end, err = started.ended(process)
    assert (code, end["measured"], end["failed"]) == (0, 6, 0), err
    assert "was lost" in err and "starting again" in err
    measured = [one for one in records(folder) if one.outcome == "measured"]
    assert len({one.cell_id for one in measured}) == len(measured) == 6
    assert len({one.launch for one in measured}) == 2
    assert free_cpus(ray) == 4


def test_a_killed_driver_is_resumed_and_each_cell_measured_once(ray: Cluster, folder: Path) -> None:
    process = bench(ray, folder, *started.SLOW_SWEEP)
    started.wait_for(lambda: len(list(record.paths(folder / "sweep"))) >= 2, process)
    drivers = [int(line.split()[0]) for line in ray.remaining() if "bench.py" in line]
    for pid in drivers:
        os.kill(pid, signal.SIGKILL)
    process.wait(started.LIMIT_S)
    deadline = time.monotonic() + 60
    while ranks(ray):  # they die with their driver
        assert time.monotonic() < deadline
        time.sleep(0.2)
    before = {path: path.read_bytes() for path in record.paths(folder / "sweep")}
    code, end, err = started.ended(bench(ray, folder, f"resume={folder}/sweep"))
    assert (code, end["measured"]) == (0, 6), err
    assert all(path.read_bytes() == content for path, content in before.items())
    measured = [one.cell_id for one in records(folder) if one.outcome == "measured"]
    assert len(measured) == len(set(measured)) == 6


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_gives_the_nodes_back(ray: Cluster, folder: Path, sign: int) -> None:
    process = bench(ray, folder, *started.SLOW_SWEEP)
    started.wait_for(lambda: len(list(record.paths(folder / "sweep"))) >= 2, process)
    process.send_signal(sign)
    code, end, err = started.ended(process)
    assert code == 130, err
    assert 2 <= end["measured"] < 6
    assert ranks(ray) == []
    deadline = time.monotonic() + 30
    while free_cpus(ray) < 4:
        assert time.monotonic() < deadline


def test_a_rank_that_dies_fails_its_cell_only(ray: Cluster, folder: Path) -> None:
    process = bench(ray, folder, *started.SLOW_SWEEP)
    lines = folder / "sweep" / "launches" / "0" / "samples" / "rank3.jsonl"
    started.wait_for(lambda: lines.exists() and '"kind":"long"' in lines.read_text(), process)
    os.kill(json.loads(lines.read_text().splitlines()[0])["pid"], signal.SIGKILL)
    code, end, err = started.ended(process)
    assert (code, end["measured"], end["failed"]) == (1, 5, 1), err
    assert "rank 3 died of signal 9" in err


def test_shapes_run_at_once_where_there_is_room(ray: Cluster, folder: Path) -> None:
    code, end, err = started.ended(bench(
        ray, folder, "-m", "strategy=tp,ep", "threads=1,2", "world_size=2",
        "hosts.ranks_per_node=2", *QUICK,
    ))  # fmt: skip
    assert (code, end["measured"], end["tracked"]) == (0, 4, 4), err
    spans: dict[int, tuple[float, float]] = {}
    for launch in (0, 1):
        clocks = [
            json.loads(line)["clock_ns"]
            for path in (folder / "sweep" / "launches" / str(launch) / "samples").iterdir()
            for line in path.read_text().splitlines()
            if '"enter"' in line
        ]
        spans[launch] = (min(clocks), max(clocks))
    assert max(span[0] for span in spans.values()) < min(span[1] for span in spans.values())


def test_a_failed_cell_stops_all_shapes_where_it_is_asked_for(ray: Cluster, folder: Path) -> None:
    """A rank of one shape dies; the other shape would take long."""
    process = bench(
        ray, folder, "-m", "strategy=tp,ep", "threads=1,2", "world_size=2", "on_error=stop",
        "hosts.ranks_per_node=2", "tracker=none", *QUICK, "measure.wall_limit_s=60",
        "measure.samples=400", "measure.samples_max=400",
    )  # fmt: skip
    first = folder / "sweep" / "launches" / "0" / "samples" / "rank0.jsonl"
    started.wait_for(lambda: first.exists() and '"kind":"long"' in first.read_text(), process)
    os.kill(json.loads(first.read_text().splitlines()[0])["pid"], signal.SIGKILL)
    code, end, err = started.ended(process)
    assert (code, end["failed"]) == (1, 1), err
    assert "stopped at the first failed cell" in err
    assert end["measured"] < 3
    assert free_cpus(ray) == 4


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_no_cluster_is_refused_in_one_line(ray: Cluster, folder: Path, address: str) -> None:
    code, _, err = started.ended(bench(ray, folder, "-m", "strategy=tp", address=address))
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith(f"error: hydra.launcher.address={address}: no cluster answers there")
    assert not (folder / "sweep").exists()


def test_too_small_a_cluster_is_refused_in_one_line(ray: Cluster, folder: Path) -> None:
    sizes = ["world_size=6", "hosts.ranks_per_node=2"]
    code, _, err = started.ended(bench(ray, folder, "-m", "strategy=tp", *sizes))
    assert code == 2
    assert err == (
        "error: hosts.ranks_per_node=2: world_size=6 takes 3 nodes, here allowed is 2; raise it, "
        "or use more nodes\n"
    )
    assert not (folder / "sweep").exists()


OTHER_VERSION = """
import runpy, sys
import ray
ray.__version__ = "2.0.0"
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("client", [False, True])
def test_a_version_mismatch_is_refused_in_one_line(
    ray: Cluster, folder: Path, client: bool
) -> None:
    address = f"ray://{ray.net.addresses[0]}:{CLIENT_PORT}" if client else ""
    code, _, err = started.ended(
        bench(ray, folder, "-m", "strategy=tp", address=address, program=OTHER_VERSION)
    )
    assert code == 2
    assert err.count("\n") == 1, err
    assert "2.0.0" in err and "versions of Ray and Python" in err
    assert not (folder / "sweep").exists()


def test_a_driver_outside_the_cluster(ray: Cluster, folder: Path) -> None:
    address = f"ray://{ray.net.addresses[0]}:{CLIENT_PORT}"
    code, end, err = started.ended(bench(
        ray, folder, "-m", "strategy=tp,ep", "world_size=4", "hosts.ranks_per_node=2",
        "tracker=none", *QUICK, address=address,
    ))  # fmt: skip
    assert (code, end["measured"]) == (0, 2), err
    assert {one.environment["files"] for one in records(folder)} == {"Ray"}


def test_the_command_of_the_rayjob_manifest(ray: Cluster, folder: Path) -> None:
    manifest = platform_starts.manifests()["RayJob"]
    (driver,) = platform_starts.starts(manifest, {}, ray.net.addresses)
    variables = driver.surroundings(ray.variables) | {"RAY_ADDRESS": ray.address}
    words = driver.small("tracker=none", f"hydra.sweep.dir={folder}/sweep", *QUICK)
    command = [sys.executable, str(ROOT / "runners" / "bench.py"), *words]
    process = started.start(ray.net.run(0, *command), cwd=folder, env=variables)
    code, end, err = started.ended(process)
    assert (code, end["measured"]) == (0, 2), err


def test_a_submitted_job(ray: Cluster, folder: Path) -> None:
    code = folder / "code"  # what a clone has of it
    for name in ("moe", "runners", "conf", "analysis"):
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        str(Path(sys.executable).with_name("ray")), "job", "submit", f"--working-dir={code}",
        f"--address=http://{ray.net.addresses[0]}:{DASHBOARD_PORT}", "--", sys.executable,
        "runners/bench.py", "-m", "strategy=tp,ep", "world_size=4",
        "hosts.ranks_per_node=2", "tracker=none", *QUICK, "hydra/launcher=ray",
        f"hydra.sweep.dir={folder}/sweep",
    ]  # fmt: skip
    process = started.start(ray.net.run(0, *command), cwd=folder, env=ray.variables)
    out, err = process.communicate(timeout=started.LIMIT_S)
    assert process.returncode == 0, out + err
    assert "2 of 2 cells correct and measured" in out
    assert sorted(one.outcome for one in records(folder)) == ["measured"] * 2


def test_a_ray_of_this_machine_alone(ray: Cluster, folder: Path) -> None:
    before = set(ray.remaining())
    code, end, err = started.ended(bench(
        ray, folder, "-m", "strategy=tp", "world_size=2", "tracker=none", *QUICK,
        "hydra.launcher.address=local",
    ))  # fmt: skip
    assert (code, end["measured"]) == (0, 1), err
    deadline = time.monotonic() + 30
    while {line for line in set(ray.remaining()) - before if "ray" in line}:
        assert time.monotonic() < deadline
        time.sleep(0.2)
