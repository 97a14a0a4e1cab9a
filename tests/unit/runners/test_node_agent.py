"""A node's agent without ranks: which plan, files and signals it takes, and what it removes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe.spec import Cell, RankLayout
from runners.config.hosts import Hosts
from runners.launch import hosts_agent, local, node_agent
from runners.launch.local import LaunchProcess
from runners.launch.node_agent import NodeAgent, code_hash
from runners.plan import LaunchPlan, Measure, load, text_of
from runners.records.sealed import RecordError

TRACE = "trace-abc.i32"
TWO_NODES = RankLayout(world_size=4, nodes=2)


@pytest.fixture
def agent() -> Iterator[NodeAgent]:
    agent = NodeAgent(1)
    yield agent
    agent.close()


def plan_text(launch: int = 0, place: RankLayout = TWO_NODES) -> str:
    return text_of(LaunchPlan(
        launch, "/of/the/launcher", Measure(), place, [Cell(placement=place)], [""], [[0]], [True],
        traces={"abc": TRACE},
    ))  # fmt: skip


def launch_dir(agent: NodeAgent) -> Path:
    assert agent.plan is not None
    return Path(agent.plan.launch_dir)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_each_launch_has_a_folder_of_its_own_on_the_node(agent: NodeAgent) -> None:
    assert agent.folder.stat().st_mode & 0o077 == 0  # others on the node cannot read it
    agent.prepare(plan_text(0))
    assert launch_dir(agent) == agent.folder / "0"
    (agent.folder / "0" / "samples").mkdir()
    agent.prepare(plan_text(7))
    assert names(agent.folder) == ["7"]  # what the launch before wrote is gone
    agent.close()
    assert not agent.folder.exists()


def test_a_damaged_plan_is_not_taken(agent: NodeAgent) -> None:
    with pytest.raises(RecordError, match="the plan of a launch: "):
        agent.prepare(plan_text().replace("4", "8"))
    assert names(agent.folder) == []


def test_a_trace_comes_in_pieces(agent: NodeAgent) -> None:
    agent.prepare(plan_text())
    agent.receive(TRACE, 0, b"left of an earlier try")
    agent.receive(TRACE, 0, b"0123")
    agent.receive(TRACE, 4, b"45")
    assert (launch_dir(agent) / TRACE).read_bytes() == b"012345"


@pytest.mark.parametrize(
    "name", ["launch.json", f"../{TRACE}", f"/tmp/{TRACE}", "trace-other.i32", "", "."]
)
def test_any_other_file_is_refused(agent: NodeAgent, name: str) -> None:
    agent.prepare(plan_text())
    with pytest.raises(ValueError, match="not a trace of this launch"):
        agent.receive(name, 0, b"data")
    assert names(launch_dir(agent)) == []


def test_a_trace_of_a_plan_that_names_another_folder_is_refused(agent: NodeAgent) -> None:
    agent.prepare(plan_text())
    assert agent.plan is not None
    agent.plan.traces = {"abc": "../x"}
    with pytest.raises(ValueError, match="not a trace of this launch"):
        agent.receive("../x", 0, b"data")


class Ranks:
    """A parent of ranks."""

    returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, sign: int) -> None:
        self.returncode = -sign


def with_ranks(agent: NodeAgent) -> Ranks:
    agent.prepare(plan_text())
    ranks = Ranks()
    agent.process = LaunchProcess(ranks, launch_dir(agent))  # type: ignore[arg-type]
    return ranks


def test_signals_become_files_that_ranks_look_for(agent: NodeAgent) -> None:
    with_ranks(agent)
    signals = ["stop", "go-0", "../x", "go-../x", "go-/x", "x", "launch.json", "/stop", ""]
    assert agent.poll({}, signals, False) == {"returncode": None, "chunks": []}
    assert names(launch_dir(agent)) == ["go-0", "stop"]
    assert names(agent.folder) == ["0"]


def test_an_answer_has_plain_values(agent: NodeAgent) -> None:
    ranks = with_ranks(agent)
    lines = launch_dir(agent) / "samples" / "rank2.jsonl"
    lines.parent.mkdir()
    lines.write_bytes(b"line\n")
    answer = agent.poll({}, [], False)
    ((path, offset, data, crc),) = answer["chunks"]
    assert (path, offset, data, type(crc)) == ("samples/rank2.jsonl", 0, b"line\n", int)
    assert answer["returncode"] is None
    assert agent.poll({"samples/rank2.jsonl": 5}, [], False)["chunks"] == []
    ranks.returncode = 3
    assert agent.poll({"samples/rank2.jsonl": 5}, [], True) == {"returncode": 3, "chunks": []}


def test_what_ranks_write_while_they_end_is_not_missed(
    agent: NodeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that says they have ended has all that they wrote."""
    ranks = with_ranks(agent)
    order: list[str] = []

    def poll() -> int:
        order.append("ended")
        return 0

    def changes(*arguments: Any) -> list[Any]:
        order.append("read")
        return []

    monkeypatch.setattr(ranks, "poll", poll)
    monkeypatch.setattr(node_agent.node_files, "changes", changes)
    agent.poll({}, [], False)
    assert order == ["ended", "read"]


