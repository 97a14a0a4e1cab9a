"""What a strategy is, in one class: its rules. Torch-free.

Planning, the cost model and the layer all ask the same rules, so a strategy says everything once.
The defaults are those of a layer whose ranks each route their own shard of the batch and whose
experts are each on one rank; they also stand for layers from elsewhere (peers).

Shape letters: B global batch, D in, H hidden, O out, E experts, R ranks, P places on a rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

from moe import spec
from moe.parallel.algorithms import Limits
from moe.parallel.refusals import one_of, whole
from moe.parallel.traffic import (
    ROUTER_BYTES,
    Call,
    Groups,
    GroupShape,
    Load,
    RankTraffic,
    block_rows,
    world,
)
from moe.spec import DTYPE_BYTES, Cell, LayerSpec, Unsupported

SENDING = ("alltoall", "dedup")  # dispatchers that send rows to their experts


class Degrees(NamedTuple):
    """Ranks that split the experts (ep), an expert's hidden units (tp), and hold replicas (dp)."""

    ep: int
    tp: int
    dp: int


def small_divisor(size: int) -> int:
    """The largest divisor that is at most the square root."""
    return max(n for n in range(1, int(size**0.5) + 1) if size % n == 0)


def first_width(layer: LayerSpec, hidden: int) -> int:
    """F: columns of the first product."""
    return 2 * hidden if layer.activation == "silu_gated" else hidden


