"""What the collectives of a step send: groups, calls, and the bytes of each. Torch-free.

What stays on a rank is not counted. With n ranks in the group, x bytes on each of them:

    all_reduce       2 (n-1)/n x   sent and received      ring: reduce-scatter, then all-gather
                     (n-1) x       sent and received      an exchange: small messages on gloo
    all_gather       (n-1) x                              x padded to the longest member's
    reduce_scatter   x - own part sent, (n-1) own received
    all_to_all       rows to others sent, rows from others received

(bus-bandwidth factors of nccl-tests, doc/PERFORMANCE.md; which messages are exchanged:
moe.parallel.algorithms.)

router.scope=global adds all-gathers over the ranks that together route every token once; where
every rank routes the whole batch it adds none. Of the T tokens of each rank:

    capacity                int64 [T, K] experts; with drop=probability also float32 [T, K] gates
    expert choice           float32 [T, E] scores
    balancing loss, train   int64 [T, K] experts, once more

Gradients of an expert with copies are summed over all ranks of ep, one all-reduce for each of its
matrices and biases; ranks without a copy contribute zeros.

Shape letters: B global batch, T tokens routed here, D in, O out, E experts, K top-k, P places on
this rank, C chunks of overlap, n ranks of a group; s and w bytes per element kept and on the wire.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from moe.parallel.algorithms import EXCHANGE, Limits, algorithm
from moe.parallel.symm_mem_limits import SYMM_MEM
from moe.spec import DTYPE_BYTES, Cell, shard_bounds

COUNT_BYTES = 8  # slot counts travel as int64
GATE_BYTES = 4  # float32
SPLIT_BYTES = 16  # of rows for one place: their number and offset, int64 each
INDEX_BYTES = 8  # int64
ROUTER_BYTES = 4  # its weights and logits are float32 whatever the dtype
EXPERTS = ("fc1", "fc2", "b1", "b2")
PARTS = {
    "router": ("router",),
    "experts": EXPERTS,
    "shared": tuple(f"shared_{name}" for name in EXPERTS),
}  # names of `StrategyRules.parameter_elements`, by the part of the layer they belong to


@dataclass(frozen=True)
class Load:
    """Rows on one rank in one step. A row is what a dispatcher moves: a slot, or for `dedup` a
    distinct (token, member) pair. `sent` and `received` exclude what stays on the rank."""

    slots: float  # rows of expert arithmetic on this rank
    rows: float = 0.0  # rows that reach this rank's experts, its own included
    sent: float = 0.0  # rows to other members of the ep group
    received: float = 0.0  # rows from other members
    touched: float = 0.0  # experts here that have at least one slot
    copied: int = 0  # experts of which several ranks hold a copy (strategy.hot_replicas)


@dataclass(frozen=True)
class GroupShape:
    """`size` ranks, `stride` apart."""

    name: str
    size: int
    stride: int

    def ranks_with(self, rank: int) -> tuple[int, ...]:
        """The ranks of the group of this shape that contains `rank`."""
        first = rank - rank // self.stride % self.size * self.stride
        return tuple(range(first, first + self.size * self.stride, self.stride))


class Groups(NamedTuple):
    """Groups of one rank: parts of an expert (tp), the experts (ep), replicas of all experts
    (dp)."""

    tp: GroupShape
    ep: GroupShape
    dp: GroupShape


def world(cell: Cell) -> GroupShape:
    return GroupShape("world", cell.placement.world_size, 1)


@dataclass(frozen=True)
class Call:
    """Collectives of the same kind and purpose in one step of one rank; bytes of all of them
    together."""

    collective: str
    group: GroupShape
    purpose: str  # scope | counts | dispatch | combine | backward | gradients
    sent_bytes: float
    received_bytes: float
    calls: int = 1
    algorithm: str = ""  # where there are two: see moe.parallel.algorithms

    @property
    def messages(self) -> int:
        """Messages this rank sends: one to every other member, two in a ring all-reduce."""
        each = self.group.size - 1
        twice = self.collective == "all_reduce" and self.algorithm != EXCHANGE
        return self.calls * (2 * each if twice else each)


def block_rows(cell: Cell, rank: int, neighbours: int) -> tuple[int, int]:
    """Half-open range of global token ids: the shards of the block of `neighbours` ranks that
    contains `rank`."""
    first = rank - rank % neighbours
    batch, size = cell.workload.batch_size, cell.placement.world_size
    last = shard_bounds(batch, size, first + neighbours - 1)
    return shard_bounds(batch, size, first)[0], last[1]


def group_rows(cell: Cell, rank: int, neighbours: int) -> int:
    """The number of tokens in `block_rows`."""
    return len(range(*block_rows(cell, rank, neighbours)))


class RankTraffic:
    """The collectives of one rank's step in bytes, in the building blocks that strategies use.

    `places` is the number of experts on the rank, copies included; `parameter_bytes` are its
    weights by name; `exchanged` are the calibrated limits of moe.parallel.algorithms.
    """

    def __init__(
        self, cell: Cell, load: Load, rank: int, groups: Groups, places: int,
        parameter_bytes: Mapping[str, int], exchanged: Limits | None = None,
    ) -> None:  # fmt: skip
        self.cell, self.load, self.rank, self.exchanged = cell, load, rank, exchanged
        self.places, self.parameter_bytes, self.layer = places, parameter_bytes, cell.layer
        self.size = cell.placement.world_size
        self.batch = cell.workload.batch_size
        self.sharded = cell.workload.tokens == "sharded"
        self.s = DTYPE_BYTES[cell.layer.dtype]
        self.w = DTYPE_BYTES[cell.strategy.comm_dtype or cell.layer.dtype]
        self.world = world(cell)
        self.tp, self.ep, self.dp = groups

    def longest(self, neighbours: int = 1) -> int:
        """Tokens of the largest block of `neighbours` neighbouring shards."""
        return group_rows(self.cell, 0, neighbours)  # earlier ranks own the remainder

    # Collectives.

    def algorithm(self, collective: str, group: GroupShape, size: float) -> str:
        calibrated = self.exchanged if group.size == self.size else None
        backend = self.cell.placement.backend
        return algorithm(collective, size, group.size, backend=backend, calibrated=calibrated)

    def all_reduce(self, group: GroupShape, size: float, purpose: str, calls: int = 1) -> Call:
        """`calls` all-reduces of `size` bytes in total."""
        by = self.algorithm("all_reduce", group, size / calls)
        share = 1 if by == EXCHANGE else 2 / group.size
        moved = share * (group.size - 1) * size
        return Call("all_reduce", group, purpose, moved, moved, calls, by)

    def all_gather(self, group: GroupShape, longest: float, purpose: str) -> Call:
        """`longest` is the longest member's bytes."""
        by = self.algorithm("all_gather", group, longest)
        moved = (group.size - 1) * longest
        return Call("all_gather", group, purpose, moved, moved, algorithm=by)

    def reduce_scatter(self, group: GroupShape, whole: float, own: float, purpose: str) -> Call:
        """`whole` bytes in, of which `own` are this rank's part."""
        return Call("reduce_scatter", group, purpose, whole - own, (group.size - 1) * own)

    def exchange(self, row_bytes: float, purpose: str, back: bool = False) -> Call:
        """All-to-all of rows to the experts; `back` is the direction from them."""
        sent, received = self.load.sent * row_bytes, self.load.received * row_bytes
        if back:
            sent, received = received, sent
        chunks = self.cell.strategy.overlap
        return Call("all_to_all", self.ep, purpose, sent, received, chunks)

    # Steps of strategies.

    def dispatch(self) -> Iterator[Call]:
        """All-to-alls of counts (of rows by place; for dedup also of tokens), rows (for dedup also
        gates), and results."""
        if self.cell.strategy.dispatcher == SYMM_MEM:
            yield self.splits()
            yield self.exchange(self.layer.dim * self.w, "dispatch")
            yield self.exchange(self.layer.dim_out * self.w, "combine", back=True)
            return
        deduplicated = self.cell.strategy.dispatcher == "dedup"
        numbers = 1 + self.places if deduplicated else self.places * self.cell.strategy.overlap
        counts = (self.ep.size - 1) * numbers * COUNT_BYTES
        yield Call("all_to_all", self.ep, "counts", counts, counts)
        yield self.exchange(self.layer.dim * self.w, "dispatch")
        if deduplicated:
            yield self.exchange(self.places * GATE_BYTES, "dispatch")
        yield self.exchange(self.layer.dim_out * self.w, "combine", back=True)

    def splits(self) -> Call:
        """The numbers and offsets that go ahead of rows through symmetric memory, both ways."""
        ahead = 2 * (self.ep.size - 1) * self.places * SPLIT_BYTES
        return Call("all_to_all", self.ep, "counts", ahead, ahead, 2)

    def dispatch_backward(self) -> Iterator[Call]:
        """Backward repeats each exchange in reverse; count exchanges have no gradient, but splits
        go ahead of every exchange through symmetric memory."""
        if self.cell.strategy.dispatcher == SYMM_MEM:
            yield self.splits()
        yield self.exchange(self.layer.dim_out * self.w, "backward")
        if self.cell.strategy.dispatcher == "dedup":
            yield self.exchange(self.places * GATE_BYTES, "backward", back=True)
        yield self.exchange(self.layer.dim * self.w, "backward", back=True)

    def whole_batch(self, backward: bool = False) -> Iterator[Call]:
        """Every rank computes a partial sum for all tokens."""
        if self.sharded:
            yield from self.tokens_to_outputs(self.world, backward)
        elif backward:
            yield self.spread_backward()
        else:
            yield self.all_reduce(self.world, self.batch * self.layer.dim_out * self.w, "combine")

    def gather_batch(self) -> Call:
        """All-gather of every rank's outputs."""
        return self.all_gather(self.world, self.longest() * self.layer.dim_out * self.w, "combine")

    def spread_backward(self) -> Call:
        """All-reduce of the gradients of replicated tokens."""
        return self.all_reduce(self.world, self.batch * self.layer.dim * self.w, "backward")

    def tokens_to_outputs(self, group: GroupShape, backward: bool = False) -> Iterator[Call]:
        """Over a group of neighbours: all-gather of tokens in the layer's dtype, reduce-scatter of
        partial outputs. Backward: all-gather of the outputs' gradients, reduce-scatter of the
        tokens'."""
        first = self.rank - self.rank % group.size
        own, longest = (group_rows(self.cell, rank, 1) for rank in (self.rank, first))
        whole = group_rows(self.cell, self.rank, group.size)
        into, out = self.layer.dim * self.s, self.layer.dim_out * self.w
        there, back = (out, into) if backward else (into, out)
        yield self.all_gather(group, longest * there, "backward" if backward else "dispatch")
        purpose = "backward" if backward else "combine"
        yield self.reduce_scatter(group, whole * back, own * back, purpose)

    def slice_to_batch(self, group: GroupShape, across: GroupShape) -> Iterator[Call]:
        """All-reduce of a slice's outputs over a group of neighbours, all-gather of slices
        across."""
        out = self.layer.dim_out * self.w
        rows = group_rows(self.cell, self.rank, group.size)
        yield self.all_reduce(group, rows * out, "combine")
        yield self.all_gather(across, self.longest(group.size) * out, "combine")

    def add_up_gradients(self, part: str, group: GroupShape) -> Iterator[Call]:
        """One all-reduce for each parameter of `part`, a key of PARTS."""
        for name in PARTS[part]:
            if name in self.parameter_bytes:
                yield self.all_reduce(group, self.parameter_bytes[name], "gradients")

    def add_up_copies(self) -> Iterator[Call]:
        """One all-reduce for every parameter of every expert with copies."""
        copied = self.load.copied
        for name in EXPERTS:
            if copied and name in self.parameter_bytes:
                size = copied * self.parameter_bytes[name] / self.places
                yield self.all_reduce(self.ep, size, "gradients", copied)

    def scope(self, group: GroupShape, neighbours: int) -> Iterator[Call]:
        """All-gathers for router.scope=global, where each rank of `group` routes the shards of
        `neighbours` ranks."""
        rule, longest = self.layer.router, self.longest(neighbours)
        if rule.scope != "global":
            return
        slots = longest * self.layer.topk
        if rule.kind == "expert_choice":
            scores = longest * self.layer.num_experts * ROUTER_BYTES
            yield self.all_gather(group, scores, "scope")
            return
        if rule.aux_loss and self.cell.workload.mode == "train":
            yield self.all_gather(group, slots * INDEX_BYTES, "scope")
        if rule.capacity_factor:
            yield self.all_gather(group, slots * INDEX_BYTES, "scope")
            if rule.drop == "probability":
                yield self.all_gather(group, slots * GATE_BYTES, "scope")
