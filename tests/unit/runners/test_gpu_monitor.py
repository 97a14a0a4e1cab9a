"""GPUs as nvidia-smi reports them: a program of that name on PATH stands in for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runners.host import environment, gpu_monitor, hardware
from runners.rank import gpu, worker
from runners.records import stats
from runners.sweep.progress import Progress
from runners.sweep.settings import Settings
from runners.sweep.sweep import Sweep
from tests.support import analysis_factory as factory

# Knows the fields that are named in KNOWN; answers once, or with --loop-ms until it is ended.
NVIDIA_SMI = """#!{python}
import sys, time
known, rows = {known!r}, {rows!r}
options = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:] if "=" in word)
fields = options["query-gpu"].split(",")
if unknown := [field for field in fields if field not in known]:
    print(f'Field "{{unknown[0]}}" is not a valid field to query.')
    sys.exit(2)
text = "".join(", ".join(row[field] for field in fields) + "\\n" for row in rows)
if "loop-ms" not in options:
    print(text, end="")
    sys.exit()
with open(options["filename"], "a") as file:
    while True:
        file.write(text)
        file.flush()
        time.sleep(0.01)
"""
VALUES = {
    "index": "0", "name": "Card", "driver_version": "580.1", "memory.total": "81559",
    "clocks.sm": "1980", "clocks.mem": "2619", "clocks.max.sm": "1980", "temperature.gpu": "40",
    "power.draw": "690.5", "power.limit": "700.00", gpu_monitor.REASONS: "0x0000000000000000",
}  # fmt: skip


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *rows: dict[str, str]) -> None:
    """An nvidia-smi that knows the fields of its first row."""
    program = folder / "nvidia-smi"
    code = NVIDIA_SMI.format(python=sys.executable, known=list(rows[0]), rows=list(rows))
    program.write_text(code)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def without(name: str) -> dict[str, str]:
    return {field: value for field, value in VALUES.items() if field != name}


def test_without_the_program_there_are_no_gpus_and_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.gpus() == []
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(hardware, "_query", lambda names, end_s: None)
    assert gpu_monitor.start(tmp_path / "gpus.csv") is None


def test_every_field_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, VALUES, {**VALUES, "name": "Other"})
    one, two = hardware.gpus()
    assert (one["name"], two["name"]) == ("Card", "Other")
    assert one["memory_total"] == "81559"
    assert one["power_limit"] == "700.00"
    assert one["clocks_throttle_reasons_active"] == "0x0000000000000000"
    assert len(one) == len(hardware.GPU_FIELDS)


def test_a_field_that_the_driver_names_anew_is_asked_for_by_both_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = {**without(gpu_monitor.REASONS), "clocks_event_reasons.active": "0x4"}
    install(tmp_path, monkeypatch, newer)
    (gpu,) = hardware.gpus()
    assert gpu["clocks_throttle_reasons_active"] == "0x4"
    assert gpu["name"] == "Card"


def test_an_unknown_field_loses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, without("power.limit"))
    (gpu,) = hardware.gpus()
    assert "power_limit" not in gpu
    assert gpu["power_draw"] == "690.5"
    assert len(gpu) == len(hardware.GPU_FIELDS) - 1


def test_a_query_that_hangs_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    began = time.monotonic()
    assert hardware.gpus(limit_s=0.2) == []
    assert time.monotonic() - began < 30


def summary_once_there(monitor: gpu_monitor.GpuMonitor) -> list[dict[str, Any]]:
    for _ in range(1000):
        if monitor.path.exists():
            new = monitor.path.read_bytes()[monitor.offset :]
            if new.count(b"\n") >= 2:
                return monitor.summary()
        time.sleep(0.01)
    raise TimeoutError("no readings")


@pytest.mark.parametrize(("mask", "harmful"), [("0x1", False), ("0x24", True)])
def test_readings_of_a_wave_and_the_end_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str, harmful: bool
) -> None:
    install(tmp_path, monkeypatch, {**VALUES, gpu_monitor.REASONS: mask})
    monitor = gpu_monitor.start(tmp_path / "gpus.csv")
    assert monitor is not None
    try:
        (gpu,) = summary_once_there(monitor)
        (later,) = summary_once_there(monitor)
    finally:
        monitor.end()
    assert monitor.process.poll() is not None
    monitor.end()
    assert gpu["readings"] >= 2
    assert gpu["sm_mhz"] == [1980, 1980, 1980]
    assert (gpu["temperature_max_c"], gpu["power_max_w"], gpu["power_limit_w"]) == (40, 690.5, 700)
    assert gpu["reasons"] == int(mask, 16)
    assert gpu["harmful"] == (gpu["readings"] if harmful else 0)
    lines = (tmp_path / "gpus.csv").read_text().splitlines()
    assert gpu["readings"] + later["readings"] <= len(lines)  # no reading counts twice


def test_the_program_dies_with_the_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, VALUES)
    code = (
        "import os, pathlib, signal, time\n"
        "from runners.host import gpu_monitor\n"
        f"path = pathlib.Path({str(tmp_path / 'gpus.csv')!r})\n"
        "monitor = gpu_monitor.start(path)\n"
        "while not path.exists(): time.sleep(0.01)\n"
        "print(monitor.process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    pid = int(done.stdout)
    for _ in range(1000):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or ") Z " in status.read_text():
            return
        time.sleep(0.01)
    raise AssertionError("it is still running")


def reading(gpu: int, mhz: str, mask: str, **changes: str) -> dict[str, str]:
    values = {**VALUES, "index": str(gpu), "clocks.sm": mhz, gpu_monitor.REASONS: mask}
    return {**values, **changes}


def test_a_wave_by_hand() -> None:
    """Median of 1000, 1900 and 1980; reasons 0x1 | 0x4 | 0x20; N/A counts for nothing."""
    readings = [
        reading(1, "1980", "0x1"),
        reading(0, "[N/A]", "[N/A]", **{"power.limit": "[N/A]"}),
        reading(1, "1000", "0x24", **{"temperature.gpu": "88", "power.draw": "300.0"}),
        reading(1, "1900", "0x4"),
        {"index": "[Unknown Error]"},
    ]
    first, second = gpu_monitor.summarize(readings)
    assert first == {
        "gpu": 0, "readings": 1, "sm_mhz": None, "temperature_max_c": 40, "power_max_w": 690.5,
        "power_limit_w": None, "reasons": None, "harmful": 0,
    }  # fmt: skip
    assert second == {
        "gpu": 1, "readings": 3, "sm_mhz": [1000, 1900, 1980], "temperature_max_c": 88,
        "power_max_w": 690.5, "power_limit_w": 700, "reasons": 0x25, "harmful": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("harmful", "reasons", "words"),
    [
        (0, 0x1, []),
        (2, 0x5, []),  # 1% of the readings
        (3, 0x5, ["software power cap"]),
        (200, 0xE8 | 0x113, ["hardware slowdown", "software thermal slowdown",
                             "hardware thermal slowdown", "hardware power brake"]),
    ],
)  # fmt: skip
def test_a_record_of_a_throttled_wave_is_flagged(
    harmful: int, reasons: int, words: list[str]
) -> None:
    quiet = {"gpu": 0, "readings": 200, "reasons": 0x40, "harmful": 1}
    wave = {"gpus": [quiet, {"gpu": 1, "readings": 200, "reasons": reasons, "harmful": harmful}]}
    facts = {**factory.ENVIRONMENT, "cores": 64, "after": [wave, {"load_1m": 1.0}, None]}
    assert gpu_monitor.throttling(facts) == words
    one = factory.measured(factory.cell("ep"), environment=facts)
    assert ("throttled" in stats.flags(one)) == bool(words)


def test_a_fingerprint_names_the_gpus_and_their_software_and_leaves_a_cpus_as_it_is() -> None:
    here = environment.capture()
    plain = environment.fingerprint(here)
    old = {**here, "versions": {name: here["versions"][name] for name in ("python", "torch")}}
    assert environment.fingerprint(old) == plain  # as before it knew other libraries
    gpu = {"name": "Card", "memory_total": "81559", "driver_version": "580.1", "clocks_sm": "1980"}
    software = {"cuda": "13.0", "nccl": "2.28.9", "triton": "3.6", "transformers": "5.17"}
    known = {**here, "gpus": [gpu], "versions": {**here["versions"], **software}}
    marks = {plain, environment.fingerprint(known)}
    for change in ("name", "memory_total", "driver_version"):
        marks.add(environment.fingerprint({**known, "gpus": [{**gpu, change: "other"}]}))
    for name in ("torch", *software):
        versions = {**known["versions"], name: "other"}
        marks.add(environment.fingerprint({**known, "versions": versions}))
    marks.add(environment.fingerprint({**known, "gpus": [gpu, gpu]}))
    assert len(marks) == 2 + 3 + 5 + 1
    cooler = {**known, "gpus": [{**gpu, "clocks_sm": "300"}]}
    assert environment.fingerprint(cooler) == environment.fingerprint(known)


def test_a_launch_on_gpus_has_another_fingerprint_than_one_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, VALUES)
    cpu = environment.capture()
    on_gpus = environment.with_gpus(cpu)
    captured = environment.capture("cuda")
    assert environment.fingerprint(on_gpus) == environment.fingerprint(captured)
    assert environment.fingerprint(on_gpus) != environment.fingerprint(cpu)
    assert set(captured["versions"]) - set(cpu["versions"]) == {"cuda", "nccl"}
    assert {"triton", "transformers"} <= set(cpu["versions"])


class Noted:
    """A monitor that notes its calls and has one GPU."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def summary(self) -> list[dict[str, Any]]:
        self.calls.append("summary")
        return [{"gpu": 0, "readings": len(self.calls)}]

    def end(self) -> None:
        self.calls.append("end")


