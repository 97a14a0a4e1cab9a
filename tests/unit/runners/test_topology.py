"""Nodes: how ranks are spread, whose clock counts, which address others can reach. No ranks."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe.spec import Cell, RankLayout, Unsupported
from runners.config import hosts
from runners.config.cell import job_of
from runners.errors import ConfigError
from runners.host import hardware, network, topology
from runners.host.machine import NodeResources
from runners.launch import hosts as plain
from runners.launch import hosts_agent, srun
from runners.plan import Job, LaunchPlan, Measure, by_shape
from runners.rank import srun as srun_rank
from runners.rank.engine import makespan_ns
from runners.records.record import cell_from_dict, cell_key, cell_to_dict
from runners.records.routing_trace import Trace
from runners.sweep import allocation, folder, slurm
from runners.sweep.result import SweepResult
from runners.sweep.settings import Settings
from tests.unit.runners.test_cell import BASE

LARGE = NodeResources(cores=8, cuda_devices=0, nodes=4)


def config(**changes: Any) -> dict[str, Any]:
    found = copy.deepcopy(BASE)
    for name, value in changes.items():
        if name in found["hosts"]:
            found["hosts"][name] = value
        else:
            found[name] = value
    return found


@pytest.mark.parametrize(
    ("changes", "nodes", "threads"),
    [
        ({"world_size": 8}, 1, 1),  # as ever
        ({"world_size": 8, "ranks_per_node": 8}, 1, 1),
        ({"world_size": 8, "ranks_per_node": 4}, 2, 2),
        ({"world_size": 8, "ranks_per_node": 2}, 4, 4),
        ({"world_size": 2, "ranks_per_node": 4}, 1, 4),  # fewer ranks than one node has
        ({"world_size": 8, "nnodes": 2}, 2, 2),
        ({"world_size": 1, "nnodes": 2}, 1, 8),
    ],
)
def test_ranks_are_spread_evenly(changes: dict[str, Any], nodes: int, threads: int) -> None:
    place = job_of(config(**changes), LARGE).cell.placement
    assert (place.nodes, place.threads) == (nodes, threads)
    assert place.ranks_per_node * nodes == place.world_size


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"world_size": 6, "ranks_per_node": 4}, "multiples of the 4 ranks"),
        ({"world_size": 8, "ranks_per_node": 1}, "takes 8 nodes, here allowed is 4"),
        ({"world_size": 8, "ranks_per_node": 0}, "hosts.ranks_per_node=0"),
        ({"world_size": 8, "ranks_per_node": 2, "backend": "nccl"}, "2 CUDA devices per node"),
    ],
)
def test_what_does_not_fit_the_nodes_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        job_of(config(**changes), LARGE)


def test_keys_of_one_node_are_what_they_were_before_there_were_nodes() -> None:
    one, two = Cell(), Cell(placement=RankLayout(nodes=2))
    old = dataclasses.asdict(one)
    del old["placement"]["nodes"]
    assert cell_key(cell_from_dict(old)) == cell_key(one) != cell_key(two)
    assert cell_from_dict(dataclasses.asdict(two)) == two
    assert cell_to_dict(two) == dataclasses.asdict(two)
    assert list(cell_to_dict(two)["layer"]) == list(dataclasses.asdict(two)["layer"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"nnodes": 2}, "hosts.run=None"),
        ({"nnodes": 2, "run": "a"}, "hosts.rdzv_endpoint=None"),
        ({"nnodes": 2, "run": "a", "rdzv_endpoint": "h:0"}, "hosts.rdzv_endpoint=h:0"),
        ({"nnodes": 2, "run": "../a"}, "name='../a'"),
        ({"nnodes": 2, "node_rank": 2}, "allowed are 0 to nnodes - 1 = 1"),
    ],
)
def test_hosts_that_cannot_meet_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        hosts.hosts_of(config(**changes))


def test_hosts_and_what_a_node_has() -> None:
    given = config(nnodes=2, node_rank=1, run="a", rdzv_endpoint="[fd00::1]:295")
    found = hosts.hosts_of(given)
    assert (found.node_rank, found.address, found.port) == (1, "fd00::1", 295)
    stated = config(cores=64, gpus=8, memory_gib=0.5, nnodes=2)
    assert hosts.node_of(stated, NodeResources(2)) == NodeResources(64, 8, 2, 2**29)
    assert hosts.node_of(config(), NodeResources(2, 1)) == NodeResources(2, 1)


def test_experts_are_dealt_out_over_nodes() -> None:
    # 8 experts on 2 nodes of 2 ranks: even ones on node 0, two on each of its ranks
    assert topology.by_node(8, 2) == (0, 2, 4, 6, 1, 3, 5, 7)
    asked = config(world_size=4, ranks_per_node=2)
    asked["strategy"] |= {"name": "ep", "dispatcher": "alltoall", "placement": "by_node"}
    strategy = job_of(asked, LARGE).cell.strategy
    assert (strategy.placement, strategy.expert_order) == ("explicit", topology.by_node(8, 2))
    asked["hosts"]["ranks_per_node"] = 4
    assert job_of(asked, LARGE).cell.strategy.placement == "contiguous"
    asked["strategy"]["name"] = "tp"
    with pytest.raises(Unsupported, match=r"strategy\.placement=by_node"):
        job_of(asked, LARGE)


# --- clocks -----------------------------------------------------------------------------------


def test_a_makespan_over_nodes_is_the_longest_nodes() -> None:
    starts, ends = [10, 12, 1000, 1001], [50, 52, 1060, 1058]  # two clocks, far apart
    assert makespan_ns(starts, ends) == 1050
    assert makespan_ns(starts, ends, (0, 0, 1, 1)) == 60


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1
    ),
    st.lists(st.integers(-(10**12), 10**12), min_size=4, max_size=4),
)
def test_putting_nodes_on_one_clock_keeps_the_makespan(
    ranks: list[tuple[int, int, int]], offsets: list[int]
) -> None:
    node_of = [node for node, _, _ in ranks]
    starts = [start + offsets[node] for node, start, _ in ranks]
    ends = [start + took + offsets[node] for node, start, took in ranks]
    together = topology.align_clocks(starts, ends, node_of)
    assert makespan_ns(*together) == makespan_ns(starts, ends, node_of)
    for rank in range(len(ranks)):  # no rank's own duration changes
        assert together[1][rank] - together[0][rank] == ends[rank] - starts[rank]


def test_one_node_keeps_its_times() -> None:
    assert topology.align_clocks([1, 2], [3, 4], ()) == ([1, 2], [3, 4])


def test_nodes_of_one_machine_share_its_cores() -> None:
    def rank(host: str) -> dict[str, Any]:
        return {"environment": {"host": host, "cores": 2, "local_ranks": 1}}

    first = rank("a") | {"nodes": [0, 1]}
    found = topology.environment([first, rank("b")])
    assert found["local_ranks"] == 1
    assert found["topology"]["hosts"] == ["a", "b"]
    assert topology.environment([first, rank("a")])["local_ranks"] == 2
    assert "topology" not in topology.environment([rank("a")])


def test_gpu_links_of_a_topology_table() -> None:
    table = (
        "\t\x1b[4mGPU0\tGPU1\tNIC0\tCPU Affinity\tNUMA Affinity\x1b[0m\n"
        "GPU0\t X \tNV18\tPIX\t0-47\t0\n"
        "GPU1\tNV18\t X \tSYS\t0-47\t0\n"
        "NIC0\tPIX\tSYS\t X \n\nLegend:\n\n  X    = Self\n"
    )
    assert hardware.parse_links(table) == [["X", "NV18"], ["NV18", "X"]]
    assert hardware.parse_links("") == []


# --- addresses --------------------------------------------------------------------------------


def test_loopback_is_offered_only_where_all_nodes_are_on_it() -> None:
    assert network.first_address(["10.9.8.7"]) == "127.0.0.1"
    assert network.first_address(["127.0.0.1", "127.0.0.1"]) == "127.0.0.1"
    assert network.first_address(["127.0.1.1", "127.0.0.2"]) == "127.0.1.1"


def test_an_own_address_keeps_its_interface() -> None:
    assert network.interface_of("127.0.0.1") == "lo"
    assert network.interface_of("203.0.113.77") == ""
    assert network.own_address("127.0.0.1") == "127.0.0.1"
    variables: dict[str, str] = {}
    network.use_interface(variables, "127.0.0.1")
    assert variables == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def test_a_free_port_can_be_listened_on() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", network.free_port("127.0.0.1")))


# --- Slurm --------------------------------------------------------------------------------------


def plan(tmp_path: Path) -> LaunchPlan:
    place = RankLayout(world_size=4, nodes=2)
    return LaunchPlan(3, str(tmp_path), Measure(), place, [], [], [], [])


def test_srun_puts_consecutive_ranks_on_a_node(tmp_path: Path) -> None:
    command = srun.srun_command(plan(tmp_path))
    for option in ("--nodes=2", "--ntasks=4", "--ntasks-per-node=2", "--distribution=block"):
        assert option in command
    assert command[-1] == f"{tmp_path}/launch.json"
    slurm_says = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}
    assert srun_rank.place(slurm_says, 4, 2) == {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "rank", "exitcode"),
    [
        ("srun: error: moe1: task 3: Killed", 3, -9),
        ("srun: error: moe1: tasks 2-3: Exited with exit code 1", 2, 1),
        ("srun: error: n-7: task 12: Segmentation fault (core dumped)", 12, -11),
    ],
)
def test_sruns_first_failure_is_the_one_to_blame(line: str, rank: int, exitcode: int) -> None:
    log = f"{line}\nsrun: launch/slurm: _step_signal: Terminating StepId=1.0\n"
    log += "srun: error: moe0: task 0: Terminated\n"
    assert srun.first_failure(log) == [{"rank": rank, "exitcode": exitcode, "pid": None}]
    assert srun.first_failure("srun: job 1 queued") == []


def planned(tmp_path: Path, *configs: dict[str, Any]) -> list[Job]:
    """Jobs of these configs, as their sweep has written them."""
    jobs = [job_of(one, LARGE, [f"batch_size={one['batch_size']}"]) for one in configs]
    folder.write_plan(jobs, Settings(tmp_path, command="c"))
    return jobs


def job(batch: int = 8, **place: Any) -> Job:
    cell = Cell(placement=RankLayout(**place))
    cell = dataclasses.replace(cell, workload=dataclasses.replace(cell.workload, batch_size=batch))
    return Job(
        cell,
        Measure(launches=2),
        label="a",
        notes=("note",),
        meta={"model": "reference", "scale": 1},
    )


def test_cells_of_one_shape_share_an_allocation_and_are_thawed_as_they_were(
    tmp_path: Path,
) -> None:
    base = config() | {"isolation": "cell", "on_error": "stop", "label": "a"}
    base |= {"topk": 9, "topk_overflow": "clamp"}  # leaves a note
    base["measure"] |= {"launches": 2}
    far = copy.deepcopy(base) | {"world_size": 4}
    far["hosts"] |= {"ranks_per_node": 2}
    jobs = planned(tmp_path, base, base | {"batch_size": 16}, far)
    groups = by_shape(jobs)
    assert [len(one) for one in groups.values()] == [2, 1]
    now = Settings(tmp_path, "cell", "stop", {"mode": "online"}, "c", pass_env=("UCX_*",))
    jobs = [dataclasses.replace(one, measure=Measure(launches=3), config={}) for one in jobs]
    allocation.save("g", jobs, now, "failed", "eth9")  # a resumed sweep, with other settings
    again, settings, interface = allocation.load(tmp_path, "g")
    assert again == jobs
    assert settings == dataclasses.replace(now, resume_mode="failed")
    assert {one.label for one in again} == {"a"} and all(one.notes for one in again)
    assert (settings.isolation, settings.on_error, settings.command) == ("cell", "stop", "c")
    assert (settings.resume_mode, settings.sweep_dir, interface) == ("failed", tmp_path, "eth9")


def test_a_recorded_routing_goes_with_the_allocation(tmp_path: Path) -> None:
    rows = bytes(range(64))
    trace = Trace(rows, 8, hashlib.sha256(rows).hexdigest())
    one = job_of(config(), LARGE)
    work = dataclasses.replace(one.cell.workload, kind="trace", trace_sha256=trace.sha256)
    cell = dataclasses.replace(one.cell, workload=work)
    with_trace = Job(cell, one.measure, meta=one.meta, trace=trace, config=one.config)
    folder.write_plan([with_trace], Settings(tmp_path))
    allocation.save("g", [with_trace], Settings(tmp_path), "missing", "")
    assert allocation.load(tmp_path, "g")[0][0].trace == trace
    path = next((tmp_path / allocation.FOLDER).glob(f"*{trace.sha256}*"))
    path.write_bytes(rows[::-1])
    with pytest.raises(ValueError, match="not what was frozen"):
        allocation.load(tmp_path, "g")


def test_what_an_allocation_ended_with_is_taken_once_it_has(tmp_path: Path) -> None:
    total = SweepResult(tmp_path)
    assert not allocation.take_result(tmp_path, "g", total)
    ended = SweepResult(tmp_path, failures=[("c", "m", "l")], timed_s=1.5, tracked=2)
    allocation.save_result(tmp_path, "g", ended)
    assert allocation.take_result(tmp_path, "g", total)
    assert (total.failures, total.timed_s, total.tracked) == ([("c", "m", "l")], 1.5, 2)


def test_what_a_job_asks_for(tmp_path: Path) -> None:
    place = {"world_size": 16, "nodes": 2, "device": "cuda"}
    jobs, settings = [job(8, **place, backend="nccl")], Settings(tmp_path)
    asked = slurm.Slurm(partition="p", extra={"switches": 1})
    found = slurm.executor_parameters(asked, jobs, settings)
    assert (found["nodes"], found["ntasks_per_node"], found["gpus_per_node"]) == (2, 8, 8)
    assert (found["exclusive"], found["partition"], found["use_srun"]) == (True, "p", False)
    assert found["additional_parameters"]["switches"] == 1
    assert "qos" not in found
    # Two launches of 120 s + 1.2 s of rounds + 20 s for the cell + 30 s for records, twice.
    assert found["time"] == slurm.time_limit_min(jobs, "group") == 12
    assert slurm.executor_parameters(slurm.Slurm(time_min=5), jobs, settings)["time"] == 5


def test_gpus_in_slurms_words() -> None:
    assert slurm.gpus_of("gpu:h100:8(S:0-1)") == 8
    assert slurm.gpus_of("gpu:2,nvme:1") == 2
    assert slurm.gpus_of("(null)") == 0


def test_only_the_slurm_launcher_is_one() -> None:
    assert slurm.slurm_options({"_target_": "x.MoeLauncher"}) is None
    found = slurm.slurm_options({"_target_": "x.SlurmLauncher", "qos": "q"})
    assert found == slurm.Slurm(qos="q")
    with pytest.raises(ConfigError, match="time_min=-1"):
        slurm.slurm_options({"_target_": "x.SlurmLauncher", "time_min": -1})


# --- plain hosts --------------------------------------------------------------------------------


def test_hosts_that_do_not_come_are_named(tmp_path: Path) -> None:
    first = plain.FirstHost(tmp_path, hosts.Hosts(3, 0, "127.0.0.1", 29500, wait_s=0.2))
    (tmp_path / plain.FOLDER).mkdir()
    (tmp_path / plain.FOLDER / f"{first.session}-1").touch()
    with pytest.raises(ConfigError, match=r"hosts.node_rank=2: did not come within 0.2 s"):
        first.wait_for_hosts()
    assert json.loads((tmp_path / plain.FOLDER / "order.json").read_text())["launch"] == -1


def test_another_host_ends_with_the_session_it_has_been_in(tmp_path: Path) -> None:
    (tmp_path / plain.FOLDER).mkdir()
    follower = plain.Follower(tmp_path, hosts.Hosts(3, 2, "127.0.0.1", 29500))
    assert not follower.handle({"session": "old", "launch": "end"})  # of a run before this one
    assert not follower.handle({"session": "new", "launch": -1, "nodes": 3})
    assert (tmp_path / plain.FOLDER / "new-2").exists()
    assert not follower.handle({"session": "new", "launch": 0, "nodes": 2})  # takes two nodes only
    assert follower.agent is None
    assert follower.handle({"session": "new", "launch": "end"})


def test_the_agent_of_a_node(tmp_path: Path) -> None:
    command = hosts_agent.agent_command(plan(tmp_path), hosts.Hosts(2, 1, "127.0.0.1", 29501))
    for option in ("--nnodes=2", "--node-rank=1", "--nproc-per-node=2", "--master-port=29501",
                   "--master-addr=127.0.0.1", "--local-addr=127.0.0.1"):  # fmt: skip
        assert option in command
