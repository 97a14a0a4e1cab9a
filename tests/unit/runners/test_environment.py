"""What a launch records about its machine: by allow-list, and memory peaks by a stated method."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runners.host import environment, hardware

ROOT = Path(__file__).resolve().parents[3]


def test_capture_is_json_and_names_nobody() -> None:
    captured = environment.capture(local_ranks=2, root=ROOT)
    text = json.dumps(captured)
    assert str(Path.home()) not in text
    assert os.uname().nodename not in captured["host"]
    assert captured["cores"] == len(os.sched_getaffinity(0)) or captured["cpu_quota"]
    assert captured["local_ranks"] == 2
    assert captured["memory_total_bytes"] > captured["memory_available_bytes"] > 0


def test_variables_are_allow_listed_and_paths_withheld() -> None:
    given = {
        "OMP_NUM_THREADS": "2",
        "MPIR_CVAR_POLLS_BEFORE_YIELD": "1",
        "GLOO_SOCKET_IFNAME": "eth0",
        "OMP_PLACES": "/home/someone/places",
        "WANDB_API_KEY": "secret",
        "HOME": "/home/someone",
        "NCCL_DEBUG_FILE": "x",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TORCH_HOME": "models",
    }
    assert environment.variables(given) == {
        "GLOO_SOCKET_IFNAME": "eth0",
        "MPIR_CVAR_POLLS_BEFORE_YIELD": "1",
        "OMP_NUM_THREADS": "2",
        "OMP_PLACES": "(withheld)",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }


def test_fingerprint_ignores_load_and_reacts_to_hardware_and_torch() -> None:
    one, two = environment.capture(), environment.capture()
    two["before"]["load_1m"] = 99.0
    two["memory_available_bytes"] = 1
    assert environment.fingerprint(one) == environment.fingerprint(two)
    for change in ({"cores": 96}, {"cpu_model": "other"}, {"versions": {"torch": "9.9"}}):
        assert environment.fingerprint({**one, **change}) != environment.fingerprint(one)


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, timeout=20)


def test_git_state_tells_clean_from_each_kind_of_change(tmp_path: Path) -> None:
    assert environment.git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-q", "-m", "a")
    clean = environment.git_state(tmp_path)
    assert clean is not None
    assert len(clean["sha"]) == 40
    assert clean["dirty"] is None
    (tmp_path / "a.py").write_text("2")
    edited = environment.git_state(tmp_path)
    (tmp_path / "new.py").write_text("1")
    added = environment.git_state(tmp_path)
    (tmp_path / "new.py").write_text("2")
    changed = environment.git_state(tmp_path)
    hashes = {state["dirty"] for state in (edited, added, changed) if state}
    assert len(hashes) == 3
    assert None not in hashes


def test_git_that_is_absent_or_slow_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.git_state(ROOT) is None
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nexec /bin/sleep 5\n")
    slow.chmod(0o755)
    assert environment.git_state(ROOT, limit_s=0.1) is None


@pytest.mark.parametrize(
    ("text", "cpus"), [("0", [0]), ("0-2,8", [0, 1, 2, 8]), ("1,3\n", [1, 3]), ("", [])]
)
def test_parse_cpu_list(text: str, cpus: list[int]) -> None:
    assert hardware.parse_cpu_list(text) == cpus


def run_here(code: str) -> str:
    """Output of `code` in a fresh interpreter that may pin itself and grow."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pin_gives_each_rank_its_own_core_and_each_core_as_many_ranks() -> None:
    code = (
        "import os, json\n"
        "from runners.host.environment import pin\n"
        "from runners.host.hardware import usable_cores\n"
        "n = usable_cores()\n"
        "sets = [pin(r, n, 1) for r in range(n)]\n"
        "last = sorted(os.sched_getaffinity(0))\n"
        "shared = [pin(r, 3 * n, 1) for r in range(3 * n)]\n"
        "print(json.dumps([n, sets, last, pin(0, n + 1, 1), shared, pin(0, 1, n)]))"
    )
    cores, sets, last, uneven, shared, whole = json.loads(run_here(code))
    assert sorted(core for pinned in sets for core in pinned) == sorted(whole)
    assert all(len(pinned) == 1 for pinned in sets)
    assert last == sets[-1]
    assert uneven is None or cores == 1  # with one core everything is even
    assert shared == 3 * sets
    assert len(whole) == cores


def test_pin_fills_physical_cores_before_their_second_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    siblings = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}

    def fake(path: str | Path) -> str | None:
        name = str(path)
        cpu = int(name.split("/cpu/cpu")[1].split("/")[0])
        return siblings[cpu] if name.endswith("thread_siblings_list") else "0"

    monkeypatch.setattr(environment, "text", fake)
    assert sorted(range(4), key=environment._core_order) == [0, 1, 2, 3]
    siblings.update({0: "0,1", 1: "0,1", 2: "2,3", 3: "2,3"})
    assert sorted(range(4), key=environment._core_order) == [0, 2, 1, 3]


def test_peak_memory_sees_a_freed_tensor_until_it_is_reset() -> None:
    code = (
        "import json, torch\n"
        "from runners.host.environment import peak_memory_bytes, reset_peak_memory\n"
        "start = peak_memory_bytes()\n"
        "ok = reset_peak_memory()\n"
        "base = peak_memory_bytes()\n"
        "x = torch.ones(64 << 20, dtype=torch.uint8); del x\n"
        "peak = peak_memory_bytes(); reset_peak_memory(); after = peak_memory_bytes()\n"
        "print(json.dumps([ok, start, base, peak, after]))"
    )
    ok, start, base, peak, after = json.loads(run_here(code))
    assert start["method"] == "VmHWM since process start"
    assert peak["method"] == ("VmHWM since reset" if ok else "VmHWM since process start")
    grown = peak["peak_bytes"] - base["current_bytes"]
    assert 60 << 20 < grown < 80 << 20
    assert peak["current_bytes"] < peak["peak_bytes"] - (50 << 20)
    if ok:
        assert after["peak_bytes"] < peak["peak_bytes"] - (50 << 20)


def test_snapshot_counts_what_happened_between_two() -> None:
    before = environment.snapshot()
    sum(range(3_000_000))
    after = environment.snapshot()
    assert after["cpu_s"] > before["cpu_s"]
    assert after["monotonic_ns"] > before["monotonic_ns"]
    assert after["voluntary_switches"] >= before["voluntary_switches"]


def test_importing_environment_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; sys.modules.update(torch=None, numpy=None, psutil=None)\n"
        "from runners.host import environment; from runners.mpi import start\n"
        "from runners.records import calibrations\n"
        "print(environment.capture()['cores'])"
    )
    assert int(run_here(code)) >= 1


def test_what_a_step_adds_does_not_depend_on_what_was_freed_before() -> None:
    kept: list[torch.Tensor] = []

    def step() -> None:
        first = torch.empty(3 << 20, dtype=torch.uint8)
        second = torch.empty(4 << 20, dtype=torch.uint8)
        del first
        torch.empty(1 << 20, dtype=torch.uint8)
        kept[:] = [second]

    for _ in range(2):
        kept.clear()
        assert environment.step_memory_bytes(step) == 7 << 20


@pytest.mark.parametrize(
    ("files", "there"),
    [([], False), (["nvidiactl", "null"], False), (["nvidia0"], True), (["kfd"], True)],
)
def test_only_a_device_file_makes_a_gpu_possible(
    tmp_path: Path, files: list[str], there: bool
) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert hardware.may_have_gpus(tmp_path) == there
