"""What each strategy does, and refusals by name for what it does not. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable

from moe import peers, spec
from moe.parallel.degrees import degrees
from moe.spec import Cell, Unsupported
from moe.workload.checks import check_workload

DISPATCH: dict[
    str, dict[str, tuple[str, ...]]
] = {  # what there is to choose, by strategy and tokens
    "ep": {
        "replicated": ("local", "alltoall", "dedup"),
        "sharded": ("alltoall", "dedup", "allgather"),
    },
    "ep_tp": {"replicated": ("local", "alltoall", "dedup"), "sharded": ("alltoall", "dedup")},
    "dp_ep": {"replicated": ("local", "alltoall", "dedup"), "sharded": ("alltoall", "dedup")},
}
NO_SENDING = ("serial", "simple")


def usual_dispatcher(strategy: str, tokens: str, overlap: int) -> str:
    """What `strategy.dispatcher=auto` stands for. Where every rank has the whole batch, `local`
    sends least often: one all-reduce. It has no all-to-all that `overlap` could cut in chunks."""
    if strategy not in DISPATCH:
        return "local"  # there is nothing to dispatch
    return "local" if tokens == "replicated" and overlap == 1 else "alltoall"


def _one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """`name` may say after the field what the choice depends on: "tokens for strategy=serial"."""
    found, (field, _, why) = tuple(allowed), name.partition(" ")
    if value not in found:
        choices = "|".join(str(one) or "null" for one in found)
        raise Unsupported(field, value, f"{choices} {why}".strip(), "choose one of these")


def _whole(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise Unsupported(name, value, f"whole numbers from {least}", f"set {name} to one")


def _at_least_0(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise Unsupported(name, value, "finite numbers from 0", f"set {name} to one")


def supports(cell: Cell) -> None:
    """Raises Unsupported, naming field, value, what is allowed and what to do."""
    layer, strategy, work, place = cell.layer, cell.strategy, cell.workload, cell.placement
    if strategy.name.startswith(spec.PEER):
        limits = peers.limits_of(strategy.name)
        supports(limits.equivalent(cell))
        limits.refuse(cell)
        return
    _one_of("strategy", strategy.name, spec.STRATEGIES)
    _one_of("strategy.kernel", strategy.kernel, spec.KERNELS)
    _one_of("dtype", layer.dtype, spec.DTYPES)
    _one_of("layer.activation", layer.activation, spec.ACTIVATIONS)
    _one_of("layer.bias", layer.bias, spec.BIASES)
    _one_of("tokens", work.tokens, spec.TOKENS)
    _one_of("mode", work.mode, spec.MODES)
    for name in ("dim", "hidden", "dim_out", "num_experts", "topk"):
        _whole(f"layer.{name}", getattr(layer, name), 1)
    _whole("batch_size", work.batch_size, 1)
    _whole("world_size", place.world_size, 1)
    _whole("threads", place.threads, 1)
    _whole("model.shared_experts", layer.shared_experts, 0)
    if layer.topk > layer.num_experts:
        raise Unsupported("topk", layer.topk, f"1 to num_experts={layer.num_experts}",
                          "lower topk, raise num_experts or set topk_overflow=clamp")  # fmt: skip
    _router(cell)
    check_workload(cell)
    _spread(cell)
    _dispatch(cell)
    _placement(cell)
    _kernel(cell)


def _router(cell: Cell) -> None:
    layer, rule = cell.layer, cell.layer.router
    _one_of("router.kind", rule.kind, ("token_choice", "expert_choice"))
    _one_of("router.score", rule.score, ("softmax", "sigmoid"))
    _one_of("router.order", rule.order, ("before", "after"))
    _one_of("router.selection_bias", rule.selection_bias, ("none", "balanced"))
    _one_of("router.drop", rule.drop, spec.DROPS)
    _one_of("router.scope", rule.scope, spec.SCOPES)
    _whole("router.groups", rule.groups, 1)
    _at_least_0("router.capacity_factor", rule.capacity_factor)
    _at_least_0("router.aux_loss", rule.aux_loss)
    _at_least_0("strategy.slowdown", cell.strategy.slowdown)
    if rule.score == "sigmoid":
        _one_of("router.order with score=sigmoid", rule.order, ("before",))
    if rule.aux_loss:
        _one_of("mode with router.aux_loss", cell.workload.mode, ("train",))
    if rule.kind == "expert_choice":
        _expert_choice(rule)
    elif rule.groups > 1:
        _groups(layer)


def _expert_choice(rule: spec.RouterSpec) -> None:
    """What speaks of a token's choice has no meaning where experts choose."""
    plain = spec.RouterSpec()
    for name in ("order", "groups", "selection_bias", "aux_loss"):
        _one_of(f"router.{name} with kind=expert_choice", getattr(rule, name),
                [getattr(plain, name)])  # fmt: skip


