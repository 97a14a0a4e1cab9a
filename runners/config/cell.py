"""From a resolved config to a validated cell. Torch-free; every error names field and remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from moe import peers, spec
from moe.spec import (
    Cell,
    LayerSpec,
    RankLayout,
    RouterSpec,
    StrategySpec,
    Unsupported,
    WorkloadSpec,
)
from moe.strategies import names, rules_of, usual_dispatcher
from runners.config.fields import ConfigError, boolean, choice, integer, label_of, number, only_keys
from runners.host.files import small_text
from runners.host.hardware import usable_cores
from runners.host.mpi import available
from runners.host.topology import BY_NODE, over_nodes
from runners.records.routing_trace import SHAPE, Trace, TraceError, read_trace

KEYS = {  # what each node of the config may hold
    "": "model strategy workload measure tracker experiment batch_size topk num_experts world_size "
    "dtype tokens mode seed threads backend label topk_overflow name isolation on_invalid on_error "
    "report resume resume_mode hosts",
    "model": "name dim hidden dim_out scale num_experts topk activation bias shared_experts router",
    "model.router": " ".join(f.name for f in fields(RouterSpec)),
    "strategy": "name dispatcher ep tp overlap placement hot_replicas comm_dtype kernel slowdown "
    "variant",
    "workload": "kind parameter nominal_ep trace",
    "tracker": "mode project entity limit_s",
    "hosts": "nnodes node_rank ranks_per_node rdzv_endpoint interface run wait_s cores gpus "
    "memory_gib pass_env",
}


@dataclass(frozen=True)
class NodeResources:
    """What a cell may be placed on: nodes that are alike, each with so many cores and GPUs."""

    cores: int
    cuda_devices: int = 0
    nodes: int = 1
    memory_bytes: int = 0  # of a node; 0: what this host has available


@dataclass(frozen=True)
class Request:
    """A cell as the user asked for it, with what was done to make it runnable."""

    cell: Cell
    label: str = ""
    notes: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    trace: Trace | None = field(default=None, repr=False)  # what workload.trace_sha256 names


def request(
    config: Mapping[str, Any], machine: NodeResources, overrides: Sequence[str] = ()
) -> Request:
    """The cell that `config` (a resolved, plain mapping) describes.

    Raises ConfigError, or Unsupported for what only the layer or the strategy can refuse.
    """
    notes: list[str] = []
    for name, known in KEYS.items():
        only_keys(config, name, known)
    layer = _layer(config, notes)
    strategy = _strategy(config["strategy"], choice(config, "tokens", spec.TOKENS))
    trace = _trace(config["workload"], layer, notes, integer(config, "batch_size"))
    placement = _placement(config, strategy, machine, notes)
    strategy = over_nodes(strategy, layer, placement)
    cell = Cell(layer, strategy, _workload(config, trace), placement)
    meta = {
        "model": str(config["model"]["name"]),
        "scale": config["model"]["scale"],
        "overrides": list(overrides),
    }
    return Request(cell, label_of(config), tuple(notes), meta, trace)


def _layer(config: Mapping[str, Any], notes: list[str]) -> LayerSpec:
    model = config["model"]
    scale = integer(model, "model.scale")
    sizes = {name: _scaled(model, name, scale) for name in ("dim", "hidden", "dim_out")}
    num_experts = integer(config, "num_experts")
    requested = integer(config, "topk")
    overflow = choice(config, "topk_overflow", ("error", "clamp"))
    topk = requested
    if requested > num_experts:
        if overflow == "error":
            raise ConfigError(
                f"topk={requested}: allowed is at most num_experts={num_experts}; "
                "lower topk, raise num_experts or set topk_overflow=clamp"
            )
        topk = num_experts
        notes.append(f"top-k {requested} ran as {topk}: there are {num_experts} experts")
    return LayerSpec(
        **sizes,
        num_experts=num_experts,
        topk=topk,
        topk_requested=requested,
        activation=choice(model, "model.activation", spec.ACTIVATIONS),
        bias=choice(model, "model.bias", spec.BIASES),
        shared_experts=integer(model, "model.shared_experts", 0),
        dtype=choice(config, "dtype", spec.DTYPES),
        weight_seed=integer(config, "seed", 0),
        router=_router(model["router"]),
    )


def _scaled(model: Mapping[str, Any], name: str, scale: int) -> int:
    full = integer(model, f"model.{name}")
    if full % scale:
        raise ConfigError(
            f"model.scale={scale}: allowed are divisors of model.{name}={full}; "
            "choose a scale that divides every dimension"
        )
    return full // scale


def _router(config: Mapping[str, Any]) -> RouterSpec:
    kind = choice(config, "model.router.kind", ("token_choice", "expert_choice"))
    by_kind = config["normalize"] is None
    return RouterSpec(
        kind=kind,
        score=choice(config, "model.router.score", ("softmax", "sigmoid")),
        order=choice(config, "model.router.order", ("before", "after")),
        normalize=(
            kind == "token_choice" if by_kind else boolean(config, "model.router.normalize", "null")
        ),
        scale=number(config, "model.router.scale"),
        groups=integer(config, "model.router.groups"),
        group_topk=integer(config, "model.router.group_topk"),
        selection_bias=choice(config, "model.router.selection_bias", ("none", "balanced")),
        aux_loss=number(config, "model.router.aux_loss"),
        capacity_factor=number(config, "model.router.capacity_factor"),
        drop=choice(config, "model.router.drop", spec.DROPS),
        scope=choice(config, "model.router.scope", spec.SCOPES),
    )


def _strategy(config: Mapping[str, Any], tokens: str) -> StrategySpec:
    placement, order = _expert_placement(config["placement"])
    comm_dtype = config["comm_dtype"] or ""
    if comm_dtype:
        choice(config, "strategy.comm_dtype", spec.DTYPES)
    name = _strategy_name(config)
    dispatcher = choice(config, "strategy.dispatcher", ("auto", *spec.DISPATCHERS))
    overlap = integer(config, "strategy.overlap")
    if dispatcher == "auto" or not rules_of(name).dispatchers:
        dispatcher = usual_dispatcher(name, tokens, overlap)
    return StrategySpec(
        name=name,
        dispatcher=dispatcher,
        ep=integer(config, "strategy.ep", 0),
        tp=integer(config, "strategy.tp", 0),
        overlap=overlap,
        placement=placement,
        expert_order=order,
        hot_replicas=integer(config, "strategy.hot_replicas", 0),
        comm_dtype=str(comm_dtype),
        kernel=choice(config, "strategy.kernel", spec.KERNELS),
        slowdown=number(config, "strategy.slowdown"),
        variant=str(config["variant"] or ""),
    )


def _strategy_name(config: Mapping[str, Any]) -> str:
    """One of the project's own, or a peer, which moe.peers looks for."""
    name = str(config["name"])
    if name.startswith(spec.PEER):
        return name
    return choice(config, "strategy.name", (*names(), *(spec.PEER + n for n in peers.OWN)))


