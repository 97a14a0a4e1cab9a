"""`hosts=auto` in the user's own command: two processes of one machine, told their place by the
variables that a platform sets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from runners.config.host_variables import READ
from runners.host.network import free_port
from runners.mpi.start import is_open_mpi, mpiexec_command
from runners.records import record
from tests.support import started

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120
BENCH = [sys.executable, str(ROOT / "runners" / "bench.py")]
nothing_stays = started.nothing_stays


def surroundings(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's variables, and of those that hosts=auto reads the given ones only."""
    own = {name: text for name, text in os.environ.items() if name not in READ}
    return {**own, **variables}


def of_node(convention: str, rank: int, port: int) -> dict[str, str]:
    """What a platform sets on node `rank` of two, node 0 being this machine."""
    number, endpoint = str(rank), f"127.0.0.1:{port}"
    return {
        "ours": {
            "NNODES": "2", "NODE_RANK": number, "RDZV_ENDPOINT": endpoint, "MOE_RUN": "together",
        },
        "PET": {
            "PET_NNODES": "2", "PET_NPROC_PER_NODE": "auto", "PET_NODE_RANK": number,
            "PET_MASTER_ADDR": "localhost", "PET_MASTER_PORT": str(port), "MOE_RUN": "together",
        },
        "SkyPilot": {
            "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": number,
            "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1", "SKYPILOT_TASK_ID": "together",
        },
        "Indexed Job": {
            "NNODES": "2", "JOB_COMPLETION_INDEX": number, "RDZV_ENDPOINT": endpoint,
            "MOE_RUN": "together",
        },
        "Open MPI": {
            "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": number,
            "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "RDZV_ENDPOINT": endpoint, "MOE_RUN": "together",
        },
        "MPICH": {
            "PMI_SIZE": "2", "PMI_RANK": number, "MPI_LOCALNRANKS": "1",
            "RDZV_ENDPOINT": endpoint, "MOE_RUN": "together",
        },
    }[convention]  # fmt: skip


def bench(folder: Path, variables: Mapping[str, str], *words: str) -> subprocess.Popen[str]:
    return started.start([*BENCH, *words], folder, surroundings(variables))


def ended(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    out, err = process.communicate(timeout=LIMIT_S)
    lines = out.splitlines()
    return process.returncode, json.loads(lines[-1]) if lines else {}, err


def on_both(folder: Path, convention: str, *words: str) -> list[tuple[int, dict[str, Any], str]]:
    """The same command on both nodes, node 1 first: it must wait for node 0 to come."""
    port = free_port("127.0.0.1")
    processes = [bench(folder, of_node(convention, rank, port), *words) for rank in (1, 0)]
    return [ended(process) for process in reversed(processes)]


@pytest.mark.parametrize(
    ("convention", "address"),
    [
        ("ours", "127.0.0.1:29411"),
        ("PET", "localhost:29411"),
        ("SkyPilot", "127.0.0.1:29500"),
        ("Indexed Job", "127.0.0.1:29411"),
        ("Open MPI", "127.0.0.1:29411"),
        ("MPICH", "127.0.0.1:29411"),
    ],
)
def test_the_config_has_what_the_platform_set(
    convention: str, address: str, tmp_path: Path
) -> None:
    variables = of_node(convention, 1, 29411)
    shown = subprocess.run(
        [*BENCH, "hosts=auto", "--cfg", "job", "--resolve"], cwd=tmp_path,
        env=surroundings(variables), capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    hosts = OmegaConf.create(shown.stdout).hosts
    assert (hosts.nnodes, hosts.node_rank, hosts.rdzv_endpoint) == (2, 1, address)
    assert hosts.run == "together"
    assert set(hosts.convention.split(", ")) == set(variables) - {"PET_NPROC_PER_NODE"}


@pytest.mark.dist
def test_two_nodes_of_a_train_job_measure_together_and_go_on(tmp_path: Path) -> None:
    words = ["hosts=auto", "hosts.ranks_per_node=1", "hosts.wait_s=60", "strategy=tp",
             "world_size=2", "tracker=none", *started.QUICK]  # fmt: skip
    (code, end, err), (other_code, _, other_err) = on_both(tmp_path, "PET", *words)
    assert (code, end.get("measured"), other_code) == (0, 1, 0), err + other_err
    read = "(MOE_RUN, PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT)"
    for rank, text in enumerate((err, other_err)):
        (line,) = [line for line in text.splitlines() if line.startswith("hosts=auto: ")]
        assert line.startswith(f"hosts=auto: node {rank} of 2, node 0 at localhost:")
        assert line.endswith(f", run together {read}")
    sweep = tmp_path / "outputs" / "together"
    (path,) = record.paths(sweep)
    found = record.read(path)
    assert found.cell.placement.nodes == 2
    assert (found.gate or {})["ok"]
    config = json.loads((path.parent / ".hydra" / "config.json").read_text("utf-8"))
    assert config["hosts"]["convention"] == read.strip("()")

    # The platform starts both pods again, with the folder named in the command.
    again = on_both(tmp_path, "PET", *words, "resume=outputs/together")
    assert [code for code, _, _ in again] == [0, 0], again
    assert again[0][1]["measured"] == 1
    assert "resuming: 1 measured" in again[0][2]
    assert list(record.paths(sweep)) == [path]


@pytest.mark.dist
def test_two_nodes_of_a_job_sweep_together(tmp_path: Path) -> None:
    words = ["-m", "hosts=auto", "hosts.ranks_per_node=1", "hosts.wait_s=60", "strategy=tp,ep",
             "world_size=2", "tracker=none", *started.QUICK]  # fmt: skip
    (code, end, err), (other_code, _, other_err) = on_both(tmp_path, "Indexed Job", *words)
    assert (code, end.get("measured"), other_code) == (0, 2, 0), err + other_err
    assert Path(end["sweep_dir"]).name == "together"
    for text in (err, other_err):
        assert "(NNODES, RDZV_ENDPOINT, MOE_RUN, JOB_COMPLETION_INDEX)" in text


@pytest.mark.dist
def test_mpiexec_that_starts_two_on_a_host_is_refused(tmp_path: Path) -> None:
    """The variables as the real mpiexec sets them."""
    variables = surroundings({"MOE_RUN": "together", "RDZV_ENDPOINT": "127.0.0.1:29411"})
    command = mpiexec_command(2, [*BENCH, "hosts=auto"], variables)
    done = subprocess.run(
        command, cwd=tmp_path, env=variables, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=LIMIT_S,
    )  # fmt: skip
    if is_open_mpi(command[0]):
        counted, option = "OMPI_COMM_WORLD_LOCAL_SIZE", "--map-by ppr:1:node"
    else:
        counted, option = "MPI_LOCALNRANKS", "-ppn 1"
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2
    assert lines == 2 * [
        f"error: {counted}=2: allowed is one process on a host, which starts the ranks itself; "
        f"start it with mpiexec {option}"
    ]
