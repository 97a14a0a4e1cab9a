"""What each strategy does, and refusals by name for what it does not. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from moe import spec
from moe.degrees import degrees
from moe.spec import Cell, Unsupported

READY = ("serial", "simple", "dp", "tp", "ep")
DISPATCH = {"replicated": ("local", "alltoall"), "sharded": ("alltoall",)}


def _one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    found = tuple(allowed)
    if value not in found:
        raise Unsupported(name, value, "|".join(map(str, found)), "choose one of these")


def _whole(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise Unsupported(name, value, f"whole numbers from {least}", f"set {name} to one")


def supports(cell: Cell) -> None:
    """Raises Unsupported, naming field, value, what is allowed and what to do."""
    layer, strategy, work, place = cell.layer, cell.strategy, cell.workload, cell.placement
    _one_of("strategy", strategy.name, READY)
    _one_of("strategy.kernel", strategy.kernel, spec.KERNELS)
    _one_of("dtype", layer.dtype, spec.DTYPES)
    _one_of("layer.activation", layer.activation, spec.ACTIVATIONS)
    _one_of("layer.bias", layer.bias, spec.BIASES)
    _one_of("tokens", work.tokens, spec.TOKENS)
    _one_of("mode", work.mode, ("forward",))
    _one_of("model.shared_experts", layer.shared_experts, (0,))
    _one_of("strategy.overlap", strategy.overlap, (1,))
    _one_of("strategy.placement", strategy.placement, ("contiguous",))
    _one_of("strategy.hot_replicas", strategy.hot_replicas, (0,))
    _one_of("strategy.comm_dtype", strategy.comm_dtype, ("", layer.dtype))
    _one_of("workload", work.kind, ("learned",))
    for name in ("dim", "hidden", "dim_out", "num_experts", "topk"):
        _whole(f"layer.{name}", getattr(layer, name), 1)
    _whole("batch_size", work.batch_size, 1)
    _whole("world_size", place.world_size, 1)
    _whole("threads", place.threads, 1)
    if layer.topk > layer.num_experts:
        raise Unsupported("topk", layer.topk, f"1 to num_experts={layer.num_experts}",
                          "lower topk, raise num_experts or set topk_overflow=clamp")  # fmt: skip
    _router(cell)
    _spread(cell)


def _router(cell: Cell) -> None:
    rule = cell.layer.router
    plain = spec.Router()
    for field in fields(spec.Router):
        if field.name not in ("order", "normalize", "scale"):
            _one_of(f"router.{field.name}", getattr(rule, field.name), [getattr(plain, field.name)])
    _one_of("router.order", rule.order, ("before", "after"))


def _spread(cell: Cell) -> None:
    layer, strategy, size = cell.layer, cell.strategy, cell.placement.world_size
    if strategy.name == "serial" and cell.workload.tokens != "replicated":
        raise Unsupported("tokens", cell.workload.tokens, "replicated for strategy=serial",
                          "set tokens=replicated or use strategy=simple")  # fmt: skip
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
    if strategy.name == "ep":
        _one_of(f"strategy.dispatcher with tokens={cell.workload.tokens}", strategy.dispatcher,
                DISPATCH[cell.workload.tokens])  # fmt: skip
