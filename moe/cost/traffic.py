"""Every collective of a step: what is sent, over which group, how often.

A transcript of the strategies, in bytes. What stays on a rank is not counted. With n ranks in the
group, x bytes on each of them:

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

Gradients of an expert that has copies are added up over all ranks of ep, one all-reduce for each
of its matrices and biases: ranks without a copy add nothing, but take part.

Shape letters: B global batch, T tokens routed here, D in, O out, E experts, K top-k, P places on
this rank, C chunks of overlap, n ranks of a group; s and w bytes per element kept and on the wire.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from moe.cost import work
from moe.cost.load import Load, dispatches, group_rows, routed_tokens
from moe.parallel.algorithms import EXCHANGE, Limits, algorithm
from moe.parallel.degrees import degrees
from moe.spec import DTYPE_BYTES, Cell, shard_bounds

COUNT_BYTES = 8  # slot counts travel as int64
GATE_BYTES = 4  # float32
INDEX_BYTES = 8  # int64


@dataclass(frozen=True)
class GroupShape:
    """`size` ranks, `stride` apart."""

    name: str
    size: int
    stride: int


@dataclass(frozen=True)
class Call:
    """Collectives of one kind with one purpose in one step of one rank."""

    collective: str
    group: GroupShape
    purpose: str  # scope | counts | dispatch | combine | backward | gradients
    sent_bytes: float
    received_bytes: float
    calls: int = 1
    algorithm: str = ""  # where there are two: see moe.parallel.algorithms

    @property
    def messages(self) -> int:
        """Messages this rank sends: one to every other member; a ring all-reduce goes round
        twice."""
        each = self.group.size - 1
        twice = self.collective == "all_reduce" and self.algorithm != EXCHANGE
        return self.calls * (2 * each if twice else each)


class _Rank:
    """One rank's view: groups, sizes, and calls in terms of them."""

    def __init__(self, cell: Cell, load: Load, rank: int, exchanged: Limits | None = None) -> None:
        self.cell, self.load, self.rank, self.exchanged = cell, load, rank, exchanged
        self.found, self.layer = degrees(cell), cell.layer
        self.size = cell.placement.world_size
        self.batch = cell.workload.batch_size
        self.sharded = cell.workload.tokens == "sharded"
        self.s = DTYPE_BYTES[cell.layer.dtype]
        self.w = DTYPE_BYTES[cell.strategy.comm_dtype or cell.layer.dtype]
        self.world = GroupShape("world", self.size, 1)
        self.tp, self.ep, self.dp = self._groups()

    def _groups(self) -> tuple[GroupShape, GroupShape, GroupShape]:
        """tp, ep, dp as the strategies split the ranks: neighbours first."""
        name, (ep, tp, dp) = self.cell.strategy.name, self.found
        if name == "ep_tp":
            return GroupShape("tp", tp, 1), GroupShape("ep", ep, tp), GroupShape("dp", 1, 1)
        if name == "dp_ep":
            return GroupShape("tp", 1, 1), GroupShape("ep", ep, 1), GroupShape("dp", dp, ep)
        return GroupShape("tp", 1, 1), self.world, GroupShape("dp", 1, 1)

    def shard(self, rank: int) -> int:
        low, high = shard_bounds(self.batch, self.size, rank)
        return high - low

    def longest(self, neighbours: int = 1) -> int:
        """Tokens of the largest of all sets of `neighbours` neighbouring shards."""
        return group_rows(self.cell, 0, neighbours)  # earlier ranks own the remainder

    # Collectives.

    def algorithm(self, collective: str, group: GroupShape, size: float) -> str:
        calibrated = self.exchanged if group.size == self.size else None
        backend = self.cell.placement.backend
        return algorithm(collective, size, group.size, backend=backend, calibrated=calibrated)

    def all_reduce(self, group: GroupShape, size: float, purpose: str, calls: int = 1) -> Call:
        """`calls` of them, of `size` bytes together."""
        by = self.algorithm("all_reduce", group, size / calls)
        share = 1 if by == EXCHANGE else 2 / group.size
        moved = share * (group.size - 1) * size
        return Call("all_reduce", group, purpose, moved, moved, calls, by)

    def all_gather(self, group: GroupShape, longest: float, purpose: str) -> Call:
        by = self.algorithm("all_gather", group, longest)
        moved = (group.size - 1) * longest
        return Call("all_gather", group, purpose, moved, moved, algorithm=by)

    def reduce_scatter(self, group: GroupShape, whole: float, own: float, purpose: str) -> Call:
        return Call("reduce_scatter", group, purpose, whole - own, (group.size - 1) * own)

    def exchange(self, row_bytes: float, purpose: str, back: bool = False) -> Call:
        sent, received = self.load.sent * row_bytes, self.load.received * row_bytes
        if back:
            sent, received = received, sent
        chunks = self.cell.strategy.overlap
        return Call("all_to_all", self.ep, purpose, sent, received, chunks)

    # Steps of strategies.

    def dispatch(self) -> Iterator[Call]:
        """Counts, rows there (for dedup with their gates), results back."""
        places, deduplicated = work.places(self.cell), self.cell.strategy.dispatcher == "dedup"
        numbers = 1 if deduplicated else places * self.cell.strategy.overlap
        counts = (self.ep.size - 1) * numbers * COUNT_BYTES
        yield Call("all_to_all", self.ep, "counts", counts, counts)
        yield self.exchange(self.layer.dim * self.w, "dispatch")
        if deduplicated:
            yield self.exchange(places * GATE_BYTES, "dispatch")
        yield self.exchange(self.layer.dim_out * self.w, "combine", back=True)

    def dispatch_backward(self) -> Iterator[Call]:
        """Gradients take the ways of what they are of, reversed; counts have none."""
        yield self.exchange(self.layer.dim_out * self.w, "backward")
        if self.cell.strategy.dispatcher == "dedup":
            yield self.exchange(work.places(self.cell) * GATE_BYTES, "backward", back=True)
        yield self.exchange(self.layer.dim * self.w, "backward", back=True)

    def gather_batch(self) -> Call:
        return self.all_gather(self.world, self.longest() * self.layer.dim_out * self.w, "combine")

    def spread_backward(self) -> Call:
        """Replicated tokens of which every rank used a part: their gradients are added up."""
        return self.all_reduce(self.world, self.batch * self.layer.dim * self.w, "backward")

    def tokens_to_outputs(
        self, group: GroupShape, rows: float, own: float, longest: float
    ) -> list[Call]:
        """All-gather of tokens in the layer's dtype, reduce-scatter of partial outputs."""
        out = self.layer.dim_out * self.w
        gather = self.all_gather(group, longest * self.layer.dim * self.s, "dispatch")
        return [gather, self.reduce_scatter(group, rows * out, own * out, "combine")]

    def tokens_to_outputs_backward(
        self, group: GroupShape, rows: float, own: float, longest: float
    ) -> list[Call]:
        into = self.layer.dim * self.s
        gather = self.all_gather(group, longest * self.layer.dim_out * self.w, "backward")
        return [gather, self.reduce_scatter(group, rows * into, own * into, "backward")]

    def add_up_gradients(self, names: Iterable[str], group: GroupShape) -> Iterator[Call]:
        held = work.parameter_bytes(self.cell, self.rank)
        for name in names:
            if name in held:
                yield self.all_reduce(group, held[name], "gradients")

    def add_up_copies(self) -> Iterator[Call]:
        """One all-reduce for every parameter of every expert that several ranks hold."""
        held, copied = work.parameter_bytes(self.cell, self.rank), self.load.copied
        for name in EXPERTS:
            if copied and name in held:
                size = copied * held[name] / work.places(self.cell)
                yield self.all_reduce(self.ep, size, "gradients", copied)

    # What router.scope=global asks for.

    def routed_by(self) -> tuple[GroupShape, int] | None:
        """Ranks that together route every token once, and the tokens of the longest of them; None
        where every rank routes the whole batch."""
        name, dispatcher = self.cell.strategy.name, self.cell.strategy.dispatcher
        if name == "dp_ep" and dispatcher == "local":
            return self.dp, self.longest(self.ep.size)
        if name in ("serial", "tp") or (dispatcher in ("local", "allgather") and "ep" in name):
            return None
        if name == "simple" and not self.sharded:
            return None
        if name == "ep_tp":
            return self.ep, self.longest(self.tp.size)
        return self.world, self.longest()

    def scope(self) -> Iterator[Call]:
        """What the router has to know of other ranks' tokens."""
        rule, by = self.layer.router, self.routed_by()
        if rule.scope != "global" or by is None:
            return
        group, longest = by
        slots = longest * self.layer.topk
        if rule.kind == "expert_choice":
            scores = longest * self.layer.num_experts * work.ROUTER_BYTES
            yield self.all_gather(group, scores, "scope")
            return
        if rule.aux_loss and self.cell.workload.mode == "train":
            yield self.all_gather(group, slots * INDEX_BYTES, "scope")
        if rule.capacity_factor:
            yield self.all_gather(group, slots * INDEX_BYTES, "scope")
            if rule.drop == "probability":
                yield self.all_gather(group, slots * GATE_BYTES, "scope")


