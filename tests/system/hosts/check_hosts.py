"""The sweep on two hosts without a scheduler: two network namespaces joined by a cable. Both have
the same host name, which maps to loopback, as on many real hosts. Without a shared folder the
second host has a mount namespace, too, in which an empty file system lies over the sweep's folder.
Run by `make test-hosts` as root, which fails where namespaces cannot be made; the file's name keeps
it out of `make test`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runners.records import record
from tests.support import platform_starts, readme_sweep, started
from tests.support.namespaces import Net, hidden, known_hosts, named, two_hosts

ROOT = Path(__file__).resolve().parents[3]
QUICK = started.QUICK
KEY = "a secret of this test"
pytestmark = [pytest.mark.hosts, pytest.mark.timeout(400)]
nothing_stays = started.nothing_stays


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with two_hosts("moe-hosts") as net:
        yield net


@pytest.fixture(params=[True, False], ids=["shared folder", "no shared folder"])
def shared(request: pytest.FixtureRequest) -> bool:
    """Whether both hosts see the sweep's folder."""
    return bool(request.param)


def bench(
    net: Net, host: int, folder: Path, *overrides: str, shared: bool = True
) -> subprocess.Popen[str]:
    """The same command on every host; all that differs is NODE_RANK."""
    variables = {
        **os.environ, "NNODES": "2", "NODE_RANK": str(host), "MOE_RUN": "together",
        "RDZV_ENDPOINT": f"{net.addresses[0]}:29411",
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "runners" / "bench.py"), *overrides, "hosts=many"]
    if not shared:
        command.append("hosts.shared_folder=false")
        variables["MOE_KEY"] = KEY
        if host:
            command = hidden(folder, command)
    return started.start(net.run(host, *command), cwd=folder, env=variables)


def on_both(
    net: Net, folder: Path, *overrides: str, shared: bool
) -> list[tuple[int, dict[str, Any], str]]:
    """Host 1 first: it must wait for host 0 to come."""
    second = bench(net, 1, folder, *overrides, shared=shared)
    first = bench(net, 0, folder, *overrides, shared=shared)
    return [started.ended(first), started.ended(second)]


def test_the_readme_sweep_on_two_hosts_of_two_ranks(net: Net, tmp_path: Path, shared: bool) -> None:
    sweep = tmp_path / "outputs" / "together"
    words = ["-m", *readme_sweep.OVERRIDES, *QUICK]
    before = net.received_bytes(1)
    (code, end, err), (other_code, _, other_err) = on_both(net, tmp_path, *words, shared=shared)
    assert (code, end["measured"], end["tracked"]) == (0, 9, 9), err
    assert other_code == 0, other_err
    readme_sweep.check(sweep)
    for one in map(record.read, record.paths(sweep)):
        assert one.environment["topology"]["node_of"] == [0, 0, 1, 1]
        assert one.environment["topology"]["clock"] == "end barrier inside the sample"
        assert one.environment["files"] == ("shared folder" if shared else "stream to node 0")
        assert (one.gate or {})["ok"]
    assert net.received_bytes(1) - before > 100_000  # tokens did travel through the cable

    # A cluster that starts the job again: nothing is missing, nothing is measured.
    (code, end, err), (other_code, _, other_err) = on_both(net, tmp_path, *words, shared=shared)
    assert (code, end["measured"], other_code) == (0, 9, 0), err + other_err
    assert "resuming: 9 measured" in err
    assert len(list(sweep.glob("launches/*"))) == 1