def _expert_placement(value: Any) -> tuple[str, tuple[int, ...]]:
    """contiguous, round_robin, by_node, or the name of a text file of expert ids in slot order."""
    if value in ("contiguous", "round_robin", BY_NODE):
        return str(value), ()
    try:
        order = tuple(int(word) for word in small_text(str(value)).split())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"strategy.placement={value!r}: allowed are contiguous, round_robin, by_node or a file "
            f"of expert ids; it cannot be read as such a file: {error}"
        ) from None
    if sorted(order) != list(range(len(order))):
        raise ConfigError(
            f"strategy.placement={value!r}: allowed is every expert id once; mend the file"
        )
    return "explicit", order


def _trace(
    config: Mapping[str, Any], layer: LayerSpec, notes: list[str], batch_size: int
) -> Trace | None:
    """The rows of workload.trace, for kind=trace; without that kind nothing would read a file."""
    path = config["trace"]
    if config["kind"] != "trace":
        if path is None:
            return None
        raise ConfigError(
            f"workload.trace={path!r}: allowed is null with workload.kind={config['kind']}; set "
            "workload=trace, or leave workload.trace out"
        )
    if not isinstance(path, str) or not path:
        raise ConfigError(
            f"workload.trace={path!r}: allowed is {SHAPE}; set workload.trace to its path"
        )
    try:
        found = read_trace(path, layer.topk, layer.num_experts)
    except TraceError as error:
        raise ConfigError(
            f"workload.trace={path!r}: {error}; mend the file or name another, or change topk "
            "or num_experts to its own"
        ) from None
    if found.count < batch_size:
        notes.append(f"the trace has {found.count} rows for {batch_size} tokens: they repeat")
    return found


