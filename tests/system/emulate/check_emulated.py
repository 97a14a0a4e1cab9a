"""An emulated cluster for real: namespaces, shaped links, paced ranks. Run by `make test-emulate`,
which fails where namespaces cannot be made; the file's name keeps it out of `make test`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from runners.records import record

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.timeout(300)
SMALL = (
    "model.dim=64", "model.hidden=64", "model.dim_out=64", "model.num_experts=8", "topk=2",
    "world_size=4", "batch_size=256",
)  # fmt: skip
LAYER = "strategy=ep strategy.dispatcher=alltoall"


def command(name: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.emulate", "--name", name, *words, *SMALL]


def records_of(name: str) -> tuple[Path, list[dict[str, Any]]]:
    folder = max((ROOT / "outputs").glob(f"*_{name}"))
    paths = sorted(folder.glob("cells/*/record*.json"))
    return folder, [record.read(path).__dict__ for path in paths]


def run(words: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False, **options
    )


def ranks_running(name: str) -> list[int]:
    """Processes whose command line names the sweep's folder."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"_{name}/" in path.read_bytes().replace(b"\0", b" ").decode():
                pids.append(int(path.parent.name))
        except OSError:
            continue
    return pids


def check_records(name: str) -> None:
    folder, records = records_of(name)
    assert len(records) == 2
    for one in records:
        assert one["outcome"] == "measured", one["error"]
        assert one["gate"]["ok"] and one["gate"]["after"]["ok"]
        emulated = one["environment"]["emulated"]
        assert emulated["dilation"] == 20 and emulated["ranks_per_node"] == 2
        assert one["environment"]["network"] == "emulated"
        assert one["calibration"]["ranks"] == 4
        assert set(one["samples"].kind) <= {"warmup", "fixed", "void"}
        assert one["samples"].kind.count("fixed") >= 3
    shutil.rmtree(folder)


def test_cells_are_measured_with_proof_and_leave_nothing() -> None:
    name = f"check-{os.getpid()}-measured"
    done = run(command(name, "--dilation", "20", "--cells", "strategy=tp", "--cells", LAYER))
    assert done.returncode == 0, done.stderr[-3000:]
    assert not ranks_running(name)
    check_records(name)


def test_the_links_can_be_had_in_a_user_namespace_too() -> None:
    """As another user than root has them."""
    program = (
        "import os; os.geteuid = lambda: 1000; "
        "from benchmarks.emulate import launch; launch.check(); print('links')"
    )
    done = run([sys.executable, "-c", program])
    assert done.stdout == "links\n", done.stderr[-3000:]


def long_sweep(name: str) -> subprocess.Popen[str]:
    """Runs until something ends it."""
    return subprocess.Popen(
        command(name, "--cells", LAYER, "measure.samples=400", "measure.samples_max=400"),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_a_killed_rank_fails_its_cell_and_no_rank_stays() -> None:
    name = f"check-{os.getpid()}-killed"
    started = long_sweep(name)
    log = wait_for_round(name)
    pid = json.loads(log.read_text().splitlines()[0])["pid"]
    os.kill(pid, signal.SIGKILL)
    out, _ = started.communicate(timeout=120)
    assert started.returncode == 1
    assert "died of signal 9" in out
    assert not ranks_running(name)
    shutil.rmtree(records_of(name)[0])


def test_an_interrupt_ends_ranks_and_links() -> None:
    name = f"check-{os.getpid()}-stopped"
    started = long_sweep(name)
    wait_for_round(name)
    started.send_signal(signal.SIGTERM)
    started.communicate(timeout=60)
    assert started.returncode == 130
    assert not ranks_running(name)
    shutil.rmtree(records_of(name)[0])


def wait_for_round(name: str) -> Path:
    """The log of rank 1, once a block of a round is in it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for log in (ROOT / "outputs").glob(f"*_{name}/launches/0/samples/rank1.jsonl"):
            if '"stage": "round"' in (text := log.read_text()) or '"stage":"round"' in text:
                return log
        time.sleep(0.2)
    pytest.fail("no round began within two minutes")