def a_worker(tmp_path: Path, device: str, local_rank: int) -> tuple[Any, list[dict[str, Any]]]:
    lines: list[dict[str, Any]] = []
    one: Any = worker.Worker.__new__(worker.Worker)
    placement = SimpleNamespace(staged=False)
    one.plan, one.launch_dir = SimpleNamespace(waves=[[0], [1]], placement=placement), tmp_path
    one.place = SimpleNamespace(local_rank=local_rank, local_ranks=2, node=1)
    one.comm = SimpleNamespace(device=torch.device(device))
    one.log = SimpleNamespace(write=lambda event, **values: lines.append(values))
    one._log_environment = lambda: None
    one._wave = one._wait_for_launcher = lambda *numbers: None
    return one, lines


@pytest.mark.parametrize(
    ("device", "local_rank", "monitored"),
    [("cuda:0", 0, True), ("cuda:1", 1, False), ("cpu", 0, False)],
)
def test_the_first_rank_of_a_node_with_gpus_sums_up_every_wave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, local_rank: int, monitored: bool
) -> None:
    monitor, paths = Noted(), []
    monkeypatch.setattr(gpu_monitor, "start", lambda path, ids: paths.append(path) or monitor)
    one, lines = a_worker(tmp_path, device, local_rank)
    one.run()
    assert [line["wave"] for line in lines] == [0, 1]
    assert paths == ([tmp_path / "gpus-1.csv"] if monitored else [])
    assert monitor.calls == (["summary"] * 4 + ["end"] if monitored else [])
    seen = [line["after"].get("gpus") for line in lines]
    readings = [[{"gpu": 0, "readings": 2}], [{"gpu": 0, "readings": 4}]]  # each after its wave
    assert seen == (readings if monitored else [None, None])