def _groups(layer: spec.LayerSpec) -> None:
    rule, experts = layer.router, layer.num_experts
    if experts % rule.groups:
        raise Unsupported("router.groups", rule.groups, f"divisors of num_experts={experts}",
                          "change router.groups or num_experts")  # fmt: skip
    _one_of("router.group_topk", rule.group_topk, range(1, rule.groups + 1))
    room = experts // rule.groups * rule.group_topk
    if layer.topk > room:
        raise Unsupported("topk", layer.topk, f"at most {room}, the experts of "
                          f"router.group_topk={rule.group_topk} groups",
                          "lower topk or raise router.group_topk")  # fmt: skip


def _spread(cell: Cell) -> None:
    layer, strategy, size = cell.layer, cell.strategy, cell.placement.world_size
    if strategy.name == "serial" and cell.workload.tokens != "replicated":
        raise Unsupported("tokens", cell.workload.tokens, "replicated for strategy=serial",
                          "set tokens=replicated or use strategy=simple")  # fmt: skip
    for name, used in (("ep", ("ep", "ep_tp", "dp_ep")), ("tp", ("tp", "ep_tp"))):
        if strategy.name not in used:
            _one_of(f"strategy.{name} for strategy={strategy.name}", getattr(strategy, name), (0,))
        _whole(f"strategy.{name}", getattr(strategy, name), 0)
    ep, tp, dp = degrees(cell)
    if ep * tp * dp != size:
        raise Unsupported("strategy.ep, strategy.tp", (ep, tp), f"a product of world_size={size}",
                          "set degrees that multiply to world_size")  # fmt: skip
    if layer.num_experts % ep:
        raise Unsupported("num_experts", layer.num_experts, f"multiples of {ep} for this strategy",
                          "change num_experts, world_size or strategy.ep")  # fmt: skip
    if layer.hidden % tp:
        raise Unsupported("layer.hidden", layer.hidden, f"multiples of {tp} for this strategy",
                          "change the hidden size, world_size or strategy.tp")  # fmt: skip


def _dispatch(cell: Cell) -> None:
    """Which way tokens go, in how many chunks, in which dtype."""
    strategy, tokens = cell.strategy, cell.workload.tokens
    expert_parallel = strategy.name in DISPATCH
    if expert_parallel:
        _one_of(f"strategy.dispatcher with tokens={tokens}", strategy.dispatcher,
                DISPATCH[strategy.name][tokens])  # fmt: skip
    else:
        _one_of(f"strategy.dispatcher for strategy={strategy.name}", strategy.dispatcher,
                ("local",))  # fmt: skip
    _whole("strategy.overlap", strategy.overlap, 1)
    if strategy.overlap > 1 and not (expert_parallel and strategy.dispatcher == "alltoall"):
        raise Unsupported("strategy.overlap", strategy.overlap,
                          "1 without strategy.dispatcher=alltoall",
                          "set strategy.overlap=1 or strategy.dispatcher=alltoall")  # fmt: skip
    _one_of("strategy.comm_dtype", strategy.comm_dtype, ("", *spec.DTYPES))
    if strategy.name in NO_SENDING:
        _one_of(f"strategy.comm_dtype for strategy={strategy.name}, which sends nothing",
                strategy.comm_dtype, ("",))  # fmt: skip


def _placement(cell: Cell) -> None:
    """Where experts are, and copies of hot ones."""
    strategy, experts, ep = cell.strategy, cell.layer.num_experts, degrees(cell).ep
    spread = strategy.name in DISPATCH
    places = ("contiguous", "round_robin", "explicit") if spread else ("contiguous",)
    _one_of(f"strategy.placement for strategy={strategy.name}", strategy.placement, places)
    order = sorted(strategy.expert_order)
    if strategy.placement == "explicit" and order != list(range(experts)):
        raise Unsupported("strategy.placement", f"{len(strategy.expert_order)} expert ids",
                          f"{experts}, every expert once", "mend the file")  # fmt: skip
    copies = strategy.hot_replicas
    _whole("strategy.hot_replicas", copies, 0)
    if copies and strategy.name != "ep":
        raise Unsupported("strategy.hot_replicas", copies, f"0 for strategy={strategy.name}",
                          "set strategy.hot_replicas=0 or use strategy=ep")  # fmt: skip
    if copies % ep or copies > experts * (ep - 1):
        raise Unsupported("strategy.hot_replicas", copies,
                          f"multiples of {ep} up to {experts * (ep - 1)}, as many on every rank",
                          "change strategy.hot_replicas or world_size")  # fmt: skip


def _kernel(cell: Cell) -> None:
    """F.grouped_mm wants rows of multiples of 16 bytes."""
    layer = cell.layer
    widths = (layer.dim, layer.hidden // degrees(cell).tp, layer.dim_out)
    odd = [width for width in widths if width * spec.DTYPE_BYTES[layer.dtype] % 16]
    if cell.strategy.kernel == "grouped" and odd:
        raise Unsupported("strategy.kernel", "grouped", "grouped where D, O and the hidden units "
                          f"of a rank are multiples of 16 bytes, which {odd[0]} is not",
                          "set strategy.kernel=auto or other sizes")  # fmt: skip
