"""What another system's layer supports, as data; everything else is refused by name. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec

from moe import spec
from moe.spec import (
    GROUPED_BYTES,
    GROUPED_DTYPE,
    GROUPED_MOST,
    Cell,
    StrategySpec,
    Unsupported,
)

EXTRA = "in the clone: pip install -e '.[peers]'"
GPU_EXTRA = "in the clone: pip install -e '.[gpu]'"
KEPT = ("slowdown", "graph")  # knobs of strategies that mean the same for a peer


def _nothing_more(cell: Cell) -> None:
    """For peers whose limits the fields of `Limits` express in full."""


@dataclass(frozen=True)
class Limits:
    """Limits of one peer. `like` maps each variant to the strategy of this project with the same
    weights and messages, whose own limits apply too. The first variant is the default."""

    system: str  # its usual name
    needs: tuple[str, ...]  # modules that must be importable
    like: Mapping[str, StrategySpec]
    install: str = EXTRA
    activations: tuple[str, ...] = ("silu_gated",)
    biases: tuple[str, ...] = ("none",)
    dtypes: tuple[str, ...] = spec.DTYPES
    modes: tuple[str, ...] = spec.MODES
    tokens: tuple[str, ...] = spec.TOKENS
    backends: tuple[str, ...] = spec.BACKENDS
    devices: tuple[str, ...] = spec.DEVICES
    graph_dtypes: tuple[str, ...] = ()  # in which no step waits for a GPU: a graph can hold it
    square: bool = True  # outputs have the width of inputs
    check: Callable[[Cell], None] = _nothing_more  # further limits

    def variant(self, cell: Cell) -> str:
        """The cell's variant, with the default resolved; raises Unsupported."""
        asked = cell.strategy.variant or next(iter(self.like))
        _one_of(cell, "strategy.variant", asked, tuple(self.like))
        return asked

    def equivalent(self, cell: Cell) -> Cell:
        """The cell of this project with the same weights, work and messages."""
        like = self.like[self.variant(cell)]
        return replace(cell, strategy=replace(like, **{n: getattr(cell.strategy, n) for n in KEPT}))

    def refuse(self, cell: Cell) -> None:
        """Raises Unsupported, naming field, value, what is allowed and what to do."""
        layer, work, place = cell.layer, cell.workload, cell.placement
        for field in fields(StrategySpec):
            if field.name not in ("name", "variant", *KEPT):
                value = getattr(cell.strategy, field.name)
                _one_of(cell, f"strategy.{field.name}", value, (field.default,))
        _one_of(cell, "layer.activation", layer.activation, self.activations)
        _one_of(cell, "layer.bias", layer.bias, self.biases)
        _one_of(cell, "dtype", layer.dtype, self.dtypes)
        _one_of(cell, "mode", work.mode, self.modes)
        _one_of(cell, "tokens", work.tokens, self.tokens)
        _one_of(cell, "device", place.device, self.devices)
        _one_of(cell, "backend", place.backend, self.backends)
        if place.staged:  # its messages are its own, and do not go through the host
            _one_of(cell, "device", place.device, ("cpu",))
        _one_of(cell, "model.shared_experts", layer.shared_experts, (0,))
        _one_of(cell, "router.kind", layer.router.kind, ("token_choice",))
        _one_of(cell, "router.capacity_factor", layer.router.capacity_factor, (0.0,))
        if self.square:
            _one_of(cell, "layer.dim_out", layer.dim_out, (layer.dim,))
        self.check(cell)

    def refuse_graph(self, cell: Cell) -> None:
        """Raises Unsupported for a CUDA graph of a layer that may wait for the GPU."""
        dtype = cell.layer.dtype
        if cell.strategy.graph == "off" or dtype in self.graph_dtypes:
            return
        where, remedy = f"strategy={cell.strategy.name}", "set measure.graph=off"
        if self.graph_dtypes:
            where, allowed = f"{where} and dtype={dtype}", "|".join(self.graph_dtypes)
            remedy = f"{remedy} or dtype={allowed}"
        raise Unsupported("measure.graph", "on", f"off with {where}, whose host may wait for the "
                          "GPU in a step", remedy)  # fmt: skip

    def missing(self) -> list[str]:
        """Required modules that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]


def _one_of(cell: Cell, name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        shown = "|".join(str(one) or '""' for one in allowed)
        raise Unsupported(name, value, f"{shown} for strategy={cell.strategy.name}",
                          f"set {name} to it or leave this strategy out")  # fmt: skip


COPY_LIMIT = 1 << 30  # bytes


def _transformers(cell: Cell) -> None:
    """grouped_mm is F.grouped_mm; batched_mm copies an expert's weights for every slot, which
    limits the batch."""
    layer, work = cell.layer, cell.workload
    if cell.strategy.variant in ("", "grouped_mm"):
        _grouped(cell)
    if cell.strategy.variant != "batched_mm":
        return
    each = 3 * layer.dim * layer.hidden * spec.DTYPE_BYTES[layer.dtype]
    most = max(1, COPY_LIMIT // (each * layer.topk))
    if work.batch_size > most:
        raise Unsupported("batch_size", work.batch_size, f"at most {most} for variant=batched_mm, "
                          "which copies an expert's weights for every slot",
                          "lower batch_size or use variant=grouped_mm")  # fmt: skip


def _reference(cell: Cell) -> None:
    """ep needs as many experts as ranks; tp replicated tokens and an even split of outputs."""
    if cell.strategy.variant == "ep" and cell.layer.num_experts != cell.placement.world_size:
        raise Unsupported("num_experts", cell.layer.num_experts,
                          f"world_size={cell.placement.world_size} for variant=ep",
                          "set num_experts to world_size")  # fmt: skip
    if cell.strategy.variant == "tp" and cell.workload.tokens == "sharded":
        raise Unsupported("tokens", "sharded", "replicated for variant=tp",
                          "set tokens=replicated")  # fmt: skip
    if cell.layer.dim_out % cell.placement.world_size and cell.strategy.variant == "tp":
        raise Unsupported("layer.dim_out", cell.layer.dim_out,
                          f"multiples of world_size={cell.placement.world_size} for variant=tp",
                          "change dim_out or world_size")  # fmt: skip


def _deepspeed(cell: Cell) -> None:
    """legacy: gates must sum to one, as its gating computes them from the chosen experts' logits;
    with top-1 each rank caps the capacity by its own tokens, so ranks need equally many. autoep:
    its Mixtral layer's limits."""
    layer, batch, size = cell.layer, cell.workload.batch_size, cell.placement.world_size
    rule, variant = layer.router, cell.strategy.variant or "legacy"
    if variant == "autoep":
        _one_of(cell, "layer.activation", layer.activation, ("silu_gated",))
        return
    if layer.topk == 1 and batch % size:
        raise Unsupported("batch_size", batch, f"multiples of world_size={size} for topk=1 with "
                          "strategy.variant=legacy, whose ranks would disagree on the capacity",
                          "change batch_size or use strategy.variant=autoep")  # fmt: skip
    plain = spec.RouterSpec()
    for name in ("score", "scale", "aux_loss"):
        _one_of(cell, f"router.{name}", getattr(rule, name), (getattr(plain, name),))
    if not rule.normalize and rule.order == "before":
        _one_of(cell, "router.normalize", False, (True,))


