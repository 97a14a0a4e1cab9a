"""Checks of a cell that hold for every strategy; refuses by name. Torch-free."""

from __future__ import annotations

from moe import spec
from moe.knob import knobs
from moe.layer import liger_support, triton_support
from moe.parallel.refusals import at_least_0, one_of, whole
from moe.spec import GROUPED_DTYPE, Cell, Unsupported
from moe.workload.checks import check_workload

WAITING_DISPATCHERS = ("alltoall", "dedup")
GRAPH_KERNELS = ("auto", *spec.KERNELS_WITHOUT_COUNTS)


def check_fields(cell: Cell) -> None:
    """Raises Unsupported, naming field, value, what is allowed and what to do."""
    layer = cell.layer
    for part in (layer, layer.router, cell.strategy, cell.workload, cell.placement):
        for field, known in knobs(type(part)):
            path, value = known.path(field.name), getattr(part, field.name)
            if known.at is None:
                continue  # derived
            if field.type == "int":
                whole(path, value, int(known.least))
            elif field.type == "float":
                at_least_0(path, value)
            elif known.allowed:
                one_of(path, value, (*known.allowed, *(known.words or {}).values()))
    if layer.topk > layer.num_experts:
        raise Unsupported("topk", layer.topk, f"1 to num_experts={layer.num_experts}",
                          "lower topk, raise num_experts or set topk_overflow=clamp")  # fmt: skip
    for support in (liger_support, triton_support):
        if cell.strategy.kernel == support.KERNEL:
            support.refuse(cell)
    _router(cell)
    check_workload(cell)
    if cell.strategy.graph != "off":
        _graph(cell)


def _graph(cell: Cell) -> None:
    """Refuses what a CUDA graph cannot capture: whatever makes the host wait for the GPU."""
    strategy, off = cell.strategy, "set measure.graph=off"
    one_of("measure.graph of one cell", strategy.graph, ("off", "on"))
    if cell.placement.device != "cuda" or cell.placement.backend != "nccl":
        raise Unsupported("measure.graph", "on", "off but on GPUs with backend=nccl", off)
    if strategy.slowdown:
        raise Unsupported("measure.graph", "on", "off with strategy.slowdown, which waits for the "
                          "GPU to know how long a step took", off)  # fmt: skip
    if strategy.dispatcher in WAITING_DISPATCHERS:
        raise Unsupported(
            "measure.graph", "on", f"off with strategy.dispatcher={strategy.dispatcher}, where the "
            "host waits for the number of rows to send", f"{off} or another dispatcher",
        )  # fmt: skip
    if strategy.dispatcher in spec.EXPERIMENTAL:
        raise Unsupported(
            "measure.graph", "on", f"off with strategy.dispatcher={strategy.dispatcher}, which no "
            "run on GPUs has shown in a graph", f"{off} or another dispatcher",
        )  # fmt: skip
    if strategy.kernel not in GRAPH_KERNELS:
        raise Unsupported(
            "measure.graph", "on", f"off with strategy.kernel={strategy.kernel}, where the host "
            "waits for the rows of each expert",
            f"{off} or strategy.kernel={'|'.join(GRAPH_KERNELS)}",
        )  # fmt: skip
    dtype = cell.layer.dtype
    if strategy.kernel == "grouped" and dtype != GROUPED_DTYPE:
        raise Unsupported(
            "measure.graph", "on", f"off with strategy.kernel=grouped and dtype={dtype}, in which "
            "torch reads the rows of each expert on the host",
            f"{off}, strategy.kernel=dense or dtype={GROUPED_DTYPE}",
        )  # fmt: skip


def _router(cell: Cell) -> None:
    layer, rule = cell.layer, cell.layer.router
    if rule.score == "sigmoid":
        one_of("router.order with score=sigmoid", rule.order, ("before",))
    if rule.aux_loss:
        one_of("mode with router.aux_loss", cell.workload.mode, ("train",))
    if rule.kind == "expert_choice":
        _expert_choice(rule)
    elif rule.groups > 1:
        _groups(layer)


def _expert_choice(rule: spec.RouterSpec) -> None:
    """Refuses rules about a token's choice, which have no meaning where experts choose."""
    plain = spec.RouterSpec()
    for name in ("order", "groups", "selection_bias", "aux_loss"):
        one_of(f"router.{name} with kind=expert_choice", getattr(rule, name),
                [getattr(plain, name)])  # fmt: skip


def _groups(layer: spec.LayerSpec) -> None:
    rule, experts = layer.router, layer.num_experts
    if experts % rule.groups:
        raise Unsupported("router.groups", rule.groups, f"divisors of num_experts={experts}",
                          "change router.groups or num_experts")  # fmt: skip
    one_of("router.group_topk", rule.group_topk, range(1, rule.groups + 1))
    room = experts // rule.groups * rule.group_topk
    if layer.topk > room:
        raise Unsupported("topk", layer.topk, f"at most {room}, the experts of "
                          f"router.group_topk={rule.group_topk} groups",
                          "lower topk or raise router.group_topk")  # fmt: skip