EXPERTS = ("fc1", "fc2", "b1", "b2")
SHARED = tuple(f"shared_{name}" for name in EXPERTS)


def _forward(r: _Rank) -> Iterator[Call]:
    name, dispatcher = r.cell.strategy.name, r.cell.strategy.dispatcher
    out = r.layer.dim_out * r.w
    if name == "fsdp":
        yield r.all_gather(r.world, work.shard_elements(r.cell) * r.s, "dispatch")
    if name == "tp" or (name == "ep" and dispatcher == "allgather"):
        if r.sharded:
            yield from r.tokens_to_outputs(r.world, r.batch, r.shard(r.rank), r.longest())
        else:
            yield r.all_reduce(r.world, r.batch * out, "combine")
    elif name in ("ep", "ep_tp") and dispatcher == "local":
        yield r.all_reduce(r.world, r.batch * out, "combine")
    elif name == "dp_ep" and dispatcher == "local":
        yield r.all_reduce(r.ep, routed_tokens(r.cell, r.rank) * out, "combine")
        yield r.all_gather(r.dp, r.longest(r.ep.size) * out, "combine")
    elif name == "ep_tp":
        yield from _ep_tp(r)
    else:
        if dispatches(r.cell):
            yield from r.dispatch()
        if name not in ("serial", "simple") and not r.sharded:
            yield r.gather_batch()