def _grouped(cell: Cell) -> None:
    """What F.grouped_mm takes: sizes whose rows are multiples of 16 bytes; on a GPU, so many
    experts."""
    layer = cell.layer
    least = GROUPED_BYTES // spec.DTYPE_BYTES[layer.dtype]
    _multiples(cell, least, f"rows of {GROUPED_BYTES} bytes for F.grouped_mm")
    if cell.placement.device == "cuda" and layer.num_experts > GROUPED_MOST:
        raise Unsupported("num_experts", layer.num_experts,
                          f"at most {GROUPED_MOST} for F.grouped_mm on a GPU",
                          "lower num_experts or leave this strategy out")  # fmt: skip


def _moe_ops(cell: Cell) -> None:
    """Its count of slots is a Triton histogram, its products on Hopper read by tensor descriptors,
    and offsets into tokens are 32-bit integers."""
    layer, work = cell.layer, cell.workload
    number = layer.num_experts
    if number & (number - 1) or number > MOE_OPS_MOST:
        raise Unsupported("num_experts", number, f"powers of two up to {MOE_OPS_MOST} for "
                          "strategy=peer_moe_ops, which counts slots with tl.histogram",
                          "change num_experts or leave this strategy out")  # fmt: skip
    _multiples(cell, 8, "rows of 16 bytes for a tensor descriptor of Triton")
    if work.batch_size * layer.dim >= 1 << 31:
        raise Unsupported("batch_size", work.batch_size, f"less than 2^31 / layer.dim={layer.dim} "
                          "for strategy=peer_moe_ops, whose kernels have 32-bit offsets",
                          "lower batch_size or leave this strategy out")  # fmt: skip


