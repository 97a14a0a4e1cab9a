"""Variables and signals from around a sweep: what reaches its ranks, and what ends it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec
from runners.config.hosts import pass_env_of
from runners.errors import ConfigError
from runners.host import inherited
from runners.launch.local import LaunchProcess, rank_environment
from runners.mpi import start as mpi
from runners.plan import Job, LaunchPlan, Measure
from runners.sweep import entry, launch
from runners.sweep.progress import Progress
from runners.sweep.result import SweepResult
from runners.sweep.settings import Settings
from runners.sweep.sweep import Sweep
from tests.support import started

ROOT = Path(__file__).resolve().parents[2]
nothing_stays, interruptible = started.nothing_stays, started.interruptible
FOREIGN = ("PET_", "TORCHELASTIC_", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "SLURM_", "PMI_",
           "PMIX_", "OMPI_", "I_MPI_", "HYDRA_", "MPIR_CVAR_", "FI_", "JPY_", "MPL", "WANDB_",
           "SUBMITIT_", "KUBERNETES_", "AWS_", "MOE_")  # fmt: skip
NEEDED = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "PYTHONPATH", "PYTHONHASHSEED", "VIRTUAL_ENV",
          "LD_LIBRARY_PATH", "LD_PRELOAD", "https_proxy", "NO_PROXY", "CUDA_VISIBLE_DEVICES",
          "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES", "NCCL_IB_HCA", "NCCL_SOCKET_IFNAME",
          "GLOO_SOCKET_IFNAME")  # fmt: skip
endings = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789", min_size=1, max_size=12)
foreign = st.builds(str.__add__, st.sampled_from(FOREIGN), endings) | st.sampled_from(
    ["RANK", "WORLD_SIZE", "MPLBACKEND", "OMP_NUM_THREADS", "KMP_AFFINITY", "AWS_SECRET_ACCESS_KEY"]
)


@given(st.dictionaries(foreign, st.text(max_size=9)), st.sets(st.sampled_from(NEEDED)))
def test_ranks_inherit_what_they_need_and_nothing_of_another_launcher_or_tracker(
    others: dict[str, str], needed: set[str]
) -> None:
    own = dict.fromkeys(needed, "mine")
    assert inherited.inherited_by_ranks({**others, **own}, []) == own


@given(st.dictionaries(foreign, st.text(max_size=9)), st.lists(endings.map(lambda e: e[0] + "*")))
def test_pass_env_hands_on_no_secret_and_no_launchers_variable(
    others: dict[str, str], patterns: list[str]
) -> None:
    passed = inherited.inherited_by_ranks(others, [*patterns, *others])
    bad = ("PET_", "TORCHELASTIC_", "MASTER_", "LOCAL_", "WANDB_", "SLURM_", "RANK", "WORLD_SIZE")
    words = ("SECRET", "KEY", "TOKEN", "PASS")
    assert not [name for name in passed if name.startswith(bad) or any(w in name for w in words)]
    tuning = {name for name in others if name.startswith(("FI_", "MPIR_CVAR_"))}
    secret = (*words, "CREDENTIAL", "WANDB_", "NETRC")
    assert {n for n in tuning if not any(w in n for w in secret)} <= set(passed)


@pytest.mark.parametrize("good", [[], ["MALLOC_ARENA_MAX"], ["UCX_*", "_mine"]])
def test_pass_env_takes_names_and_families(good: list[str]) -> None:
    assert pass_env_of({"pass_env": good}) == tuple(good)


@pytest.mark.parametrize(
    "bad",
    ["UCX_*", None, 3, {"A": 1}, [""], ["*"], ["A=1"], ["A*B"], ["A B"], [7], ["PET_NNODES"],
     ["TORCHELASTIC_*"], ["RANK"], ["MASTER_ADDR"], ["WANDB_API_KEY"], ["HF_TOKEN"], ["MOE_RUN"]],
)  # fmt: skip
def test_pass_env_refuses_what_is_no_name_a_secret_or_a_launchers(bad: Any) -> None:
    with pytest.raises(ConfigError, match=r"hosts\.pass_env.*allowed.*(set|leave it out)"):
        pass_env_of({"pass_env": bad})


def test_a_library_setting_that_ranks_do_not_get_is_named() -> None:
    here = {"OMP_PROC_BIND": "true", "OMP_NUM_THREADS": "4", "NCCL_ALGO": "Ring", "PATH": "/bin"}
    assert entry.not_passed(here, []) == ["OMP_PROC_BIND"]
    assert entry.not_passed(here, ["OMP_*"]) == []
    allocator = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "UCX_TLS": "tcp"}
    assert entry.not_passed(allocator, ["UCX_*"]) == ["PYTORCH_CUDA_ALLOC_CONF"]


def plan(folder: Path, backend: str = "gloo", pass_env: tuple[str, ...] = ()) -> LaunchPlan:
    place = RankLayout(2, backend, threads=3)
    return LaunchPlan(0, str(folder / "0"), Measure(), place, [Cell()], [""], [[0]], [True],
                      pass_env=list(pass_env))  # fmt: skip


def test_threads_are_the_launchs_and_pass_env_is_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_BLOCKTIME", "UCX_TLS"):
        monkeypatch.setenv(name, "77")
    made = rank_environment(plan(tmp_path, pass_env=("KMP_*", "OMP_*")))
    assert (made["OMP_NUM_THREADS"], made["MKL_NUM_THREADS"]) == ("3", "3")
    assert made["KMP_BLOCKTIME"] == "77"
    assert "UCX_TLS" not in made


STRANGE = {  # Kubeflow's, torchrun's, Slurm's, MPI's, a notebook's and W&B's
    "PET_NNODES": "2", "PET_NO_PYTHON": "1", "PET_RDZV_BACKEND": "etcd", "PET_NPROC_PER_NODE": "5",
    "PET_LOG_DIR": "/nowhere", "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True",
    "RANK": "7", "WORLD_SIZE": "9", "LOCAL_RANK": "7", "MASTER_ADDR": "192.0.2.1",
    "MASTER_PORT": "1", "GROUP_RANK": "4", "SLURM_PROCID": "3", "SLURM_NTASKS": "5",
    "SLURM_JOB_ID": "1", "PMI_RANK": "5", "PMI_SIZE": "6", "PMI_FD": "99", "PMI_PORT": "a:1",
    "OMPI_COMM_WORLD_RANK": "3", "HYDRA_HOST_FILE": "/nowhere", "MPICH_INTERFACE_HOSTNAME": "no",
    "MPLBACKEND": "module://nowhere", "WANDB_MODE": "online", "OMP_PROC_BIND": "true",
    "OMP_NUM_THREADS": "0x", "KMP_AFFINITY": "nonsense",
}  # fmt: skip


@pytest.mark.dist
@pytest.mark.parametrize("backend", ["gloo", "mpi"])
def test_a_sweep_runs_among_the_settings_of_other_launchers(tmp_path: Path, backend: str) -> None:
    if backend == "mpi":
        assert mpi.unavailable_reason() is None
    done = subprocess.run(
        [sys.executable, str(ROOT / "runners" / "bench.py"), "strategy=tp", "world_size=2",
         f"backend={backend}", "tracker=none", "measure.calibrate=false", *started.QUICK,
         f"hydra.run.dir={tmp_path}/sweep"],
        capture_output=True, text=True, timeout=240, cwd=tmp_path, env={**os.environ, **STRANGE},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "sweep" / "cells").glob("*/record-*.json")
    environment = json.loads(record.read_text())["environment"]
    assert environment["variables"]["OMP_NUM_THREADS"] != STRANGE["OMP_NUM_THREADS"]
    assert not {"KMP_AFFINITY", "OMP_PROC_BIND"} & set(environment["variables"])
    assert environment["cores"] == len(os.sched_getaffinity(0))
    named = re.search(r"hosts\.pass_env=\[(.*?)\]", done.stderr)
    assert named and {"KMP_AFFINITY", "OMP_PROC_BIND"} <= set(named[1].split(","))


def waiting(taken: LaunchPlan) -> LaunchProcess:
    """A launch whose ranks never come."""
    launch_dir = Path(taken.launch_dir)
    (launch_dir / "logs").mkdir(parents=True)
    (launch_dir / "logs" / "agent.log").write_text("no host answers\n")
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    return LaunchProcess(process, launch_dir)


def run(folder: Path, cell_limit_s: float) -> SweepResult:
    cells = [
        Cell(LayerSpec(), StrategySpec(name), placement=RankLayout(2)) for name in ("simple", "tp")
    ]
    measure = Measure(calibrate=False, cell_limit_s=cell_limit_s)
    asked = [Job(cell, measure) for cell in cells]
    return Sweep(asked, Settings(folder / "sweep"), Progress(), waiting).run()


def test_a_start_without_ranks_is_called_that_and_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "STALL_MARGIN_S", 0.1)
    result = run(tmp_path, cell_limit_s=0.5)
    assert result.counts()["failed"] == 2
    assert len(list((tmp_path / "sweep" / "launches").iterdir())) == 1
    for _, message, log in result.failures:
        assert message == "the ranks did not start within 0.6 s: no host answers"
        assert (tmp_path / "sweep" / log).exists()


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_one_signal_ends_a_launch_that_has_no_sample_to_lose(
    tmp_path: Path, number: signal.Signals
) -> None:
    timer = threading.Timer(1.0, os.kill, (os.getpid(), number))
    timer.start()
    began = time.monotonic()
    result = run(tmp_path, cell_limit_s=300)
    assert time.monotonic() - began < 30  # and not the limit
    assert result.exit_code == 130
    assert result.counts()["interrupted"] == 2


@pytest.mark.dist
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_ends_a_real_start(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, str(ROOT / "runners" / "bench.py"), "world_size=2", "tracker=none"]
    command += [*started.QUICK, f"hydra.run.dir={tmp_path}/sweep"]
    process = started.start(command, tmp_path, os.environ)
    log = tmp_path / "sweep" / "launches" / "0" / "logs" / "agent.log"
    deadline = time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert json.loads(out.splitlines()[-1])["interrupted"] == 1
    assert "Traceback" not in err
