"""Resolved config -> validated job. Torch-free; every error names field and remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from moe import peers, spec
from moe.spec import Cell, LayerSpec, RankLayout, RouterSpec, StrategySpec, WorkloadSpec
from moe.strategies import names, rules_of, usual_dispatcher
from runners.config.schema import check_shape, label_of, value, values
from runners.errors import ConfigError
from runners.host.files import small_text
from runners.host.machine import NodeResources
from runners.host.topology import BY_NODE, place_experts
from runners.mpi.start import unavailable_reason
from runners.plan import Job, Measure
from runners.records.routing_trace import SHAPE, Trace, TraceError, read_trace


def job_of(config: Mapping[str, Any], machine: NodeResources, overrides: Sequence[str] = ()) -> Job:
    """The job that `config`, a resolved plain mapping, describes.

    Raises ConfigError, or Unsupported for what only the layer or the strategy can refuse.
    """
    check_shape(config)
    notes: list[str] = []
    layer = _layer(config, notes)
    trace = _trace(config, layer, notes)
    placement = _placement(config, machine, notes)
    strategy = place_experts(_strategy(config), layer, placement)
    measure = Measure(**values(config, Measure))
    work = WorkloadSpec(
        **values(config, WorkloadSpec),
        trace_sha256=trace.sha256 if trace else "",
        cache=measure.cache,
    )
    meta = {
        "model": str(config["model"]["name"]),
        "scale": config["model"]["scale"],
        "overrides": list(overrides),
    }
    cell = Cell(layer, strategy, work, placement)
    return Job(cell, measure, label_of(config), tuple(notes), meta, trace, {**config})


def _layer(config: Mapping[str, Any], notes: list[str]) -> LayerSpec:
    scale = value(config, "model.scale")
    num_experts, requested = value(config, "num_experts"), value(config, "topk")
    overflow = value(config, "topk_overflow")
    topk = requested
    if requested > num_experts:
        if overflow == "error":
            raise ConfigError(
                f"topk={requested}: allowed is at most num_experts={num_experts}; "
                "lower topk, raise num_experts or set topk_overflow=clamp"
            )
        topk = num_experts
        notes.append(f"top-k {requested} ran as {topk}: there are {num_experts} experts")
    written = values(config, LayerSpec) | {"num_experts": num_experts, "topk": topk}
    written |= {name: _scaled(written, name, scale) for name in ("dim", "hidden", "dim_out")}
    return LayerSpec(
        **written,
        topk_requested=requested,
        weight_seed=value(config, "seed"),
        router=_router(config),
    )


def _scaled(sizes: Mapping[str, Any], name: str, scale: int) -> int:
    full = int(sizes[name])
    if full % scale:
        raise ConfigError(
            f"model.scale={scale}: allowed are divisors of model.{name}={full}; "
            "choose a scale that divides every dimension"
        )
    return full // scale


def _router(config: Mapping[str, Any]) -> RouterSpec:
    router = RouterSpec(**values(config, RouterSpec))
    if router.normalize is None:
        return replace(router, normalize=router.kind == "token_choice")
    return router


def _strategy(config: Mapping[str, Any]) -> StrategySpec:
    placement, order = _expert_placement(config["strategy"]["placement"])
    name = _strategy_name(config["strategy"])
    written = StrategySpec(**values(config, StrategySpec))
    dispatcher = written.dispatcher
    if dispatcher == "auto" or not rules_of(name).dispatchers:
        dispatcher = usual_dispatcher(name, value(config, "tokens"), written.overlap)
    return replace(
        written, name=name, dispatcher=dispatcher, placement=placement, expert_order=order,
        variant=str(written.variant or ""),
    )  # fmt: skip


def _strategy_name(config: Mapping[str, Any]) -> str:
    """One of the project's strategies, or a peer, which moe.peers checks."""
    name = str(config["name"])
    if name.startswith(spec.PEER):
        return name
    known = (*names(), *(spec.PEER + n for n in peers.OWN))
    if name not in known:
        raise ConfigError(
            f"strategy.name={name!r}: allowed are {', '.join(known)}; set strategy.name to one of "
            "them"
        )
    return name


def _expert_placement(written: Any) -> tuple[str, tuple[int, ...]]:
    """contiguous, round_robin, by_node, or expert ids in the order of the places: a list of them,
    or a text file."""
    if written in ("contiguous", "round_robin", BY_NODE):
        return str(written), ()
    words = written if isinstance(written, list) else None
    try:
        order = tuple(int(word) for word in words or small_text(str(written)).split())
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(
            f"strategy.placement={written!r}: allowed are contiguous, round_robin, by_node, a list "
            f"of expert ids or a file of them; it cannot be read as such a file: {error}"
        ) from None
    if sorted(order) != list(range(len(order))):
        raise ConfigError(
            f"strategy.placement={written!r}: allowed is every expert id once; mend the "
            f"{'list' if words else 'file'}"
        )
    return "explicit", order


