"""Checks of a cell that hold for every strategy; refuses by name. Torch-free."""

from __future__ import annotations

from moe import spec
from moe.parallel.refusals import at_least_0, one_of, whole
from moe.spec import Cell, Unsupported
from moe.workload.checks import check_workload


def check_fields(cell: Cell) -> None:
    """Raises Unsupported, naming field, value, what is allowed and what to do."""
    layer, strategy, work, place = cell.layer, cell.strategy, cell.workload, cell.placement
    one_of("strategy.kernel", strategy.kernel, spec.KERNELS)
    one_of("dtype", layer.dtype, spec.DTYPES)
    one_of("layer.activation", layer.activation, spec.ACTIVATIONS)
    one_of("layer.bias", layer.bias, spec.BIASES)
    one_of("tokens", work.tokens, spec.TOKENS)
    one_of("mode", work.mode, spec.MODES)
    for name in ("dim", "hidden", "dim_out", "num_experts", "topk"):
        whole(f"layer.{name}", getattr(layer, name), 1)
    whole("batch_size", work.batch_size, 1)
    whole("world_size", place.world_size, 1)
    whole("threads", place.threads, 1)
    whole("model.shared_experts", layer.shared_experts, 0)
    if layer.topk > layer.num_experts:
        raise Unsupported("topk", layer.topk, f"1 to num_experts={layer.num_experts}",
                          "lower topk, raise num_experts or set topk_overflow=clamp")  # fmt: skip
    _router(cell)
    check_workload(cell)


def _router(cell: Cell) -> None:
    layer, rule = cell.layer, cell.layer.router
    one_of("router.kind", rule.kind, ("token_choice", "expert_choice"))
    one_of("router.score", rule.score, ("softmax", "sigmoid"))
    one_of("router.order", rule.order, ("before", "after"))
    one_of("router.selection_bias", rule.selection_bias, ("none", "balanced"))
    one_of("router.drop", rule.drop, spec.DROPS)
    one_of("router.scope", rule.scope, spec.SCOPES)
    whole("router.groups", rule.groups, 1)
    at_least_0("router.capacity_factor", rule.capacity_factor)
    at_least_0("router.aux_loss", rule.aux_loss)
    at_least_0("strategy.slowdown", cell.strategy.slowdown)
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