def _tp_slice(r: _Rank) -> tuple[int, int, int]:
    """Tokens of the tp group together, of this rank, and of its longest member."""
    first = r.rank - r.rank % r.tp.size
    return group_rows(r.cell, r.rank, r.tp.size), r.shard(r.rank), r.shard(first)


def _ep_tp(r: _Rank) -> Iterator[Call]:
    out = r.layer.dim_out * r.w
    if r.sharded:
        gather, scatter = r.tokens_to_outputs(r.tp, *_tp_slice(r))
        yield gather
        yield from r.dispatch()
        yield scatter
        return
    yield from r.dispatch()
    yield r.all_reduce(r.tp, routed_tokens(r.cell, r.rank) * out, "combine")
    yield r.all_gather(r.ep, r.longest(r.tp.size) * out, "combine")


def _backward(r: _Rank) -> Iterator[Call]:
    name, dispatcher = r.cell.strategy.name, r.cell.strategy.dispatcher
    gathered = name == "tp" or (name == "ep" and dispatcher == "allgather")
    if name == "fsdp":
        shard = work.shard_elements(r.cell) * r.s
        yield r.all_gather(r.world, shard, "backward")
        yield r.reduce_scatter(r.world, r.size * shard, shard, "backward")
    if gathered and r.sharded:
        yield from r.tokens_to_outputs_backward(r.world, r.batch, r.shard(r.rank), r.longest())
    if dispatches(r.cell):
        yield from r.dispatch_backward()
    if name == "ep_tp" and r.sharded:
        yield from r.tokens_to_outputs_backward(r.tp, *_tp_slice(r))
    if name not in ("serial", "simple") and not r.sharded:
        yield r.spread_backward()
    yield from _gradients(r)


def _gradients(r: _Rank) -> Iterator[Call]:
    """Of weights that several ranks hold and use for different tokens."""
    name = r.cell.strategy.name
    if name in ("serial", "fsdp") or (name == "simple" and not r.sharded):
        return
    yield from r.add_up_gradients(["router"], r.world)
    if name in ("simple", "dp"):
        yield from r.add_up_gradients((*EXPERTS, *SHARED), r.world)
    elif name == "ep_tp":
        yield from r.add_up_gradients(SHARED, r.ep)
    elif name != "tp":
        yield from r.add_up_gradients(SHARED, r.world)
    if name == "dp_ep":
        yield from r.add_up_gradients(EXPERTS, r.dp)
    yield from r.add_up_copies()


def collectives(
    cell: Cell, load: Load, rank: int = 0, exchanged: Limits | None = None
) -> list[Call]:
    """By step: what the router asks for, forward, backward, gradients; groups of one rank move
    nothing and are left out. `exchanged` are the limits of moe.parallel.algorithms as
    calibrated."""
    view = _Rank(cell, load, rank, exchanged)
    found = [*view.scope(), *_forward(view)]
    if cell.workload.mode == "train":
        found += _backward(view)
    return [call for call in found if call.group.size > 1]


def totals(calls: Iterable[Call]) -> dict[tuple[str, str], tuple[int, float, float]]:
    """(collective, group) -> calls, bytes sent, bytes received: as `moe.parallel.comm` counts
    them."""
    found: dict[tuple[str, str], tuple[int, float, float]] = {}
    for call in calls:
        key = (call.collective, call.group.name)
        number, sent, received = found.get(key, (0, 0.0, 0.0))
        found[key] = (
            number + call.calls,
            sent + call.sent_bytes,
            received + call.received_bytes,
        )
    return found
