"""A placement group of a Ray cluster, in which the launches of one shape run. Torch-free.

It has one bundle for each node, and in each an actor (RayAgent) that starts the node's ranks.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moe.spec import RankLayout
from runners.config.hosts import Hosts
from runners.launch.local import save_plan
from runners.launch.node_agent import NodeAgent, host_facts
from runners.launch.ray_cluster import RayCluster, imported
from runners.launch.remote import NodeLost, NoNodes, RemoteLaunch
from runners.plan import RAY, LaunchPlan, shape_name

CALL_S = 60.0  # for an answer of a node
POLL_S = 1.0
RENDEZVOUS_S = 600.0  # for all ranks of a launch to come
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


class RayAgent(NodeAgent):
    """The agent of a node, as an actor of Ray."""

    def address(self) -> str:
        """This node's address, as other nodes of the cluster reach it."""
        import ray

        return str(ray.util.get_node_ip_address())

    def facts(self, device: str) -> dict[str, Any]:
        """What a launch on this node records of it."""
        return host_facts(device)


class RayNode:
    """The connection to a node's actor."""

    def __init__(self, actor: Any, name: str) -> None:
        self.actor, self.name = actor, name
        self.lost = ""

    def call(self, method: str, *arguments: Any) -> Callable[[], Any]:
        import ray

        with self._noting_loss():
            answer = getattr(self.actor, method).remote(*arguments)

        def result() -> Any:
            with self._noting_loss():
                return ray.get(answer, timeout=CALL_S)

        return result

    @contextlib.contextmanager
    def _noting_loss(self) -> Iterator[None]:
        """After a node was lost nothing is asked of it, since every answer is waited for."""
        from ray.exceptions import RayError, RayTaskError

        if self.lost:
            raise NodeLost(self.lost)
        try:
            yield
        except (RayError, ConnectionError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raised = isinstance(error, RayTaskError)  # by the agent; its last line says what
            reason = (lines or [type(error).__name__])[-1 if raised else 0]
            self.lost = f"{self.name} was lost: {ESCAPES.sub('', reason)}"
            raise NodeLost(self.lost) from error


@dataclass(eq=False)
class RayGroup:
    """A placement group and the agents in it; starts launches of one shape, one at a time."""

    cluster: RayCluster
    placement: RankLayout
    interface: str
    interrupted: Callable[[], bool]
    waiting: Callable[[str], None]  # shows what is waited for

    def __post_init__(self) -> None:
        self.nodes: dict[int, RayNode] = {}
        self.address = ""  # of the first node
        self.facts: dict[str, Any] = {}  # the same
        self.bundle = self.cluster.bundle(self.placement)
        self._asked: list[str] = []  # ids of the nodes that the group may be on
        self._group: Any = None
        self._launch: RemoteLaunch | None = None

    def __call__(self, plan: LaunchPlan) -> RemoteLaunch:
        """Places the group first. Raises NoNodes where the cluster has no room, and
        KeyboardInterrupt after an interrupt."""
        plan.files = RAY
        save_plan(plan)
        try:
            self.place()
            port = self.nodes[0].call("free_port", self.address)()
        except NodeLost as error:
            self._launch = RemoteLaunch(plan, {})
            self._launch.lost = str(error)
            return self._launch
        place = Hosts(
            nnodes=plan.placement.nodes,
            address=self.address,
            port=port,
            interface=self.interface,
            wait_s=RENDEZVOUS_S,
        )
        self._launch = RemoteLaunch(plan, self.nodes)
        self._launch.start(place, secrets.token_hex(16))
        return self._launch

    def place(self) -> None:
        """Takes nodes, if it has none, or if one was lost. Raises NodeLost, and as a call does."""
        if self._launch and self._launch.lost:
            self.release()
            self._launch = None
        if self.nodes:
            return
        try:
            self._place()
        except (NodeLost, imported().exceptions.RayError) as error:
            self.release()
            raise NodeLost(str(error)) from error

    def _place(self) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundle, count = self.bundle, self.placement.nodes
        self._wait_for_room(f"{_counted(count, 'node')} with {_words(bundle)} each")
        self.cluster.placed.add(shape_name(self.placement))
        agent = ray.remote(RayAgent)
        for node in range(count):
            strategy = PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=node
            )
            actor = agent.options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0),
                scheduling_strategy=strategy,
            ).remote(node)
            self.nodes[node] = RayNode(actor, f"node {node} of {count}")
        self.address = self.nodes[0].call("address")()
        self.facts = self.nodes[0].call("facts", self.placement.device)()

    def _wait_for_room(self, what: str) -> None:
        """The time limit begins again while other cells of the sweep are measured."""
        limit_s = self.cluster.options.wait_s
        deadline, announced = time.monotonic() + limit_s, False
        while not self._has_room():
            if self.interrupted():
                raise KeyboardInterrupt
            if not announced:
                self.waiting(f"waiting for room in the cluster: {what}")
            announced = True
            if self.cluster.placed:
                deadline = time.monotonic() + limit_s
            if time.monotonic() > deadline:
                raise NoNodes(
                    f"hydra.launcher.wait_s={limit_s:g}: the cluster had no room for {what}"
                )

    def _has_room(self) -> bool:
        """Whether the placement group is there, after POLL_S at most; it is asked for anew where
        the cluster has other nodes than before."""
        from ray.util.placement_group import placement_group

        nodes = sorted(self.cluster.nodes())
        if self._group is None or nodes != self._asked:
            self._remove_group()
            if not nodes:
                time.sleep(POLL_S)
                return False
            count, self._asked = self.placement.nodes, nodes
            self._group = placement_group(
                [self.bundle] * count,
                strategy="STRICT_SPREAD" if count > 1 else "STRICT_PACK",
                bundle_label_selector=[{"ray.io/node-id": f"in({','.join(nodes)})"}] * count,
            )
        group = self._group  # which `release` may take away, in another thread
        return group is not None and bool(group.wait(POLL_S))

    def _remove_group(self) -> None:
        from ray.util.placement_group import remove_placement_group

        group, self._group = self._group, None
        if group is not None:
            with contextlib.suppress(Exception):  # of many kinds, where the cluster has gone
                remove_placement_group(group)

    def release(self) -> None:
        """Ends the agents, with their ranks and files, and gives the nodes back."""
        nodes, self.nodes = list(self.nodes.values()), {}
        ends: list[Callable[[], Any]] = []
        for node in nodes:
            with contextlib.suppress(NodeLost):
                ends.append(node.call("close"))
        for end in ends:
            with contextlib.suppress(NodeLost):
                end()
        self.cluster.placed.discard(shape_name(self.placement))
        self._remove_group()


def _words(bundle: Mapping[str, float]) -> str:
    return " and ".join(_counted(count, name) for name, count in bundle.items())


def _counted(count: float, name: str) -> str:
    return f"{count:g} {name}{'' if count == 1 else 's'}"