def _multiples(cell: Cell, least: int, why: str) -> None:
    for name in ("dim", "hidden"):
        size = getattr(cell.layer, name)
        if size % least:
            raise Unsupported(f"layer.{name}", size, f"multiples of {least} in "
                              f"dtype={cell.layer.dtype} for strategy={cell.strategy.name}: {why}",
                              f"change layer.{name} or leave this strategy out")  # fmt: skip


MOE_OPS_MOST = 2048  # experts: slots that one program of its histogram counts
HALF = ("bfloat16", "float16")
SIMPLE = StrategySpec("simple")
ALLTOALL = StrategySpec("ep", "alltoall")
MAKE = "`make peers` sets up an environment that has it"

LIMITS = {
    "transformers": Limits(
        system="transformers' Mixtral block",
        needs=("transformers",),
        like=dict.fromkeys(("grouped_mm", "eager", "batched_mm"), SIMPLE),
        check=_transformers,
    ),
    "grouped": Limits(
        system="PyTorch",
        needs=("torch",),
        like={"grouped_mm": SIMPLE},
        graph_dtypes=(GROUPED_DTYPE,),
        check=_grouped,
    ),
    "liger": Limits(
        system="Liger Kernel",
        needs=("liger_kernel", "triton"),
        like={"fused_moe": SIMPLE},
        install=GPU_EXTRA,
        dtypes=HALF,  # in float32 its products are TF32, which the check does not take
        devices=("cuda",),
    ),
    "moe_ops": Limits(
        system="moe-ops",
        needs=("moe_ops", "triton"),
        like={"grouped_gemm": SIMPLE},
        install=GPU_EXTRA,
        dtypes=HALF,  # as its README says
        devices=("cuda",),
        graph_dtypes=HALF,
        check=_moe_ops,
    ),
    "reference": Limits(
        system="the reference's style of code",
        needs=("numpy",),
        like={"simple": SIMPLE, "tp": StrategySpec("tp"), "ep": ALLTOALL},
        activations=spec.ACTIVATIONS[:2],
        biases=spec.BIASES,
        dtypes=("float32",),
        modes=("forward",),
        backends=("gloo", "mpi"),
        devices=("cpu",),
        square=False,
        check=_reference,
    ),
    "torchtitan": Limits(
        system="torchtitan",
        needs=("torchtitan", "triton"),
        like={"alltoall": ALLTOALL},
        install=MAKE,
        dtypes=("bfloat16",),
        backends=("gloo", "nccl"),
    ),
    "deepspeed": Limits(
        system="DeepSpeed",
        needs=("deepspeed",),
        like={"legacy": ALLTOALL, "autoep": ALLTOALL},
        install=MAKE,
        activations=spec.ACTIVATIONS,
        backends=("gloo", "nccl"),
        check=_deepspeed,
    ),
}