def test_the_monitor_ends_with_a_launch_that_fails_and_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = Noted()
    monkeypatch.setattr(gpu_monitor, "start", lambda path, ids: monitor)
    one, _ = a_worker(tmp_path, "cuda:0", 0)

    def fail(number: int, wave: list[int]) -> None:
        raise RuntimeError("CUDA error")

    one._wave = fail
    with pytest.raises(RuntimeError):
        one.run()
    assert monitor.calls == ["summary", "end"]
    monkeypatch.setattr(gpu_monitor, "start", lambda path, ids: None)
    one, lines = a_worker(tmp_path, "cuda:0", 0)
    one.run()
    assert len(lines) == 2
    assert "gpus" not in lines[0]["after"]


def test_ids_of_the_gpus_of_a_nodes_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"ab-{device}")
    )
    assert gpu.ids(2) == ("GPU-ab-0", "GPU-ab-1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace())
    assert gpu.ids(2) == ()


def test_a_sweep_looks_for_the_calibration_of_its_launchs_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, VALUES)
    sweep = Sweep([], Settings(tmp_path / "sweep"), Progress())
    cpu, cuda = sweep.context().fingerprint, sweep.context(device="cuda").fingerprint
    assert cpu == environment.fingerprint(environment.capture())
    assert cuda == environment.fingerprint(environment.capture("cuda"))
    assert cpu != cuda


def test_ranks_that_are_not_timed_are_not_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_monitor, "start", None)
    one, lines = a_worker(tmp_path, "cuda:0", 0)
    one.plan.placement.staged = True
    one.run()
    assert len(lines) == 2
