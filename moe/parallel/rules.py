"""The rules of a strategy. Torch-free.

Planning, the cost model, the layer and the correctness check all read the same rules, so everything
about a strategy is defined once. The defaults describe a layer whose ranks each route their own
shard of the batch and whose experts are each on one rank. Peers, which have no rules, get the
defaults.

Shape letters: B global batch, D in, H hidden, O out, E experts, R ranks, P places on a rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

from moe.parallel import symm_mem_limits
from moe.parallel.algorithms import Limits
from moe.parallel.refusals import one_of
from moe.parallel.symm_mem_limits import SYMM_MEM, Room
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

SENDING = ("alltoall", "dedup", "symm_mem")  # dispatchers that send rows to their experts


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
    """The rules of one strategy. Subclasses override what differs from the defaults."""

    dispatchers: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # choices by workload.tokens
    splits: ClassVar[tuple[str, ...]] = ()  # of ep and tp, the degrees that may be set
    sends = True  # whether a step sends anything but gradients of weights
    replicas = False  # whether strategy.hot_replicas is allowed
    single_rank = False  # whether rank 0 computes everything, the others nothing

    # Which rank does what.

    def degrees(self, cell: Cell) -> Degrees:
        """Resolves strategy.ep and strategy.tp of 0 to the strategy's default. For a valid cell the
        product is R."""
        return Degrees(1, 1, cell.placement.world_size)

    def groups(self, cell: Cell) -> Groups:
        """Shapes of the groups: tp ranks are neighbours, ep ranks are tp apart, dp ranks ep * tp
        apart."""
        ep, tp, dp = self.degrees(cell)
        return Groups(
            GroupShape("tp", tp, 1), GroupShape("ep", ep, tp), GroupShape("dp", dp, ep * tp)
        )

    def routing(self, cell: Cell) -> tuple[GroupShape, int] | None:
        """Returns (group, neighbours): the ranks of `group` together route every token once, each
        of them the shards of `neighbours` neighbouring ranks. None if a rank routes the whole
        batch."""
        return world(cell), 1

    def routed_rows(self, cell: Cell, rank: int) -> tuple[int, int]:
        """Half-open range of global token ids that this rank routes."""
        if self.single_rank and rank:
            return 0, 0
        split = self.routing(cell)
        return (0, cell.workload.batch_size) if split is None else block_rows(cell, rank, split[1])

    def shared_rows(self, cell: Cell, rank: int) -> tuple[int, int]:
        """Half-open range of global token ids that this rank gives to its part of the shared
        experts."""
        if self.dispatchers:
            return block_rows(cell, rank, self.degrees(cell).tp)
        return self.routed_rows(cell, rank)

    def dispatches(self, cell: Cell) -> bool:
        """Whether slots travel to the ranks of their experts."""
        return bool(self.dispatchers) and cell.strategy.dispatcher in SENDING

    def usual_dispatcher(self, tokens: str, overlap: int) -> str:
        """Resolves `strategy.dispatcher=auto`. With replicated tokens `local` sends least often,
        one all-reduce, but has no all-to-all that `overlap` could split."""
        whole_batch = tokens == "replicated" and overlap == 1
        return "local" if whole_batch or not self.dispatchers else "alltoall"

    # What a rank holds.

    def places(self, cell: Cell) -> int:
        """P: experts, copies included, whose weights a rank works with."""
        return (cell.layer.num_experts + cell.strategy.hot_replicas) // self.degrees(cell).ep

    def parameter_elements(self, cell: Cell, rank: int = 0) -> dict[str, int]:
        """Elements of every weight a rank works with, by name: fc1, fc2, b1, b2, the same of shared
        experts with the prefix shared_, and router. Of an expert split over ranks, the first part
        has b2."""
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
        """Bytes of the weights in `parameter_elements`."""
        size = DTYPE_BYTES[cell.layer.dtype]
        return {
            name: count * (ROUTER_BYTES if name == "router" else size)
            for name, count in self.parameter_elements(cell, rank).items()
        }

    def kept_bytes(self, cell: Cell, rank: int = 0) -> int:
        """Bytes of weights a rank keeps between steps."""
        return sum(self.parameter_bytes(cell, rank).values())

    def gathered_bytes(self, cell: Cell) -> int:
        """Bytes of weights that a forward pass gathers from all ranks, and a backward pass
        again."""
        return 0

    def room(self, cell: Cell) -> Room:
        """Symmetric memory of strategy.dispatcher=symm_mem, the same on every rank."""
        layer, size = cell.layer, cell.placement.world_size
        tokens = max(len(range(*self.routed_rows(cell, rank))) for rank in range(size))
        slots = layer.num_experts if layer.router.kind == "expert_choice" else layer.topk
        row_bytes = max(layer.dim, layer.dim_out) * DTYPE_BYTES[layer.dtype]
        ep, places = self.degrees(cell).ep, self.places(cell)
        return symm_mem_limits.room(ep, tokens, slots, places, row_bytes)

    # What a step sends.

    def forward(self, r: RankTraffic) -> Iterator[Call]:
        """Collectives of a forward pass. Not called if `sends` is false."""
        if self.routing(r.cell) is None:
            yield from r.whole_batch()
            return
        if self.dispatches(r.cell):
            yield from r.dispatch()
        if not r.sharded:
            yield r.gather_batch()

    def backward(self, r: RankTraffic) -> Iterator[Call]:
        """Collectives of a backward pass, without those of weights' gradients (`summed`)."""
        if self.routing(r.cell) is None:
            yield from r.whole_batch(backward=True)
            return
        if self.dispatches(r.cell):
            yield from r.dispatch_backward()
        if not r.sharded:
            yield r.spread_backward()

    def summed(self, cell: Cell) -> list[tuple[str, GroupShape]]:
        """[(part, group)]: weights (router, experts or shared) whose gradient is partial on a rank
        after the backward pass, and the group to sum it over. Gradients of hot experts' copies are
        summed besides."""
        return [("router", world(cell)), ("shared", world(cell))]

    def collectives(
        self, cell: Cell, load: Load, rank: int, exchanged: Limits | None = None
    ) -> list[Call]:
        """All collectives of one rank's step, in order, without those of one-rank groups, which
        move nothing."""
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

    # Refusals: each method raises Unsupported with field, value, what is allowed and what to do.

    def refuse(self, cell: Cell) -> None:
        """Raises Unsupported if the strategy cannot run the cell; the cell has passed
        `moe.strategies.checks`."""
        self.refuse_degrees(cell)
        self.refuse_dispatch(cell)
        self.refuse_placement(cell)
        self.refuse_kernel(cell)

    def refuse_degrees(self, cell: Cell) -> None:
        """Degrees must multiply to the ranks and divide experts and hidden units."""
        layer, strategy, size = cell.layer, cell.strategy, cell.placement.world_size
        for name in ("ep", "tp"):
            if name not in self.splits:
                degree = getattr(strategy, name)
                one_of(f"strategy.{name} for strategy={strategy.name}", degree, (0,))
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
        """Dispatcher, chunks and dtype of messages."""
        strategy, tokens = cell.strategy, cell.workload.tokens
        if self.dispatchers:
            one_of(f"strategy.dispatcher with tokens={tokens}", strategy.dispatcher,
                   self.dispatchers[tokens])  # fmt: skip
        else:
            one_of(f"strategy.dispatcher for strategy={strategy.name}", strategy.dispatcher,
                   ("local",))  # fmt: skip
        if strategy.overlap > 1 and not (self.dispatchers and strategy.dispatcher == "alltoall"):
            raise Unsupported("strategy.overlap", strategy.overlap,
                              "1 without strategy.dispatcher=alltoall",
                              "set strategy.overlap=1 or strategy.dispatcher=alltoall")  # fmt: skip
        if strategy.dispatcher == SYMM_MEM:
            symm_mem_limits.refuse(cell, self.degrees(cell), self.places(cell))
        if not self.sends:
            one_of(f"strategy.comm_dtype for strategy={strategy.name}, which sends nothing",
                   strategy.comm_dtype, ("",))  # fmt: skip

    def refuse_placement(self, cell: Cell) -> None:
        """Order of experts over ranks, and copies of hot experts."""
        strategy, experts, ep = cell.strategy, cell.layer.num_experts, self.degrees(cell).ep
        most = experts * (ep - 1)
        orders = ("contiguous", "round_robin", "explicit") if self.dispatchers else ("contiguous",)
        one_of(f"strategy.placement for strategy={strategy.name}", strategy.placement, orders)
        order = sorted(strategy.expert_order)
        if strategy.placement == "explicit" and order != list(range(experts)):
            raise Unsupported("strategy.placement", f"{len(strategy.expert_order)} expert ids",
                              f"{experts}, every expert once", "mend the file")  # fmt: skip
        copies = strategy.hot_replicas
        if copies and not self.replicas:
            raise Unsupported("strategy.hot_replicas", copies, f"0 for strategy={strategy.name}",
                              "set strategy.hot_replicas=0 or use strategy=ep")  # fmt: skip
        if copies % ep or copies > most:
            raise Unsupported("strategy.hot_replicas", copies,
                              f"multiples of {ep} up to {most}, as many on every rank",
                              "change strategy.hot_replicas or world_size")  # fmt: skip

    def refuse_kernel(self, cell: Cell) -> None:
        """F.grouped_mm requires rows of multiples of 16 bytes."""
        layer = cell.layer
        widths = (layer.dim, layer.hidden // self.degrees(cell).tp, layer.dim_out)
        odd = [width for width in widths if width * DTYPE_BYTES[layer.dtype] % 16]
        if cell.strategy.kernel == "grouped" and odd:
            raise Unsupported("strategy.kernel", "grouped",
                              "grouped where D, O and the hidden units "
                              f"of a rank are multiples of 16 bytes, which {odd[0]} is not",
                              "set strategy.kernel=auto or other sizes")  # fmt: skip