def _trace(config: Mapping[str, Any], layer: LayerSpec, notes: list[str]) -> Trace | None:
    """The rows of workload.trace; None, and no file allowed, unless kind=trace."""
    path, kind = config["workload"]["trace"], value(config, "workload.kind")
    batch_size = value(config, "batch_size")
    if kind != "trace":
        if path is None:
            return None
        raise ConfigError(
            f"workload.trace={path!r}: allowed is null with workload.kind={kind}; set "
            "workload=trace, or leave workload.trace out"
        )
    expected = config["workload"]["trace_sha256"]
    if not isinstance(path, str) or not path:
        one = f", with choices of the sha256 {expected}" if expected else ""
        raise ConfigError(
            f"workload.trace={path!r}: allowed is {SHAPE}{one}; set workload.trace to its path"
        )
    try:
        trace = read_trace(path, layer.topk, layer.num_experts)
    except TraceError as error:
        raise ConfigError(
            f"workload.trace={path!r}: {error}; mend the file or name another, or change topk "
            "or num_experts to its own"
        ) from None
    if expected and trace.sha256 != expected:
        raise ConfigError(
            f"workload.trace={path!r}: its choices have the sha256 {trace.sha256}, allowed is "
            f"workload.trace_sha256={expected}; name the file with these"
        )
    if trace.count < batch_size:
        notes.append(f"the trace has {trace.count} rows for {batch_size} tokens: they repeat")
    return trace


def _placement(config: Mapping[str, Any], machine: NodeResources, notes: list[str]) -> RankLayout:
    world_size = value(config, "world_size")
    if rules_of(str(config["strategy"]["name"])).single_rank and world_size > 1:
        notes.append("serial runs once, on one rank with every core, whatever world_size is")
        world_size = 1
    nodes = _nodes(config, world_size, machine)
    on_node = world_size // nodes
    backend, device = _engine(config, world_size, on_node, machine)
    if backend == "mpi" and nodes > 1:
        raise ConfigError(
            f"backend=mpi: allowed on one node, world_size={world_size} takes {nodes}; "
            "set backend=gloo or hosts.ranks_per_node=auto"
        )
    threads = value(config, "threads") or max(1, machine.cores // on_node)
    return RankLayout(world_size, backend, device, threads, nodes)


def _nodes(config: Mapping[str, Any], world_size: int, machine: NodeResources) -> int:
    """Number of nodes; each has the same number of ranks."""
    given = config["hosts"]["ranks_per_node"]
    on_node = value(config, "hosts.ranks_per_node") or -(
        -world_size // value(config, "hosts.nnodes")
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
            f"allowed is {machine.nodes}; raise it, or use more nodes"
        )
    return nodes


def _engine(
    config: Mapping[str, Any], world_size: int, on_node: int, machine: NodeResources
) -> tuple[str, str]:
    """(backend, device). A single rank on a GPU sends nothing and has nccl."""
    backend, device = str(value(config, "backend")), str(value(config, "device"))
    gpus = machine.cuda_devices
    if device == "cuda":
        _check_cuda(backend, gpus)
        if world_size == 1:
            return "nccl", "cuda"
    reason = unavailable_reason() if backend == "mpi" else None
    if reason:
        raise ConfigError(f"backend=mpi: allowed where MPI is installed; {reason}")
    if backend == "nccl" and device == "cpu":
        raise ConfigError(
            "device=cpu: allowed with backend=nccl is cuda; set device=auto, or backend=gloo"
        )
    enough = 0 < on_node <= gpus
    if backend == "nccl" and not enough:
        check = "; device=cuda backend=gloo checks it, without timing it, on fewer GPUs"
        raise ConfigError(
            f"backend=nccl: allowed with at least {on_node} CUDA devices per node for "
            f"world_size={world_size}, here are {gpus}; lower world_size or set backend=gloo"
            + (check if gpus else "")
        )
    if backend == "auto":
        backend = "nccl" if enough and device != "cpu" else "gloo"
    if device == "auto":
        device = "cuda" if backend == "nccl" else "cpu"
    return backend, device


def _check_cuda(backend: str, gpus: int) -> None:
    """Raises ConfigError where device=cuda is impossible."""
    if backend == "mpi":
        raise ConfigError(
            "device=cuda: allowed with backend=mpi is cpu; set backend=auto, or device=cpu"
        )
    if not gpus:
        raise ConfigError(
            "device=cuda: allowed with at least one CUDA device per node, here are 0; set "
            "device=cpu"
        )
