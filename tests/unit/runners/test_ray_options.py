"""hydra/launcher=ray: its settings, and what is asked of a cluster. Ray's functions are made up."""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from moe.spec import Cell, RankLayout
from runners import bench
from runners.config.ray_options import RayOptions, ray_options
from runners.errors import ConfigError
from runners.host.machine import NodeResources
from runners.host.network import free_port
from runners.launch import ray_cluster, ray_group
from runners.launch.ray_cluster import RayCluster
from runners.launch.ray_group import RayGroup, RayNode
from runners.launch.remote import NodeLost, NoNodes
from runners.plan import RAY, LaunchPlan, Measure, from_text, load
from tests.support import bad_input

TARGET = {"_target_": "hydra_plugins.moe.RayLauncher"}
ON_RAY = ["-m", "hydra/launcher=ray", "strategy=tp", "world_size=2"]


# Settings.


def test_other_launchers_have_none() -> None:
    for name in ("MoeLauncher", "SlurmLauncher", ""):
        assert ray_options({"_target_": f"hydra_plugins.moe.{name}"}) is None
    assert ray_options({}) is None


def test_settings_are_read_and_have_defaults() -> None:
    assert ray_options(TARGET) == RayOptions("", True, 3, 600.0, {})
    given = {
        **TARGET, "address": "ray://head:10001", "exclusive": False, "max_restarts": 0,
        "wait_s": 5, "runtime_env": {"env_vars": {"A": "1"}},
    }  # fmt: skip
    expected = RayOptions("ray://head:10001", False, 0, 5, {"env_vars": {"A": "1"}})
    assert ray_options(given) == expected
    assert ray_options({**TARGET, "address": None}) == RayOptions()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("exclusive", "yes", "exclusive='yes': allowed are true and false; set "
         "hydra.launcher.exclusive to one of them"),
        ("exclusive", 1, "exclusive=1: allowed are true and false; set hydra.launcher.exclusive to "
         "one of them"),
        ("runtime_env", [], "runtime_env=[]: allowed are groups of Ray's runtime environment; set "
         "hydra.launcher.runtime_env to one of them"),
        ("runtime_env", {"py_modules": "x"}, "runtime_env.py_modules='x': allowed is a list of "
         "folders; set hydra.launcher.runtime_env.py_modules=[DIR], say"),
        ("max_restarts", -1, "max_restarts=-1: allowed are whole numbers from 0 to 2147483647; set "
         "hydra.launcher.max_restarts to one of them"),
        ("max_restarts", 1.5, "max_restarts=1.5: allowed are whole numbers from 0 to 2147483647; "
         "set hydra.launcher.max_restarts to one of them"),
        ("wait_s", -1, "wait_s=-1: allowed are finite numbers of at least 0.0; set "
         "hydra.launcher.wait_s to one of them"),
        ("wait_s", float("inf"), "wait_s=inf: allowed are finite numbers of at least 0.0; set "
         "hydra.launcher.wait_s to one of them"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        ray_options({**TARGET, name: value})
    assert str(refused.value) == f"hydra.launcher.{message}"


@pytest.mark.parametrize(
    ("word", "start"),
    [
        ("hydra.launcher.exclusive=perhaps", "hydra.launcher.exclusive"),
        ("hydra.launcher.max_restarts=-1", "hydra.launcher.max_restarts=-1: allowed are whole"),
        ("hydra.launcher.wait_s=soon", "hydra.launcher.wait_s"),
        ("hydra.launcher.nothing=1", "hydra.launcher.nothing: no such key"),
    ],
)
def test_a_wrong_setting_on_the_command_line(word: str, start: str, tmp_path: Path) -> None:
    answer = bad_input.ask([*ON_RAY, word], tmp_path)
    assert (answer.code, len(answer.lines)) == (2, 1)
    assert answer.lines[0].startswith(f"error: {start}"), answer.lines
    assert list(tmp_path.iterdir()) == []


def test_without_ray_the_launcher_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    answer = bad_input.ask(ON_RAY, tmp_path)
    assert (answer.code, answer.would_run) == (2, False)
    assert answer.lines == [
        "error: hydra/launcher=ray: Ray is not installed; allowed where it is; in the clone: pip "
        "install -e '.[ray]'"
    ]
    assert list(tmp_path.iterdir()) == []


def shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bench.py", *words])
        patch.setattr(bench, "BENCH", bench.Bench())
        assert bench.run() == 0
    return capsys.readouterr().out


def test_hydra_shows_the_launcher_s_settings(capsys: pytest.CaptureFixture[str]) -> None:
    config = OmegaConf.create(shown(["hydra/launcher=ray", "--cfg", "hydra"], capsys))
    launcher = OmegaConf.to_container(config.hydra.launcher)
    assert launcher == {**asdict(RayOptions()), **TARGET}


# The connection.


def test_nobody_at_an_address_is_refused_at_once() -> None:
    port = free_port("127.0.0.1")
    for where in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(ConfigError) as refused:
            ray_cluster._check_reachable(where, "hydra.launcher.address=X")
        text = str(refused.value)
        assert text.startswith("hydra.launcher.address=X: no cluster answers there (")
        assert text.endswith(
            "; allowed is that of a running one; start it (ray start --head), or "
            "hydra.launcher.address=local for one on this machine"
        )


@pytest.mark.parametrize("where", ["host:port", "host:99999", "[::1"])
def test_an_address_that_is_none_is_refused(where: str) -> None:
    with pytest.raises(ConfigError, match="no cluster answers there"):
        ray_cluster._check_reachable(where, "hydra.launcher.address=X")


@pytest.mark.parametrize("where", ["auto", "local"])
def test_addresses_without_a_port_are_ray_s_to_judge(where: str) -> None:
    ray_cluster._check_reachable(where, "")


def test_the_reason_of_a_failed_connection_is_one_line() -> None:
    assert ray_cluster._reason(ValueError()) == "ValueError"
    assert ray_cluster._reason(ValueError("two\nlines")) == "two lines"
    assert ray_cluster._reason(ValueError("x" * 999)) == "x" * 400
    error = ValueError("cannot\nconnect")
    error.__cause__ = RuntimeError("Traceback\n  deep\nVersionError: 2.0.0 is not 2.60.0\n")
    assert ray_cluster._reason(error) == "cannot connect (VersionError: 2.0.0 is not 2.60.0)"


def test_own_packages_travel_with_the_connection() -> None:
    given = {"env_vars": {"A": "1"}, "py_modules": ["mine"]}
    packages = [Path(path).name for path in ray_cluster._runtime_env(given)["py_modules"]]
    assert packages == ["moe", "runners", "mine"]
    assert ray_cluster._runtime_env(given)["env_vars"] == {"A": "1"}
    assert given["py_modules"] == ["mine"]


def test_what_native_code_writes_is_dropped_and_stderr_comes_back(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="planted"), ray_cluster._quiet():
        os.write(2, b"once a second")
        raise ValueError("planted")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


# What a cluster has.


class RayError(Exception):
    """Ray's own errors."""


class RayTaskError(RayError):
    """An error that a remote method raised."""


class FakeRay(ModuleType):
    """Ray's functions, with nodes that answer from a list."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.alive: list[dict[str, Any]] = []
        self.facts: list[Any] = []
        self.shut_down = 0
        self.exceptions = SimpleNamespace(RayError=RayError)

    def nodes(self) -> list[dict[str, Any]]:
        return self.alive

    def remote(self, function: Any) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: None))

    def get(self, answers: Any, timeout: float) -> Any:
        if isinstance(self.facts, Exception):
            raise self.facts
        return self.facts[: len(answers)]

    def shutdown(self) -> None:
        self.shut_down += 1


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    for name, attributes in {
        "ray.exceptions": {"RayError": RayError, "RayTaskError": RayTaskError},
        "ray.util": {},
        "ray.util.placement_group": {
            "placement_group": lambda *a, **k: PlacementGroup(*a, **k),
            "remove_placement_group": lambda group: group.remove(),
        },
        "ray.util.scheduling_strategies": {
            "NodeAffinitySchedulingStrategy": lambda node, soft: node,
            "PlacementGroupSchedulingStrategy": lambda group, placement_group_bundle_index: None,
        },
    }.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    return fake


def cluster_of(**options: Any) -> RayCluster:
    """Connected."""
    cluster = object.__new__(RayCluster)
    cluster.options, cluster.placed, cluster._facts = RayOptions(**options), set(), []
    return cluster


def node(name: str, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "Alive": alive, "Resources": resources}


def test_nodes_with_cpus_are_measured_on_and_with_gpus_only_those(ray: FakeRay) -> None:
    cluster = cluster_of()
    ray.alive = [node("a", CPU=8, memory=100), node("b", CPU=4, memory=50), node("head", CPU=0),
                 node("none"), node("dead", alive=False, CPU=8)]  # fmt: skip
    assert list(cluster.nodes()) == ["a", "b"]
    assert cluster.resources() == NodeResources(cores=4, cuda_devices=0, nodes=2, memory_bytes=50)
    ray.alive.append(node("gpus", CPU=16, GPU=8, memory=9))
    assert list(cluster.nodes()) == ["gpus"]
    assert cluster.resources() == NodeResources(cores=16, cuda_devices=8, nodes=1, memory_bytes=9)


def test_a_cluster_without_nodes_is_refused(ray: FakeRay) -> None:
    ray.alive = [node("head", CPU=0)]
    with pytest.raises(ConfigError) as refused:
        cluster_of().resources()
    assert str(refused.value) == (
        "hydra/launcher=ray: the cluster has no node with a CPU; allowed is a cluster with at "
        "least one; start its workers first"
    )


@pytest.mark.parametrize(
    ("place", "exclusive", "bundle"),
    [
        (RankLayout(world_size=4, nodes=2, threads=3), True, {"CPU": 8}),
        (RankLayout(world_size=4, nodes=2, threads=3), False, {"CPU": 6}),
        (RankLayout(world_size=32, nodes=2), False, {"CPU": 8}),  # more ranks than CPUs
        (RankLayout(world_size=4, nodes=2, backend="nccl", device="cuda"), False,
         {"CPU": 2, "GPU": 2}),
        (RankLayout(world_size=4, nodes=2, device="cuda"), False, {"CPU": 2, "GPU": 1}),  # staged
    ],
)  # fmt: skip
def test_what_the_ranks_of_a_node_take_of_it(
    ray: FakeRay, place: RankLayout, exclusive: bool, bundle: dict[str, float]
) -> None:
    ray.alive = [node("a", CPU=8, GPU=4), node("b", CPU=16, GPU=4)]
    assert cluster_of(exclusive=exclusive).bundle(place) == bundle


def test_words_for_a_bundle() -> None:
    assert ray_group._words({"CPU": 8.0, "GPU": 1}) == "8 CPUs and 1 GPU"


ALIKE = {"torch": "2.13", "python": "3.11", "code": "abc"}


def test_facts_are_of_every_node_where_all_have_equal_versions(ray: FakeRay) -> None:
    ray.alive = [node("a", CPU=1), node("b", CPU=1)]
    ray.facts = [{"host": "x", "alike": ALIKE}, {"host": "y", "alike": ALIKE}]
    assert cluster_of().facts() == ray.facts


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([{"alike": ALIKE}, {"alike": ALIKE | {"torch": "1.0"}}],
         "node 1 has torch 1.0 (first node: 2.13); allowed are equal versions on all nodes; "
         "install the same there"),
        ([{"alike": ALIKE | {"torch": None}}] * 2,
         "the nodes have no torch; allowed are nodes with it; install it there"),
        (RayError("Traceback\n  deep\nModuleNotFoundError: numpy\n"),
         "a node cannot run this project: ModuleNotFoundError: numpy; allowed are nodes that can; "
         "install torch there"),
        (RayError(""),
         "a node cannot run this project: RayError; allowed are nodes that can; "
         "install torch there"),
    ],
)  # fmt: skip
def test_nodes_that_cannot_measure_together_are_refused(
    ray: FakeRay, answers: Any, message: str
) -> None:
    ray.alive = [node("a", CPU=1), node("b", CPU=1)]
    ray.facts = answers
    with pytest.raises(ConfigError) as refused:
        cluster_of().facts()
    assert str(refused.value) == f"hydra/launcher=ray: {message}"


# A placement group.


class PlacementGroup:
    all: list[PlacementGroup] = []  # noqa: RUF012
    ready: list[bool] = []  # noqa: RUF012  # answers of `wait`; without one there is room

    def __init__(self, bundles: Any, strategy: str, bundle_label_selector: Any) -> None:
        self.bundles, self.strategy, self.removed = bundles, strategy, 0
        PlacementGroup.all.append(self)

    def wait(self, limit_s: float) -> bool:
        return PlacementGroup.ready.pop(0) if PlacementGroup.ready else True

    def remove(self) -> None:
        self.removed += 1


class Actor:
    """The agent of a node; methods that are in `lost` raise."""

    all: list[Actor] = []  # noqa: RUF012

    def __init__(self, number: int) -> None:
        self.number, self.calls, self.lost = number, [], set[str]()
        Actor.all.append(self)

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any) -> Any:
            self.calls.append((method, arguments))
            return self, method

        return SimpleNamespace(remote=remote)

    def answer(self, method: str) -> Any:
        if method in self.lost or "all" in self.lost:
            raise RayError("\n  The actor died.\nmore")
        return {"address": "10.0.0.1", "free_port": 77}.get(
            method, {"returncode": None, "chunks": []}
        )


@pytest.fixture
def actors(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> list[Actor]:
    ray.alive = [node("a", CPU=4), node("b", CPU=4)]
    counted = itertools.count()
    remote = SimpleNamespace(
        options=lambda **_: SimpleNamespace(remote=lambda number: Actor(number))
    )
    monkeypatch.setattr(ray, "remote", lambda kind: remote)
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer[0].answer(answer[1]))
    monkeypatch.setattr(Actor, "all", [])
    monkeypatch.setattr(PlacementGroup, "all", [])
    monkeypatch.setattr(PlacementGroup, "ready", [])
    monkeypatch.setattr(ray_group, "time", SimpleNamespace(monotonic=lambda: float(next(counted))))
    return Actor.all


PLACE = RankLayout(world_size=4, nodes=2)


def group_of(cluster: RayCluster, interrupted: bool = False) -> tuple[RayGroup, list[str]]:
    lines: list[str] = []
    return RayGroup(cluster, PLACE, "", lambda: interrupted, lines.append), lines


def plan_of(folder: Path, number: int = 0) -> LaunchPlan:
    place = folder / str(number)
    return LaunchPlan(number, str(place), Measure(), PLACE, [Cell()], [""], [[0]], [True])


def methods(actor: Actor) -> list[str]:
    return [name for name, _ in actor.calls]


def test_launches_of_a_shape_share_a_group(tmp_path: Path, actors: list[Actor]) -> None:
    cluster = cluster_of()
    group, _ = group_of(cluster)
    for number in range(2):
        plan = plan_of(tmp_path, number)
        launch = group(plan)
        assert launch.running()
        assert load(tmp_path / str(number) / "launch.json").files == RAY
    (placed,) = PlacementGroup.all
    assert (placed.strategy, placed.bundles) == ("STRICT_SPREAD", [{"CPU": 4}] * 2)
    assert cluster.placed == {"2x2-gloo-1threads"}
    assert methods(actors[0]) == [
        "address", "facts", *["free_port", "prepare", "start", "poll"] * 2
    ]  # fmt: skip
    assert methods(actors[1]) == ["prepare", "start", "poll"] * 2
    hosts, token = actors[1].calls[1][1]
    assert (hosts["nnodes"], hosts["address"], hosts["port"]) == (2, "10.0.0.1", 77)
    assert len(token) == 32
    assert from_text(actors[1].calls[0][1][0]).files == RAY
    group.release()
    assert [methods(actor)[-1] for actor in actors] == ["close", "close"]
    assert (placed.removed, cluster.placed) == (1, set())
    group.release()
    assert placed.removed == 1


def test_a_group_with_a_lost_node_is_placed_again(tmp_path: Path, actors: list[Actor]) -> None:
    group, _ = group_of(cluster_of())
    launch = group(plan_of(tmp_path, 0))
    actors[1].lost = {"all"}
    assert not launch.running()
    assert launch.lost_node() == "node 1 of 2 was lost: The actor died."
    launch.end()
    assert methods(actors[1]) == ["prepare", "start", "poll"]  # nothing more is asked of it
    assert group(plan_of(tmp_path, 1)).running()
    assert methods(actors[0])[-1] == "close"  # its files are removed
    assert [placed.removed for placed in PlacementGroup.all] == [1, 0]
    assert len(actors) == 4


@pytest.mark.parametrize("method", ["address", "free_port"])
def test_a_node_that_is_lost_while_it_is_placed(
    tmp_path: Path, actors: list[Actor], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, _ = group_of(cluster_of())
    answer = Actor.answer

    def lost(actor: Actor, name: str) -> Any:
        if name == method and len(actors) == 2:
            actor.lost = {method}
        return answer(actor, name)

    monkeypatch.setattr(Actor, "answer", lost)
    launch = group(plan_of(tmp_path, 0))
    assert not launch.running()
    assert launch.lost_node() == "node 0 of 2 was lost: The actor died."
    launch.end()
    assert group(plan_of(tmp_path, 1)).running()


def test_a_cluster_without_room_is_waited_for_and_then_named(
    tmp_path: Path, actors: list[Actor]
) -> None:
    PlacementGroup.ready = [False] * 100
    group, lines = group_of(cluster_of(wait_s=3))  # the clock goes on by 1 s at every look
    with pytest.raises(NoNodes) as raised:
        group(plan_of(tmp_path))
    assert str(raised.value) == (
        "hydra.launcher.wait_s=3: the cluster had no room for 2 nodes with 4 CPUs each"
    )
    assert set(lines) == {"waiting for room in the cluster: 2 nodes with 4 CPUs each"}
    group.release()
    assert [placed.removed for placed in PlacementGroup.all] == [1]


def test_the_limit_does_not_count_while_other_shapes_are_measured(
    tmp_path: Path, actors: list[Actor]
) -> None:
    cluster = cluster_of(wait_s=3)
    cluster.placed.add("1x4-gloo-1threads")
    PlacementGroup.ready = [False] * 20
    group, _ = group_of(cluster)
    assert group(plan_of(tmp_path)).running()


def test_an_interrupt_ends_the_wait_for_room(tmp_path: Path, actors: list[Actor]) -> None:
    PlacementGroup.ready = [False] * 5
    group, _ = group_of(cluster_of(), interrupted=True)
    with pytest.raises(KeyboardInterrupt):
        group(plan_of(tmp_path))
    group.release()
    assert [placed.removed for placed in PlacementGroup.all] == [1]


def test_a_group_may_be_released_while_it_waits_for_room(
    tmp_path: Path, actors: list[Actor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the main thread, after a second interrupt."""
    answers = iter([False, True])
    group = RayGroup(cluster_of(), PLACE, "", lambda: next(answers), lambda text: None)

    def wait(placed: PlacementGroup, limit_s: float) -> bool:
        group.release()
        return False

    monkeypatch.setattr(PlacementGroup, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        group(plan_of(tmp_path))


def test_other_nodes_are_released_where_one_does_not_answer(
    tmp_path: Path, ray: FakeRay, actors: list[Actor]
) -> None:
    cluster = cluster_of()
    group, _ = group_of(cluster)
    group(plan_of(tmp_path))
    actors[0].lost = {"all"}
    group.release()
    cluster.close()
    assert [placed.removed for placed in PlacementGroup.all] == [1]
    assert methods(actors[1])[-1] == "close"
    assert ray.shut_down == 1


def test_a_lost_actor_is_not_asked_again(actors: list[Actor]) -> None:
    actor = Actor(0)
    lost = RayNode(actor, "node 0 of 1")
    actor.lost = {"poll"}
    for _ in range(2):
        with pytest.raises(NodeLost, match=r"^node 0 of 1 was lost: The actor died\.$"):
            lost.call("poll")()
    assert methods(actor) == ["poll"]