def _workload(config: Mapping[str, Any], trace: Trace | None) -> WorkloadSpec:
    work = config["workload"]
    return WorkloadSpec(
        batch_size=integer(config, "batch_size"),
        tokens=choice(config, "tokens", spec.TOKENS),
        mode=choice(config, "mode", spec.MODES),
        kind=choice(work, "workload.kind", spec.WORKLOADS),
        parameter=number(work, "workload.parameter"),
        nominal_ep=integer(work, "workload.nominal_ep", 0),
        trace_sha256=trace.sha256 if trace else "",
        seed=integer(config, "seed", 0),
        cache=choice(config["measure"], "measure.cache", ("warm", "cold")),
    )


def _placement(
    config: Mapping[str, Any], strategy: StrategySpec, machine: NodeResources, notes: list[str]
) -> RankLayout:
    world_size = integer(config, "world_size")
    if rules_of(strategy.name).single_rank and world_size > 1:
        notes.append("serial runs once, on one rank with every core, whatever world_size is")
        world_size = 1
    nodes = _nodes(config["hosts"], world_size, machine)
    on_node = world_size // nodes
    backend = _backend(config, on_node, machine)
    if backend == "nccl" and machine.cuda_devices < on_node:
        raise ConfigError(
            f"backend=nccl: allowed with at least {on_node} CUDA devices per node for "
            f"world_size={world_size}, here are {machine.cuda_devices}; lower world_size or set "
            "backend=gloo"
        )
    if backend == "mpi" and nodes > 1:
        raise ConfigError(
            f"backend=mpi: allowed on one node, world_size={world_size} takes {nodes}; "
            "set backend=gloo or hosts.ranks_per_node=auto"
        )
    auto = config["threads"] == "auto"
    threads = max(1, machine.cores // on_node) if auto else integer(config, "threads")
    device = "cuda" if backend == "nccl" else "cpu"
    return RankLayout(world_size, backend, device, threads, nodes)


def _nodes(hosts: Mapping[str, Any], world_size: int, machine: NodeResources) -> int:
    """Nodes that the ranks are spread over; the same number of ranks on each."""
    nnodes = integer(hosts, "hosts.nnodes")
    given = hosts["ranks_per_node"]
    on_node = (
        integer(hosts, "hosts.ranks_per_node") if given != "auto" else -(-world_size // nnodes)
    )
    nodes = max(1, -(-world_size // on_node))
    if world_size % nodes or (nodes > 1 and world_size != nodes * on_node):
        raise ConfigError(
            f"world_size={world_size}: allowed on several nodes are multiples of the {on_node} "
            "ranks of a node; change world_size or hosts.ranks_per_node"
        )
    if nodes > machine.nodes:
        raise ConfigError(
            f"hosts.ranks_per_node={given}: world_size={world_size} takes {nodes} nodes, here "
            f"allowed is {machine.nodes}; raise it, or use hosts=many or hydra/launcher=slurm"
        )
    return nodes


def _backend(config: Mapping[str, Any], on_node: int, machine: NodeResources) -> str:
    backend = choice(config, "backend", ("auto", *spec.BACKENDS))
    reason = available() if backend == "mpi" else None
    if reason:
        raise ConfigError(f"backend=mpi: allowed where MPI is installed; {reason}")
    if backend != "auto":
        return backend
    return "nccl" if 0 < on_node <= machine.cuda_devices else "gloo"


__all__ = ["ConfigError", "NodeResources", "Request", "Unsupported", "request", "usable_cores"]