def test_an_agent_without_a_launch_has_nothing(agent: NodeAgent) -> None:
    assert agent.poll({}, ["stop"], False) == {"returncode": 0, "chunks": []}
    agent.end()
    assert names(agent.folder) == []


def test_the_launch_before_is_ended_first(agent: NodeAgent) -> None:
    ranks = with_ranks(agent)
    agent.prepare(plan_text(1))
    assert ranks.returncode == -15


def test_a_node_of_several_starts_an_agent_in_its_own_place(
    agent: NodeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []

    def start_agent(plan: LaunchPlan, hosts: Hosts, token: str) -> Any:
        started.append((plan, hosts, token))
        return Ranks()

    monkeypatch.setattr(node_agent, "start_agent", start_agent)
    agent.prepare(plan_text())
    hosts = {"nnodes": 2, "node_rank": 0, "address": "10.0.0.1", "port": 7}
    agent.start(hosts, "token")
    expected = Hosts(nnodes=2, node_rank=1, address="10.0.0.1", port=7)
    assert started == [(agent.plan, expected, "token")]


def test_the_key_does_not_reach_ranks(agent: NodeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = []

    def popen(command: list[str], env: dict[str, str], **_: Any) -> Any:
        given.append(env)
        assert "a secret of this test" not in " ".join(command)
        return Ranks()

    monkeypatch.setenv("MOE_KEY", "a secret of this test")
    for module in (local, hosts_agent):
        monkeypatch.setattr(module, "subprocess", SimpleNamespace(
            Popen=popen, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT
        ))  # fmt: skip
    for launch, place in enumerate((TWO_NODES, RankLayout(world_size=2))):
        agent.prepare(plan_text(launch, place))
        assert agent.plan is not None
        agent.plan.pass_env = ["MOE_*", "*"]
        agent.start({"nnodes": place.nodes, "address": "127.0.0.1", "port": 7}, "token")
        assert load(launch_dir(agent) / "launch.json") == agent.plan
        agent.process = None
    assert len(given) == 2
    for variables in given:
        assert "MOE_LAUNCH_TOKEN" in variables
        assert "a secret of this test" not in variables.values()


def test_the_hash_of_the_code_is_that_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_agent, "package_folders", lambda: [tmp_path / "moe"])
    (tmp_path / "moe").mkdir()
    source = tmp_path / "moe" / "a.py"
    hashes = []
    for text in ("x = 1", "x = 2", "x = 1"):
        source.write_text(text)
        hashes.append(code_hash())
    (tmp_path / "moe" / "a.pyc").write_text("cached")
    hashes.append(code_hash())
    source.rename(source.with_name("b.py"))
    hashes.append(code_hash())
    assert hashes[0] == hashes[2] == hashes[3]
    assert len({hashes[0], hashes[1], hashes[4]}) == 3
    assert len(hashes[0]) == 12


def test_a_node_needs_no_hydra() -> None:
    """Nodes of a cluster have torch, and may have no more than it."""
    code = (
        "import sys; import runners.launch.node_agent, runners.launch.ray_cluster; "
        "print([name for name in ('torch', 'hydra', 'omegaconf', 'pandas', 'wandb', 'ray', 'rich')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