def test_a_rank_that_dies_on_the_other_host_fails_its_cell_only(
    net: Net, tmp_path: Path, shared: bool
) -> None:
    second, first = (
        bench(net, host, tmp_path, *started.SLOW_SWEEP, shared=shared) for host in (1, 0)
    )
    lines = tmp_path / "outputs" / "together" / "launches" / "0" / "samples" / "rank3.jsonl"
    deadline = time.monotonic() + started.LIMIT_S
    while not (lines.exists() and '"kind":"long"' in lines.read_text()):
        assert first.poll() is None, started.ended(first)
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(json.loads(lines.read_text().splitlines()[0])["pid"], signal.SIGKILL)
    code, end, err = started.ended(first)
    assert (code, end["measured"], end["failed"]) == (1, 5, 1), err
    assert "rank 3 died of signal 9" in err
    code, _, err = started.ended(second)
    assert code == 0, err


def test_a_host_that_is_killed_and_comes_back_fails_no_cell(net: Net, tmp_path: Path) -> None:
    second, first = (
        bench(net, host, tmp_path, *started.SLOW_SWEEP, shared=False) for host in (1, 0)
    )
    sweep = tmp_path / "outputs" / "together"
    deadline = time.monotonic() + started.LIMIT_S
    while len(list(record.paths(sweep))) < 2:
        assert first.poll() is None, started.ended(first)
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for pid in net.pids(1):
        os.kill(pid, signal.SIGKILL)
    started.ended(second)
    third = bench(net, 1, tmp_path, *started.SLOW_SWEEP, shared=False)
    code, end, err = started.ended(first)
    assert (code, end["measured"]) == (0, 6), err
    assert "node 1 was lost" in err
    measured = [one for one in map(record.read, record.paths(sweep)) if one.outcome == "measured"]
    assert len({one.cell_id for one in measured}) == len(measured) == 6
    assert {one.launch for one in measured} == {0, 1}
    assert started.ended(third)[0] == 0


@pytest.mark.parametrize(
    "kinds", ["Service, Job", "JobSet", "TrainingRuntime, TrainJob", "SkyPilot"]
)
def test_the_command_of_a_manifest_under_the_variables_of_its_platform(
    net: Net, tmp_path: Path, kinds: str
) -> None:
    secrets = {"moe:key": KEY, "MOE_KEY": KEY}
    nodes = platform_starts.starts(platform_starts.manifests()[kinds], secrets, net.addresses)
    names = [node.host_name or f"machine-{n}" for n, node in enumerate(nodes)]
    lines = [
        f"{address} {name} {'.'.join(name.split('.')[:2])} {name.split('.')[0]}"
        for address, name in zip(net.addresses, names, strict=True)
    ]
    with known_hosts(net, lines):
        running = []
        for host in (1, 0):
            words = nodes[host].small("tracker=none", *QUICK)
            command = [sys.executable, str(ROOT / "runners" / "bench.py"), *words]
            command = hidden(tmp_path, command) if host else command
            running.append(started.start(
                net.run(host, *named(names[host].split(".")[0], command)), cwd=tmp_path,
                env=nodes[host].surroundings(os.environ),
            ))  # fmt: skip
        (other_code, _, other_err), (code, end, err) = map(started.ended, running)
    assert (code, end["measured"], other_code) == (0, 2, 0), err + other_err
    line = next(line for line in err.splitlines() if line.startswith("hosts=auto: "))
    assert line.startswith("hosts=auto: node 0 of 2, node 0 at ")
    sweep = Path(end["sweep_dir"])
    assert sweep.name in line  # the name of the run, which a pod that comes back has again
    for path in record.paths(sweep):
        assert record.read(path).environment["files"] == "stream to node 0"


def test_a_host_that_does_not_come_is_named(net: Net, tmp_path: Path) -> None:
    words = ["-m", "strategy=tp", "world_size=4", "hosts.wait_s=2", *QUICK]
    code, _, err = started.ended(bench(net, 0, tmp_path, *words))
    assert code == 2
    assert err.splitlines()[-1].startswith("error: hosts.node_rank=1: did not come within 2 s")
    code, _, err = started.ended(
        bench(net, 1, tmp_path, *words)
    )  # what is left there is no order for it
    assert code == 3
    assert "no word from node 0" in err
