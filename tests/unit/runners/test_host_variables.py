"""hosts=auto: this host's place among hosts, from the variables that platforms set."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from omegaconf import OmegaConf

from runners.config import host_variables, hydra_plugins
from runners.config.host_variables import HostVariables, read
from runners.config.hosts import hosts_of
from runners.config.resolution import plain
from runners.config.schema import defaults
from runners.errors import ConfigError
from tests.support import bad_input

ROOT = Path(__file__).resolve().parents[3]
OURS = {"NNODES": "2", "NODE_RANK": "1", "RDZV_ENDPOINT": "10.0.0.1:29511", "MOE_RUN": "first"}
# Kubeflow Trainer's plugin for torch sets these in a TrainJob called moe.
TRAIN_JOB = {
    "PET_NNODES": "2", "PET_NPROC_PER_NODE": "auto", "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "moe-node-0-0.moe", "PET_MASTER_PORT": "29500", "JOB_COMPLETION_INDEX": "1",
}  # fmt: skip
# The training operator sets these in worker 0 of a PyTorchJob called moe.
PYTORCH_JOB = {
    "MASTER_ADDR": "moe-master-0", "MASTER_PORT": "23456", "WORLD_SIZE": "2", "RANK": "1",
    "PET_NNODES": "2", "PET_NPROC_PER_NODE": "auto", "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "moe-master-0", "PET_MASTER_PORT": "23456",
}  # fmt: skip
SKYPILOT = {
    "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    "SKYPILOT_NODE_IPS": "172.31.8.1\n172.31.8.2\n",
    "SKYPILOT_TASK_ID": "sky-managed-2023-07-06-21-18-31-563597_my.job_1-0",
}  # fmt: skip
JOB = {"JOB_COMPLETION_INDEX": "1", "NNODES": "2"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}  # fmt: skip
MPICH = {"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALNRANKS": "1", "MPI_LOCALRANKID": "0"}
ADDRESS = {"RDZV_ENDPOINT": "10.0.0.1:29511", "MOE_RUN": "first"}
FIRST = "10.0.0.1:29511"

EXAMPLES: dict[str, tuple[dict[str, str], str, HostVariables]] = {
    "this project's": (
        OURS, "",
        HostVariables(2, 1, FIRST, "first", "NNODES, NODE_RANK, RDZV_ENDPOINT, MOE_RUN"),
    ),
    "one host": ({"NNODES": "1"}, "", HostVariables(1, 0, None, None, "NNODES")),
    "TrainJob": (
        TRAIN_JOB, "moe-node-0-1.moe.default.svc.cluster.local",
        HostVariables(
            2, 1, "moe-node-0-0.moe:29500", "moe-node-0",
            "PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT, JOB_COMPLETION_INDEX",
        ),
    ),
    "PyTorchJob": (
        PYTORCH_JOB, "",
        HostVariables(
            2, 1, "moe-master-0:23456", "moe-master",
            "PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT",
        ),
    ),
    "PET without a port, by address": (
        {"PET_NNODES": "2", "PET_NODE_RANK": "0", "PET_MASTER_ADDR": "fd00::1"}, "",
        HostVariables(
            2, 0, "[fd00::1]:29500", None, "PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR"
        ),
    ),
    "PET on one machine": (
        {"PET_NNODES": "1", "PET_NODE_RANK": "0", "PET_MASTER_ADDR": "localhost"}, "",
        HostVariables(
            1, 0, "localhost:29500", None, "PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR"
        ),
    ),
    "SkyPilot": (
        SKYPILOT, "",
        HostVariables(
            2, 0, "172.31.8.1:29500", "sky-managed-2023-07-06-21-18-31-563597_my-job_1-0",
            "SKYPILOT_NUM_NODES, SKYPILOT_NODE_RANK, SKYPILOT_NODE_IPS, SKYPILOT_TASK_ID",
        ),
    ),
    "SkyPilot, a long name": (
        {**SKYPILOT, "SKYPILOT_TASK_ID": "s" * 100}, "",
        HostVariables(
            2, 0, "172.31.8.1:29500", "s" * 80,
            "SKYPILOT_NUM_NODES, SKYPILOT_NODE_RANK, SKYPILOT_NODE_IPS, SKYPILOT_TASK_ID",
        ),
    ),
    "SkyPilot, its name chosen": (
        {**SKYPILOT, "MOE_RUN": "chosen"}, "",
        HostVariables(
            2, 0, "172.31.8.1:29500", "chosen",
            "MOE_RUN, SKYPILOT_NUM_NODES, SKYPILOT_NODE_RANK, SKYPILOT_NODE_IPS, SKYPILOT_TASK_ID",
        ),
    ),
    "Indexed Job": (
        JOB, "moe-1.moe-net.default.svc.cluster.local",
        HostVariables(
            2, 1, "moe-0.moe-net.default.svc.cluster.local:29500", "moe",
            "NNODES, JOB_COMPLETION_INDEX",
        ),
    ),
    "JobSet, pod 11 of job 0 of workers": (
        {"JOB_COMPLETION_INDEX": "11", "NNODES": "12"}, "set-workers-0-11.set.ns.svc.example",
        HostVariables(
            12, 11, "set-workers-0-0.set.ns.svc.example:29500", "set-workers-0",
            "NNODES, JOB_COMPLETION_INDEX",
        ),
    ),
    "Indexed Job without a service": (
        {**JOB, "RDZV_ENDPOINT": FIRST}, "moe-1",
        HostVariables(2, 1, FIRST, "moe", "NNODES, RDZV_ENDPOINT, JOB_COMPLETION_INDEX"),
    ),
    "Indexed Job on the host's network": (
        {**JOB, "RDZV_ENDPOINT": FIRST}, "machine7.example",
        HostVariables(2, 1, FIRST, None, "NNODES, RDZV_ENDPOINT, JOB_COMPLETION_INDEX"),
    ),
    "Open MPI": (
        {**OPEN_MPI, **ADDRESS}, "",
        HostVariables(
            2, 1, FIRST, "first",
            "RDZV_ENDPOINT, MOE_RUN, OMPI_COMM_WORLD_SIZE, OMPI_COMM_WORLD_RANK, "
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ),
    ),
    "MPICH": (
        {**MPICH, **ADDRESS}, "",
        HostVariables(
            2, 1, FIRST, "first", "RDZV_ENDPOINT, MOE_RUN, PMI_SIZE, PMI_RANK, MPI_LOCALNRANKS"
        ),
    ),
    "PMI without a local size": (
        {"PMI_SIZE": "2", "PMI_RANK": "0", "RDZV_ENDPOINT": FIRST}, "",
        HostVariables(2, 0, FIRST, None, "RDZV_ENDPOINT, PMI_SIZE, PMI_RANK"),
    ),
    "an empty variable is not set": (
        {**PYTORCH_JOB, "NNODES": "", "NODE_RANK": " ", "RDZV_ENDPOINT": ""}, "",
        HostVariables(
            2, 1, "moe-master-0:23456", "moe-master",
            "PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT",
        ),
    ),
    "two that agree": (
        {**OURS, "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1",
         "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}, "",
        HostVariables(
            2, 1, FIRST, "first",
            "NNODES, NODE_RANK, RDZV_ENDPOINT, MOE_RUN, SKYPILOT_NUM_NODES, SKYPILOT_NODE_RANK, "
            "SKYPILOT_NODE_IPS",
        ),
    ),
}  # fmt: skip

NONE_SET = (
    "hosts=auto: none of NNODES, PET_NNODES, SKYPILOT_NUM_NODES, OMPI_COMM_WORLD_SIZE, PMI_SIZE, "
    "JOB_COMPLETION_INDEX is set: allowed is a host whose platform sets one; set NNODES, "
    "NODE_RANK, RDZV_ENDPOINT and MOE_RUN, or use hosts=one"
)
WHOLE = "allowed are whole numbers from {} to 2147483647; set {} to one of them"
ERRORS: dict[str, tuple[dict[str, str], str, str]] = {
    "nothing": ({}, "", NONE_SET),
    "nothing but a name": ({"MOE_RUN": "first", "NODE_RANK": "0"}, "", NONE_SET),
    "an elastic range": (
        {**PYTORCH_JOB, "PET_NNODES": "1:4"}, "",
        "PET_NNODES=1:4: allowed are whole numbers from 1 to 2147483647; an elastic range has no "
        "fixed number of nodes; set PET_NNODES to one of them",
    ),
    "no node": ({**OURS, "NNODES": "0"}, "", f"NNODES=0: {WHOLE.format(1, 'NNODES')}"),
    "nodes in words": (
        {**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "two"}, "",
        f"OMPI_COMM_WORLD_SIZE=two: {WHOLE.format(1, 'OMPI_COMM_WORLD_SIZE')}",
    ),
    "a negative node": ({**OURS, "NODE_RANK": "-1"}, "",
                        f"NODE_RANK=-1: {WHOLE.format(0, 'NODE_RANK')}"),
    "too many digits": ({**OURS, "NODE_RANK": "9" * 5000}, "",
                        f"NODE_RANK={'9' * 5000}: {WHOLE.format(0, 'NODE_RANK')}"),
    "no number of this node": (
        {"NNODES": "2", "RDZV_ENDPOINT": FIRST}, "",
        "NNODES=2: allowed with the number of this node, and none of NODE_RANK, PET_NODE_RANK, "
        "SKYPILOT_NODE_RANK, JOB_COMPLETION_INDEX, OMPI_COMM_WORLD_RANK, PMI_RANK is set; set "
        "NODE_RANK on every host",
    ),
    "a node beyond the last": (
        {**TRAIN_JOB, "PET_NODE_RANK": "2", "JOB_COMPLETION_INDEX": "2"}, "",
        "PET_NODE_RANK=2, PET_NNODES=2: allowed are 0 to 1 for this node; correct one of them",
    ),
    "nodes that contradict": (
        {**TRAIN_JOB, "NNODES": "3"}, "",
        "NNODES=3, PET_NNODES=2: allowed is the same number of nodes in both; correct or unset one "
        "of them",
    ),
    "this node contradicts": (
        {**TRAIN_JOB, "JOB_COMPLETION_INDEX": "0"}, "",
        "PET_NODE_RANK=1, JOB_COMPLETION_INDEX=0: allowed is the same number of this node in both; "
        "correct or unset one of them",
    ),
    "addresses that contradict": (
        {**OURS, "SKYPILOT_NODE_IPS": "10.0.0.2\n10.0.0.1"}, "",
        "RDZV_ENDPOINT=10.0.0.1:29511, SKYPILOT_NODE_IPS=10.0.0.2 10.0.0.1: allowed is the same "
        "address of node 0 in both; correct or unset one of them",
    ),
    "ports that contradict": (
        {**PYTORCH_JOB, "RDZV_ENDPOINT": "moe-master-0:29500"}, "",
        "RDZV_ENDPOINT=moe-master-0:29500, PET_MASTER_PORT=23456: allowed is the same port of node "
        "0 in both; correct or unset one of them",
    ),
    "too few addresses": (
        {**SKYPILOT, "SKYPILOT_NODE_IPS": "172.31.8.1"}, "",
        "SKYPILOT_NODE_IPS=172.31.8.1, SKYPILOT_NUM_NODES=2: allowed are as many IP addresses as "
        "nodes, one a line, node 0's first; correct one of them",
    ),
    "an address that is none": (
        {**SKYPILOT, "SKYPILOT_NODE_IPS": "head\n172.31.8.2"}, "",
        "SKYPILOT_NODE_IPS=head 172.31.8.2, SKYPILOT_NUM_NODES=2: allowed are as many IP addresses "
        "as nodes, one a line, node 0's first; correct one of them",
    ),
    "a port in the address": (
        {**PYTORCH_JOB, "PET_MASTER_ADDR": "moe-master-0:23456"}, "",
        "PET_MASTER_ADDR=moe-master-0:23456: allowed is a host name or an IP address; the port "
        "goes into PET_MASTER_PORT",
    ),
    "no port": (
        {**PYTORCH_JOB, "PET_MASTER_PORT": "65536"}, "",
        "PET_MASTER_PORT=65536: allowed are whole numbers from 1 to 65535; set PET_MASTER_PORT to "
        "one of them",
    ),
    "an endpoint without a port": (
        {**OURS, "RDZV_ENDPOINT": "10.0.0.1"}, "",
        "hosts.rdzv_endpoint=10.0.0.1: allowed is address:port of node 0, as the other hosts reach "
        "it; set RDZV_ENDPOINT=10.0.0.1:29500, say",
    ),
    "a job without the number of nodes": (
        {"JOB_COMPLETION_INDEX": "1"}, "moe-1.moe",
        "JOB_COMPLETION_INDEX=1: allowed with NNODES only, since it does not say how many nodes "
        "there are; set NNODES to the job's completions",
    ),
    "a job without a service": (
        JOB, "moe-1",
        "JOB_COMPLETION_INDEX=1: allowed is a pod called JOB-1.SUBDOMAIN, from which node 0's "
        "address follows, and this host is called moe-1; set `subdomain` in the pod's template to "
        "the name of a headless service, or RDZV_ENDPOINT=JOB-0.SUBDOMAIN:29500",
    ),
    "a pod on the host's network": (
        JOB, "machine7.example",
        "JOB_COMPLETION_INDEX=1: allowed is a pod called JOB-1.SUBDOMAIN, from which node 0's "
        "address follows, and this host is called machine7.example; set `subdomain` in the pod's "
        "template to the name of a headless service, or RDZV_ENDPOINT=JOB-0.SUBDOMAIN:29500",
    ),
    "mpiexec gives no address": (
        OPEN_MPI, "",
        "OMPI_COMM_WORLD_SIZE=2: allowed with the address of node 0, and no variable that is set "
        "has it; set RDZV_ENDPOINT to its address:port, 10.0.0.1:29500, say, on every host",
    ),
    "two processes of Open MPI on a host": (
        {**OPEN_MPI, **ADDRESS, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, "",
        "OMPI_COMM_WORLD_LOCAL_SIZE=2: allowed is one process on a host, which starts the ranks "
        "itself; start it with mpiexec --map-by ppr:1:node",
    ),
    "two processes of MPICH on a host": (
        {**MPICH, **ADDRESS, "MPI_LOCALNRANKS": "2"}, "",
        "MPI_LOCALNRANKS=2: allowed is one process on a host, which starts the ranks itself; start "
        "it with mpiexec -ppn 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_a_platform_sets(name: str) -> None:
    variables, host_name, wanted = EXAMPLES[name]
    assert read(variables, host_name) == wanted


@pytest.mark.parametrize("name", ERRORS)
def test_what_is_refused(name: str) -> None:
    variables, host_name, text = ERRORS[name]
    with pytest.raises(ConfigError) as caught:
        read(variables, host_name)
    assert str(caught.value) == text


def set_only(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in host_variables.READ:
        monkeypatch.delenv(name, raising=False)
    for name, text in variables.items():
        monkeypatch.setenv(name, text)


def test_only_a_pod_of_a_job_asks_for_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def own_name() -> str:
        asked.append("name")
        return "moe-1.moe"

    monkeypatch.setattr(socket, "getfqdn", own_name)
    host_variables._own_name.cache_clear()
    set_only(monkeypatch, OURS)
    assert host_variables.of_this_host("node_rank") == 1
    assert asked == []
    set_only(monkeypatch, JOB)
    assert host_variables.of_this_host("rdzv_endpoint") == "moe-0.moe:29500"
    assert host_variables.of_this_host("run") == "moe"
    assert asked == ["name"]  # once: a name server may be slow
    host_variables._own_name.cache_clear()


def test_one_line_says_what_was_read() -> None:
    variables = read({**TRAIN_JOB, "MOE_RUN": "moe"})
    config = defaults()
    config["hosts"] |= {name: getattr(variables, name) for name in vars(variables)}
    assert hosts_of(config).auto_line() == (
        "hosts=auto: node 1 of 2, node 0 at moe-node-0-0.moe:29500, run moe (MOE_RUN, PET_NNODES, "
        "PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT, JOB_COMPLETION_INDEX)"
    )
    config["hosts"] |= {"nnodes": 1, "node_rank": 0, "run": None}
    config["hosts"] |= {"rdzv_endpoint": None, "convention": "NNODES"}
    assert hosts_of(config).auto_line() == "hosts=auto: node 0 of 1 (NNODES)"


def test_the_config_of_hosts_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    hydra_plugins.register()
    set_only(monkeypatch, PYTORCH_JOB)
    node = OmegaConf.load(ROOT / "conf" / "hosts" / "auto.yaml")
    assert OmegaConf.to_container(node, resolve=True) == {
        "nnodes": 2,
        "node_rank": 1,
        "rdzv_endpoint": "moe-master-0:23456",
        "run": "moe-master",
        "convention": "PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT",
    }


def test_the_cells_of_a_sweep_read_the_variables_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hydra_plugins.register()
    set_only(monkeypatch, OURS)
    hosts = OmegaConf.load(ROOT / "conf" / "hosts" / "auto.yaml")
    cache: dict[str, object] = {}
    with mock.patch.object(host_variables, "read", wraps=read) as reading:
        for topk in range(100):
            config = OmegaConf.create({"topk": topk, "hosts": hosts})
            assert plain(config, cache)["hosts"]["node_rank"] == 1
    assert reading.call_count == 5  # once for each key


@pytest.mark.parametrize("flag", [[], ["-m"]], ids=["run", "sweep"])
def test_a_contradiction_is_one_line_for_the_user(
    flag: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_only(monkeypatch, {**OURS, "PMI_SIZE": "3"})
    answer = bad_input.ask([*flag, "hosts=auto"], tmp_path)
    assert (answer.code, answer.lines) == (2, [
        "error: NNODES=2, PMI_SIZE=3: allowed is the same number of nodes in both; correct or "
        "unset one of them"
    ])  # fmt: skip


def test_an_unknown_field_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_only(monkeypatch, OURS)
    answer = bad_input.ask(["label=${host_variables:__class__}"], tmp_path)
    assert (answer.code, answer.lines) == (2, [
        "error: host_variables:__class__: allowed are nnodes, node_rank, rdzv_endpoint, run, "
        "convention; write one of them"
    ])  # fmt: skip


def test_variables_are_read_with_hosts_auto_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_only(monkeypatch, {"NNODES": "1", "NODE_RANK": "0", "PET_NNODES": "3", "PMI_SIZE": "x"})
    for words in ([], ["hosts=many"]):
        answer = bad_input.ask([*words, "batch_size=8"], tmp_path)
        assert (answer.code, answer.would_run) == (0, True), answer.lines


def test_the_module_is_free_of_torch_and_hydra() -> None:
    code = "import runners.config.host_variables, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "hydra", "omegaconf"} & set(done.stdout.split())
