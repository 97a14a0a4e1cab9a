"""The sweep on two hosts without a scheduler: two network namespaces joined by a cable. Both have
the same host name, which maps to loopback, as on many real hosts. Run by `make test-hosts` as root,
which fails where namespaces cannot be made; the file's name keeps it out of `make test`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runners.records import record
from tests.support import started

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 240.0
QUICK = started.QUICK
ADDRESSES = ("10.231.77.1", "10.231.77.2")
INSTALL = "apt-get update && apt-get install -y iproute2, and run as root"
pytestmark = [pytest.mark.hosts, pytest.mark.timeout(400)]
nothing_stays = started.nothing_stays


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20)
    if done.returncode:
        pytest.fail(f"network namespaces cannot be made: ip {' '.join(words)}: {done.stderr}")
    return done.stdout


@dataclass(frozen=True)
class Net:
    """Two namespaces; each end of the cable is called `cable`."""

    names: tuple[str, str]

    def run(self, host: int, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.names[host], *command]

    def received_bytes(self, host: int) -> int:
        path = "/sys/class/net/cable/statistics/rx_bytes"
        done = subprocess.run(self.run(host, "cat", path), capture_output=True, text=True)
        return int(done.stdout)


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.fail(f"network namespaces cannot be made; {INSTALL}")
    net = Net((f"moe-{os.getpid()}-0", f"moe-{os.getpid()}-1"))
    made: list[str] = []
    try:
        for name in net.names:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", "cable", "netns", made[0], "type", "veth", "peer", "name", "cable",
           "netns", made[1])  # fmt: skip
        for name, address in zip(made, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield net
    finally:
        for name in made:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                subprocess.run(["ip", "netns", "delete", name], timeout=20)


def bench(net: Net, host: int, folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """The same command on every host; all that differs is NODE_RANK."""
    variables = {
        **os.environ, "NNODES": "2", "NODE_RANK": str(host), "MOE_RUN": "together",
        "RDZV_ENDPOINT": f"{ADDRESSES[0]}:29411",
    }  # fmt: skip
    program = [sys.executable, str(ROOT / "runners" / "bench.py")]
    return started.start(
        net.run(host, *program, *overrides, "hosts=many"), cwd=folder, env=variables
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    lines = out.splitlines()
    return process.returncode, json.loads(lines[-1]) if lines else {}, err


def on_both(net: Net, folder: Path, *overrides: str) -> list[tuple[int, dict[str, Any], str]]:
    """Host 1 first: it must wait for host 0 to come."""
    second = bench(net, 1, folder, *overrides)
    first = bench(net, 0, folder, *overrides)
    return [ended(first), ended(second)]


def test_the_readme_sweep_on_two_hosts_of_two_ranks(net: Net, tmp_path: Path) -> None:
    sweep = tmp_path / "outputs" / "together"
    words = ["-m", "strategy=simple,tp,ep", "topk=2,4,8", "world_size=4", *QUICK]
    before = net.received_bytes(1)
    (code, end, err), (other_code, _, other_err) = on_both(net, tmp_path, *words)
    assert (code, end["measured"], end["tracked"]) == (0, 9, 9), err
    assert other_code == 0, other_err
    found = [record.read(path) for path in record.paths(sweep)]
    assert len(found) == 9
    for one in found:
        assert one.environment["topology"]["node_of"] == [0, 0, 1, 1]
        assert one.environment["topology"]["clock"] == "end barrier inside the sample"
        assert (one.gate or {})["ok"]
    assert net.received_bytes(1) - before > 100_000  # tokens did travel through the cable

    # A cluster that starts the job again: nothing is missing, nothing is measured.
    (code, end, err), (other_code, _, other_err) = on_both(net, tmp_path, *words)
    assert (code, end["measured"], other_code) == (0, 9, 0), err + other_err
    assert "resuming: 9 measured" in err
    assert len(list(sweep.glob("launches/*"))) == 1


def test_a_rank_that_dies_on_the_other_host_fails_its_cell_only(net: Net, tmp_path: Path) -> None:
    words = ["-m", "strategy=simple,tp,ep", "topk=1,2", "world_size=4", "tracker=none", *QUICK,
             "measure.wave_cells=2", "measure.samples=60", "measure.samples_max=60"]  # fmt: skip
    second, first = (bench(net, host, tmp_path, *words) for host in (1, 0))
    lines = tmp_path / "outputs" / "together" / "launches" / "0" / "samples" / "rank3.jsonl"
    deadline = time.monotonic() + LIMIT_S
    while not (lines.exists() and '"kind":"long"' in lines.read_text()):
        assert first.poll() is None, ended(first)
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(json.loads(lines.read_text().splitlines()[0])["pid"], signal.SIGKILL)
    code, end, err = ended(first)
    assert (code, end["measured"], end["failed"]) == (1, 5, 1), err
    assert "rank 3 died of signal 9" in err
    code, _, err = ended(second)
    assert code == 0, err


def test_a_host_that_does_not_come_is_named(net: Net, tmp_path: Path) -> None:
    words = ["-m", "strategy=tp", "world_size=4", "hosts.wait_s=2", *QUICK]
    code, _, err = ended(bench(net, 0, tmp_path, *words))
    assert code == 2
    assert err.splitlines()[-1].startswith("error: hosts.node_rank=1: did not come within 2 s")
    code, _, err = ended(bench(net, 1, tmp_path, *words))  # what is left there is no order for it
    assert code == 1
    assert "no word from node 0" in err