class StrategyRules:
    """The rules of one strategy; subclasses say where they differ."""

    dispatchers: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # to choose from, by workload.tokens
    splits: ClassVar[tuple[str, ...]] = ()  # which of strategy.ep and strategy.tp may be set
    sends = True  # whether a forward pass can send anything
    replicas = False  # whether experts may have copies (strategy.hot_replicas)
    single_rank = False  # whether rank 0 does everything and the other ranks hold nothing

    # Which rank does what.

    def degrees(self, cell: Cell) -> Degrees:
        """What strategy.ep and strategy.tp of 0 stand for; the product is R for a valid cell."""
        return Degrees(1, 1, cell.placement.world_size)

    def groups(self, cell: Cell) -> Groups:
        """Ranks of tp are neighbours, ranks of ep are tp apart, ranks of dp are ep * tp apart."""
        ep, tp, dp = self.degrees(cell)
        return Groups(
            GroupShape("tp", tp, 1), GroupShape("ep", ep, tp), GroupShape("dp", dp, ep * tp)
        )

    def routing(self, cell: Cell) -> tuple[GroupShape, int] | None:
        """The ranks that together route every token once, and of how many neighbouring ranks each
        of them routes the shards. None where a rank routes the whole batch."""
        return world(cell), 1

    def routed_rows(self, cell: Cell, rank: int) -> tuple[int, int]:
        """Half-open range of global token ids whose experts this rank chooses."""
        if self.single_rank and rank:
            return 0, 0
        split = self.routing(cell)
        return (0, cell.workload.batch_size) if split is None else block_rows(cell, rank, split[1])

    def shared_rows(self, cell: Cell, rank: int) -> tuple[int, int]:
        """Half-open range of the tokens this rank gives to its part of the shared experts."""
        if self.dispatchers:
            return block_rows(cell, rank, self.degrees(cell).tp)
        return self.routed_rows(cell, rank)

    def dispatches(self, cell: Cell) -> bool:
        """Whether rows travel to their experts."""
        return bool(self.dispatchers) and cell.strategy.dispatcher in SENDING

    def usual_dispatcher(self, tokens: str, overlap: int) -> str:
        """What `strategy.dispatcher=auto` stands for. Where every rank has the whole batch, `local`
        sends least often: one all-reduce. It has no all-to-all that `overlap` could cut."""
        whole_batch = tokens == "replicated" and overlap == 1
        return "local" if whole_batch or not self.dispatchers else "alltoall"

    # What a rank holds.

    def places(self, cell: Cell) -> int:
        """Experts, replicas included, whose weights a rank works with."""
        return (cell.layer.num_experts + cell.strategy.hot_replicas) // self.degrees(cell).ep

    def parameter_elements(self, cell: Cell, rank: int = 0) -> dict[str, int]:
        """Elements of every weight a rank works with: fc1, fc2, b1, b2, the same of shared experts
        with the prefix shared_, and router. Of an expert cut in parts, part 0 has the second
        bias."""
        layer, parts = cell.layer, self.degrees(cell).tp
        router = {"router": layer.num_experts * layer.dim}
        if self.single_rank and rank:
            return router
        hidden = layer.hidden // parts
        each = {"fc1": first_width(layer, hidden) * layer.dim, "fc2": hidden * layer.dim_out}
        if layer.bias != "none":
            each["b1"] = first_width(layer, hidden)
            if rank % parts == 0:
                each["b2"] = layer.dim_out
        sizes = {name: self.places(cell) * size for name, size in each.items()}
        if layer.shared_experts:
            sizes |= {f"shared_{name}": layer.shared_experts * size for name, size in each.items()}
        return sizes | router

    def parameter_bytes(self, cell: Cell, rank: int = 0) -> dict[str, int]:
        """Bytes of the same weights."""
        size = DTYPE_BYTES[cell.layer.dtype]
        return {
            name: count * (ROUTER_BYTES if name == "router" else size)
            for name, count in self.parameter_elements(cell, rank).items()
        }

    def kept_bytes(self, cell: Cell, rank: int = 0) -> int:
        """Of the weights a rank keeps between steps."""
        return sum(self.parameter_bytes(cell, rank).values())

    def gathered_bytes(self, cell: Cell) -> int:
        """Of weights that a forward pass gathers from all ranks; a backward pass does so again."""
        return 0

    # What a step sends.

    def forward(self, r: RankTraffic) -> Iterator[Call]:
        """Asked only of strategies that send something."""
        if self.routing(r.cell) is None:
            yield from r.whole_batch()
            return
        if self.dispatches(r.cell):
            yield from r.dispatch()
        if not r.sharded:
            yield r.gather_batch()

    def backward(self, r: RankTraffic) -> Iterator[Call]:
        """The same; without the gradients of weights, which `summed` names."""
        if self.routing(r.cell) is None:
            yield from r.whole_batch(backward=True)
            return
        if self.dispatches(r.cell):
            yield from r.dispatch_backward()
        if not r.sharded:
            yield r.spread_backward()

    def summed(self, cell: Cell) -> list[tuple[str, GroupShape]]:
        """Weights of which a rank's gradient is only a part after `backward`, as router, experts or
        shared, with the ranks that have the other parts. Copies of hot experts are added up
        besides."""
        return [("router", world(cell)), ("shared", world(cell))]

    def collectives(
        self, cell: Cell, load: Load, rank: int, exchanged: Limits | None = None
    ) -> list[Call]:
        """All of one step of one rank in order; groups of one rank move nothing and are left
        out."""
        sizes = self.parameter_bytes(cell, rank)
        r = RankTraffic(cell, load, rank, self.groups(cell), self.places(cell), sizes, exchanged)
        split = self.routing(cell)
        calls = [*(r.scope(*split) if split else ()), *(self.forward(r) if self.sends else ())]
        if cell.workload.mode == "train":
            calls += self.backward(r) if self.sends else ()
            for part, group in self.summed(cell):
                calls += r.add_up_gradients(part, group)
            calls += r.add_up_copies()
        return [call for call in calls if call.group.size > 1]

    # What is refused. Every method raises Unsupported, naming field, value, what is allowed and
    # what to do.

    def refuse(self, cell: Cell) -> None:
        """Expects a layer, a router and a workload that are valid for themselves."""
        self.refuse_degrees(cell)
        self.refuse_dispatch(cell)
        self.refuse_placement(cell)
        self.refuse_kernel(cell)

    def refuse_degrees(self, cell: Cell) -> None:
        layer, strategy, size = cell.layer, cell.strategy, cell.placement.world_size
        for name in ("ep", "tp"):
            degree = getattr(strategy, name)
            if name not in self.splits:
                one_of(f"strategy.{name} for strategy={strategy.name}", degree, (0,))
            whole(f"strategy.{name}", degree, 0)
        ep, tp, dp = self.degrees(cell)
        if ep * tp * dp != size:
            raise Unsupported("strategy.ep, strategy.tp", (ep, tp),
                              f"a product of world_size={size}",
                              "set degrees that multiply to world_size")  # fmt: skip
        if layer.num_experts % ep:
            raise Unsupported("num_experts", layer.num_experts,
                              f"multiples of {ep} for this strategy",
                              "change num_experts, world_size or strategy.ep")  # fmt: skip
        if layer.hidden % tp:
            raise Unsupported("layer.hidden", layer.hidden, f"multiples of {tp} for this strategy",
                              "change the hidden size, world_size or strategy.tp")  # fmt: skip

    def refuse_dispatch(self, cell: Cell) -> None:
        """Which way tokens go, in how many chunks, in which dtype."""
        strategy, tokens = cell.strategy, cell.workload.tokens
        if self.dispatchers:
            one_of(f"strategy.dispatcher with tokens={tokens}", strategy.dispatcher,
                   self.dispatchers[tokens])  # fmt: skip
        else:
            one_of(f"strategy.dispatcher for strategy={strategy.name}", strategy.dispatcher,
                   ("local",))  # fmt: skip
        whole("strategy.overlap", strategy.overlap, 1)
        if strategy.overlap > 1 and not (self.dispatchers and strategy.dispatcher == "alltoall"):
            raise Unsupported("strategy.overlap", strategy.overlap,
                              "1 without strategy.dispatcher=alltoall",
                              "set strategy.overlap=1 or strategy.dispatcher=alltoall")  # fmt: skip
        one_of("strategy.comm_dtype", strategy.comm_dtype, ("", *spec.DTYPES))
        if not self.sends:
            one_of(f"strategy.comm_dtype for strategy={strategy.name}, which sends nothing",
                   strategy.comm_dtype, ("",))  # fmt: skip

    def refuse_placement(self, cell: Cell) -> None:
        """Where experts are, and copies of hot ones."""
        strategy, experts, ep = cell.strategy, cell.layer.num_experts, self.degrees(cell).ep
        most = experts * (ep - 1)
        orders = ("contiguous", "round_robin", "explicit") if self.dispatchers else ("contiguous",)
        one_of(f"strategy.placement for strategy={strategy.name}", strategy.placement, orders)
        order = sorted(strategy.expert_order)
        if strategy.placement == "explicit" and order != list(range(experts)):
            raise Unsupported("strategy.placement", f"{len(strategy.expert_order)} expert ids",
                              f"{experts}, every expert once", "mend the file")  # fmt: skip
        copies = strategy.hot_replicas
        whole("strategy.hot_replicas", copies, 0)
        if copies and not self.replicas:
            raise Unsupported("strategy.hot_replicas", copies, f"0 for strategy={strategy.name}",
                              "set strategy.hot_replicas=0 or use strategy=ep")  # fmt: skip
        if copies % ep or copies > most:
            raise Unsupported("strategy.hot_replicas", copies,
                              f"multiples of {ep} up to {most}, as many on every rank",
                              "change strategy.hot_replicas or world_size")  # fmt: skip

    def refuse_kernel(self, cell: Cell) -> None:
        """F.grouped_mm wants rows of multiples of 16 bytes."""
        layer = cell.layer
        widths = (layer.dim, layer.hidden // self.degrees(cell).tp, layer.dim_out)
        odd = [width for width in widths if width * DTYPE_BYTES[layer.dtype] % 16]
        if cell.strategy.kernel == "grouped" and odd:
            raise Unsupported("strategy.kernel", "grouped",
                              "grouped where D, O and the hidden units "
                              f"of a rank are multiples of 16 bytes, which {odd[0]} is not",
                              "set strategy.kernel=auto or other sizes")  # fmt: skip
