"""Placement of ranks on nodes, and alignment of the nodes' clocks. Torch-free.

In a record of several nodes `environment.topology` holds

    node_of     the node of every rank, numbered from 0; host names are not stored
    hosts       salted hash of every node's host; nodes with equal hashes are one machine
    nodes       {cpu_model, cores, memory_total_bytes, gpus, gpu_links} of every node
    clock       how samples were taken: END_BARRIER

Links between ranks inside a node and across nodes are in the calibration, as `tiers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from moe.spec import LayerSpec, RankLayout, StrategySpec, Unsupported

BY_NODE = "by_node"
END_BARRIER = "end barrier inside the sample"
OF_NODE = ("cpu_model", "cores", "memory_total_bytes", "gpus", "gpu_links")


def by_node(experts: int, nodes: int) -> tuple[int, ...]:
    """Expert order that deals experts out over the nodes: expert e is on node e mod `nodes`, so
    that a block of popular experts is spread over all nodes."""
    return tuple(expert for node in range(nodes) for expert in range(node, experts, nodes))


def place_experts(strategy: StrategySpec, layer: LayerSpec, placement: RankLayout) -> StrategySpec:
    """Resolves strategy.placement=by_node to an explicit order (contiguous on a single node).

    Raises Unsupported for a strategy whose experts are not spread over all ranks.
    """
    if strategy.placement != BY_NODE:
        return strategy
    if strategy.name != "ep":
        allowed = "strategy=ep, whose experts are spread over all ranks"
        raise Unsupported(
            "strategy.placement", BY_NODE, f"{allowed}, not {strategy.name}", "choose contiguous"
        )
    if placement.nodes == 1:
        return replace(strategy, placement="contiguous")
    order = by_node(layer.num_experts, placement.nodes)
    return replace(strategy, placement="explicit", expert_order=order)


def align_clocks(
    starts: list[int], ends: list[int], node_of: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Shifts each node's times (ns) so that all nodes leave the end barrier when node 0's last rank
    does. The makespan, last end minus first start, is then that of the slowest node. The ranks'
    own lines keep the times as read."""
    if not node_of:
        return starts, ends
    last = {node: max(e for e, at in zip(ends, node_of, strict=True) if at == node)
            for node in set(node_of)}  # fmt: skip
    shift = [last[node_of[0]] - last[node] for node in node_of]
    return (
        [time + by for time, by in zip(starts, shift, strict=True)],
        [time + by for time, by in zip(ends, shift, strict=True)],
    )


def environment(launches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The environment of a record: the first node's, and the topology of all nodes."""
    facts = dict(launches[0].get("environment", {}))
    node_of = launches[0].get("nodes")
    if not node_of:
        return facts
    if "network" in facts:
        facts["network"] = "between nodes"
    nodes = per_node(launches, node_of)
    hosts = [node.get("host") for node in nodes]
    facts["topology"] = {
        "node_of": list(node_of),
        "hosts": hosts,
        "nodes": [{name: node.get(name) for name in OF_NODE} for node in nodes],
        "clock": END_BARRIER,
    }
    if hosts and hosts[0]:  # nodes that are one machine share its cores
        first_host = {n for n, host in enumerate(hosts) if host == hosts[0]}
        facts["local_ranks"] = sum(node in first_host for node in node_of)
    return facts


def per_node(launches: Sequence[Mapping[str, Any]], node_of: Sequence[int]) -> list[dict[str, Any]]:
    """The environment captured by the first rank of every node; empty where none was."""
    nodes: list[dict[str, Any]] = []
    for node in range(max(node_of) + 1):
        ranks = [one for one, at in zip(launches, node_of, strict=True) if at == node]
        captured = [one["environment"] for one in ranks if "environment" in one]
        nodes.append(dict(captured[0]) if captured else {})
    return nodes
