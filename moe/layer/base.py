"""Parts that the layers of all strategies share: router, experts, and steps made of them.

Shape letters: T tokens on this rank, B tokens in the global batch, D in, H hidden, O out, E
experts, P places (experts or copies of them) on this rank, K top-k, S slots, R ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from moe import weights
from moe.layer import kernel_choice
from moe.layer.capacity import Scope, extents, places_per_expert
from moe.layer.experts import BY_ENDS, Experts, can_be_captured
from moe.layer.router import Router, Routing
from moe.layer.weight_store import FusedWeights
from moe.parallel import collectives, dispatch, symm_mem
from moe.parallel.comm import Comm, RankGroup
from moe.parallel.expert_order import order_for
from moe.parallel.expert_placement import places_of
from moe.parallel.permute import RowsElsewhere, Slots, permute, unpermute
from moe.parallel.row_counts import RowCounts
from moe.parallel.rules import StrategyRules
from moe.parallel.traffic import GroupShape
from moe.phases import phase
from moe.spec import Cell, Unsupported, shard_bounds
from moe.workload import batches

# Bytes of rows that are not needed, above which a GPU moves them for longer than a wait takes.
ELSEWHERE_BYTES = 32 << 20


@dataclass
class ForwardTrace:
    """What one forward pass did on this rank; the correctness check and the skew read it."""

    rows: tuple[int, int] = (0, 0)
    routing: Routing | None = None
    slots: int = 0  # rows this rank's experts were given
    stage: partial[Tensor] | None = None  # repeats the expert computation without collectives


Reductions = list[tuple[list[nn.Parameter], RankGroup]]


class MoELayer(nn.Module):
    """One rank's layer. Subclasses name their strategy's `rules` and define `forward`."""

    rules: ClassVar[StrategyRules] = StrategyRules()

    def __init__(self, cell: Cell, comm: Comm, trace_BK: Tensor | None = None) -> None:
        super().__init__()
        self.cell, self.comm, self.layer = cell, comm, cell.layer
        self.total = cell.workload.batch_size
        self.sharded = cell.workload.tokens == "sharded"
        self.wire = weights.dtype_of(cell.strategy.comm_dtype or cell.layer.dtype)
        size = comm.world_size
        self.shard_sizes = [len(range(*batches.own_rows(cell, rank))) for rank in range(size)]
        self.tp, self.ep, self.dp = (comm.group(shape) for shape in self.rules.groups(cell))
        self.seen: ForwardTrace | None = None
        self.wait_free = cell.strategy.graph == "on"  # at any price: a capture allows no wait
        self.dispatches = self.rules.dispatches(cell)
        self.rows = self.routed_rows()
        self.shared_rows = self.rules.shared_rows(cell, comm.rank)
        self.routers = self.routed_by()
        self.summed = [(part, comm.group(shape)) for part, shape in self.rules.summed(cell)]
        allowed_TE = batches.allowed(cell, self.rows, trace_BK)
        self.router = Router(cell.layer, comm.device, allowed_TE, self.scope())
        loads = self.expert_loads(trace_BK) if cell.strategy.hot_replicas else []
        order = order_for(cell, self.ep.size, loads)
        self.places = places_of(order, cell.layer.num_experts, comm.device)
        self.first = self.ep.index * (len(order) // self.ep.size)  # place of the first expert here
        self.exchange: symm_mem.Exchange | None = None
        if cell.strategy.dispatcher == symm_mem.SYMM_MEM:
            self.exchange = symm_mem.Exchange(self.ep, self.rules.room(cell))
        self.experts = self.make_experts()
        self.shared = self.make_shared()
        self.requires_grad_(cell.workload.mode == "train")
        if cell.strategy.kernel != "auto":
            self.use(cell.strategy.kernel)

    # What a strategy may override.

    def routed_rows(self) -> tuple[int, int]:
        """Half-open range of global token ids that this rank routes."""
        return self.rules.routed_rows(self.cell, self.comm.rank)

    def routed_by(self) -> tuple[RankGroup, list[int]]:
        """Returns (group, tokens of each member): the ranks that together route every token once.
        The group is this rank alone where it routes the whole batch."""
        split = self.rules.routing(self.cell)
        group = self.comm.group(split[0] if split else GroupShape("self", 1, 1))
        rows = (self.rules.routed_rows(self.cell, rank) for rank in group.ranks)
        return group, [len(range(*bounds)) for bounds in rows]

    def make_experts(self) -> Experts:
        per_rank = len(self.places.experts) // self.ep.size
        return self.hold(self.places.experts[self.first : self.first + per_rank])

    def make_shared(self) -> Experts | None:
        """The shared experts, which every token visits; their ids follow the routed experts'."""
        number, first = self.layer.shared_experts, self.layer.num_experts
        if not number:
            return None
        shared = self.hold(range(first, first + number))
        shared.use("dense")
        return shared

    def forward(self, x_TD: Tensor) -> Tensor:
        raise NotImplementedError

    # Building blocks of strategies.

    def scope(self) -> Scope:
        """The token extents of capacity and balancing rules. `copies` corrects the loss for ranks
        that route the same tokens and sum their gradients."""
        group, sizes = self.routers
        gather = partial(group.all_gather, sizes=sizes)
        whole = self.layer.router.scope == "global" and group.size > 1
        copies = self.comm.world_size // group.size if self.summed else 1
        return Scope(self.rows, tuple(extents(self.cell)), gather if whole else None, copies)

    def expert_loads(self, trace_BK: Tensor | None) -> list[int]:
        """Slots of each expert over the whole batch, the same on every rank. Collective."""
        whole = (0, self.total)
        allowed_BE = batches.allowed(self.cell, whole, trace_BK)
        scope = Scope(whole, tuple(extents(self.cell)))
        router = Router(self.layer, torch.device("cpu"), allowed_BE, scope)
        with torch.no_grad():
            routing = router(batches.tokens(self.cell, whole))
        chosen = routing.indices_TK
        if routing.kept_TK is not None:
            chosen = chosen[routing.kept_TK]
        counts = torch.bincount(chosen.reshape(-1), minlength=self.layer.num_experts)
        loads: list[int] = self.comm.world.broadcast_(counts.to(self.comm.device)).tolist()
        return loads

    def hold(self, ids: Sequence[int]) -> Experts:
        """Creates this rank's part of the hidden units of the experts `ids`."""
        part, parts = self.tp.index, self.tp.size
        columns = shard_bounds(self.layer.hidden, parts, part)
        return Experts(self.layer, tuple(ids), columns, self.comm.device, bias2=part == 0)

    def own_slice(self, x_BD: Tensor) -> Tensor:
        """The rows of x that this rank routes."""
        if x_BD.shape[0] == self.rows[1] - self.rows[0]:
            return x_BD
        return x_BD[self.rows[0] : self.rows[1]]

    def own_tokens(self, x_TD: Tensor) -> Tensor:
        """[T, D] tokens this rank routes; replicated tokens get their gradients summed over all
        ranks."""
        if self.sharded:
            return x_TD
        return self.own_slice(collectives.spread(x_TD, self.comm.world, self.wire))

    def own_batch(self, x_TD: Tensor) -> Tensor:
        """Step in which one rank computes each token: own tokens visit the experts, by sending
        slots if the dispatcher does; replicated outputs are all-gathered. [T, D] -> [T, O]."""
        y_TO = self.outputs(self.own_tokens(x_TD))
        return y_TO if self.sharded else self.gather_batch(y_TO)

    def whole_batch(self, x_TD: Tensor) -> Tensor:
        """Step in which every rank computes a partial sum for all tokens, summed by an all-reduce
        (replicated) or as `tokens_to_outputs` (sharded). [T, D] -> [T, O]."""
        world = self.comm.world
        if self.sharded:
            return self.tokens_to_outputs(x_TD, world)
        y_BO = self.outputs(collectives.spread(x_TD, world, self.wire))
        with phase("combine"):
            return collectives.add_up(y_BO, world, self.wire)

    def tokens_to_outputs(self, x_TD: Tensor, group: RankGroup) -> Tensor:
        """Step with sharded tokens in which every rank of `group`, neighbours, computes a partial
        sum for all the group's tokens: all-gather of tokens, reduce-scatter of outputs."""
        sizes = [self.shard_sizes[rank] for rank in group.ranks]
        with phase("dispatch"):
            x_TD = collectives.gather_tokens(x_TD, group, sizes)
        y_TO = self.outputs(x_TD)
        with phase("combine"):
            return collectives.add_and_scatter(y_TO, group, sizes, self.wire)

    def slice_to_batch(self, x_BD: Tensor, group: RankGroup) -> Tensor:
        """Step with replicated tokens in which every rank of `group`, neighbours, computes a
        partial sum for the group's slice: all-reduce over the group, all-gather of the slices."""
        y_TO = self.outputs(self.own_tokens(x_BD))
        with phase("combine"):
            y_TO = collectives.add_up(y_TO, group, self.wire)
            return collectives.gather_outputs(y_TO, *self.routers, self.wire)

    def outputs(self, x_TD: Tensor) -> Tensor:
        """[T, O]: routed and shared experts' outputs for the tokens routed here."""
        routing = self.route(x_TD)
        y_TO = self.dispatched(x_TD, routing) if self.dispatches else self.mix(x_TD, routing)
        return self.plus_shared(y_TO, x_TD)

    def gather_batch(self, y_TO: Tensor) -> Tensor:
        """All-gathers the outputs of every rank's shard: [B, O]."""
        with phase("combine"):
            return collectives.gather_outputs(y_TO, self.comm.world, self.shard_sizes, self.wire)

    def route(self, x_TD: Tensor) -> Routing:
        with phase("router"):
            routing = self.router(x_TD)
        if self.seen is not None:
            self.seen.rows, self.seen.routing = self.rows, routing
        return routing

    def mix(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """[T, O]: gated sum over the experts on this rank."""
        if self.seen is not None and self.seen.stage is None:
            self.seen.stage = partial(self.mix, x_TD, routing)
        experts, places_TK = self.experts, self.places.locate(routing.indices_TK, self.rows[0])
        if experts.fused:
            return self._mix_dense(x_TD, routing, places_TK)
        with phase("permute"):
            here, total = len(experts.ids), len(self.places.experts)
            if here < total:  # shifts this rank's places to 0 .. here - 1
                places_TK = (places_TK - self.first) % total
            places_TK = without_dropped(places_TK, routing, total)
            slots = experts.sort_slots(places_TK, self._rows_elsewhere(routing))
            by_token = experts.takes_tokens and slots.order_S.numel() > 0
            x_SD = x_TD if by_token else permute(x_TD, slots)
        if by_token:
            return self._mix_tokens(x_TD, routing, slots)
        y_SO = self.compute(x_SD, slots.counts)
        with phase("unpermute"):
            return unpermute(y_SO, routing.gates_TK, slots)

    def _mix_tokens(self, x_TD: Tensor, routing: Routing, slots: Slots) -> Tensor:
        if self.seen is not None:
            self.seen.slots += sum(slots.counts.on_host)
        with phase("experts"):
            return self.experts.of_tokens(x_TD, routing.gates_TK, slots)

    def _rows_elsewhere(self, routing: Routing) -> RowsElsewhere:
        """What becomes of rows of slots that are elsewhere, on a GPU."""
        if not routing.gates_TK.is_cuda:
            return "cut"
        if routing.kept_TK is None and len(self.experts.ids) == len(self.places.experts):
            return "kept"  # there are none
        if self.experts.counts_on_host:
            return "cut"
        tokens, slots = routing.gates_TK.shape
        elsewhere = tokens * slots - self.expected_slots(tokens)
        width = self.experts.fc1.shape[1] + self.layer.dim + self.layer.dim_out
        large = elsewhere * width * self.experts.fc1.element_size() > ELSEWHERE_BYTES
        return "cut" if large and not self.wait_free else "padded"

    def expected_slots(self, tokens: int) -> int:
        """Slots of `tokens` tokens that this rank's experts are given if all have equally many."""
        layer, share = self.layer, len(self.experts.ids) / len(self.places.experts)
        if layer.router.capacity_factor or layer.router.kind == "expert_choice":
            kept = places_per_expert(layer, tokens) * layer.num_experts
            return int(share * min(kept, tokens * layer.topk))
        return int(share * tokens * layer.topk)

    def _mix_dense(self, x_TD: Tensor, routing: Routing, places_TK: Tensor) -> Tensor:
        total, first = len(self.places.experts), self.first
        last = first + len(self.experts.ids)
        if self.seen is not None:
            here = (places_TK >= first) & (places_TK < last)
            if routing.kept_TK is not None:
                here &= routing.kept_TK
            self.seen.slots += int(here.sum())
        with phase("permute"):
            gates_TE = routing.logits_TE.new_zeros((x_TD.shape[0], total))
            gates_TE.scatter_(1, places_TK, routing.gates_TK)
        with phase("experts"):
            return self.experts.dense(x_TD, gates_TE[:, first:last])

    def dispatched(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """[T, O]: gated sum over all experts; sends slots to the ranks of `ep` that hold them."""
        strategy, total = self.cell.strategy, len(self.places.experts)
        way = dispatch.Way(self.ep, total, self.wire, routing.kept_TK is not None)
        places_TK = self.places.locate(routing.indices_TK, self.rows[0])
        places_TK = without_dropped(places_TK, routing, total)
        if self.exchange is not None:
            return symm_mem.exchanged(
                x_TD, places_TK, routing.gates_TK, way, self.compute, self.exchange
            )
        if strategy.dispatcher == "dedup":
            return dispatch.dedup(x_TD, places_TK, routing.gates_TK, way, self.compute)
        if strategy.overlap > 1:
            return dispatch.overlapped(
                x_TD, places_TK, routing.gates_TK, way, self.compute, strategy.overlap
            )
        return dispatch.alltoall(x_TD, places_TK, routing.gates_TK, way, self.compute)

    def plus_shared(self, y_TO: Tensor, x_TD: Tensor) -> Tensor:
        """Adds the shared experts' outputs for the tokens `shared_rows`, a part of those routed
        here."""
        if self.shared is None:
            return y_TO
        with phase("experts"):
            if self.shared_rows == self.rows:
                return y_TO + self.shared.dense(x_TD, None)
            start, end = (row - self.rows[0] for row in self.shared_rows)
            part = self.shared.dense(x_TD[start:end], None)
            return y_TO + nn.functional.pad(part, (0, 0, start, y_TO.shape[0] - end))

    def compute(self, x_SD: Tensor, counts: RowCounts) -> Tensor:
        """Runs the experts on rows in expert order; `counts` rows for each."""
        if self.seen is not None:
            self.seen.slots += sum(counts.on_host)
            self.seen.stage = self.seen.stage or partial(self.compute, x_SD, counts)
        with phase("experts"):
            return self.experts.rows(x_SD, counts)

    # Used by the runner.

    @contextmanager
    def watching(self) -> Iterator[ForwardTrace]:
        """Records in a ForwardTrace what the next forward pass routes and computes."""
        self.seen = ForwardTrace()
        try:
            yield self.seen
        finally:
            self.seen = None

    @property
    def shared_weights(self) -> FusedWeights | None:
        """On a GPU the experts' matrices, which other layers may hold too."""
        return self.experts.shared_weights

    def use(self, kernel: str) -> None:
        self.experts.use(kernel)

    def tune(self, x_TD: Tensor) -> dict[str, Any]:
        """Chooses the kernel for strategy.kernel; collective, and runs one forward where there is a
        choice. Returns {name, how, candidates_ms}."""
        names = self.experts.variants(self.cell.strategy.kernel, x_TD.dtype)
        if self.exchange is not None:
            names = [name for name in names if name in BY_ENDS]
            self.use(names[0])  # the watched pass below: others split rows by counts
        if self.wait_free:
            names = [name for name in names if can_be_captured(name, x_TD.dtype, x_TD.device)]
            if not names:
                raise Unsupported(
                    "measure.graph", "on",
                    f"off with strategy.kernel={self.cell.strategy.kernel} on this GPU, where it "
                    "waits for the rows of each expert",
                    "set measure.graph=off or strategy.kernel=auto",
                )  # fmt: skip
        if len(names) == 1:
            self.use(names[0])
            return {"name": names[0], "how": "asked for", "candidates_ms": {}}
        with torch.no_grad(), self.watching() as seen:
            self(x_TD)
        train = self.cell.workload.mode == "train"
        call, skip = kernel_choice.replay(seen.stage, seen.slots, self.experts, train, self.comm)
        return kernel_choice.choose(
            [name for name in names if name not in skip], call, self.use, self.comm, self.wait_free
        )

    def clone(self) -> MoELayer:
        """A deep copy with its own weights, on the same ranks."""
        return copy.deepcopy(self)

    def weights_bytes(self) -> int:
        """Bytes of the weights this rank keeps between steps."""
        return sum(parameter.nbytes for parameter in self.parameters())

    def skew(self, seen: ForwardTrace) -> dict[str, list[int]]:
        """Slots per expert and rows computed per rank, over all ranks, of the watched forward pass
        `seen`. Collective."""
        experts = torch.zeros(self.layer.num_experts, dtype=torch.int64)
        ranks = torch.zeros(self.comm.world_size, dtype=torch.int64)
        ranks[self.comm.rank] = seen.slots
        own = batches.own_rows(self.cell, self.comm.rank)
        if self.rules.single_rank:
            own = seen.rows
        if seen.routing is not None:
            here = slice(own[0] - seen.rows[0], own[1] - seen.rows[0])
            chosen = seen.routing.indices_TK[here]
            if seen.routing.kept_TK is not None:
                chosen = chosen[seen.routing.kept_TK[here]]
            experts += torch.bincount(chosen.reshape(-1).cpu(), minlength=experts.numel())
        both = self.comm.world.combine_(torch.cat([experts, ranks]).to(self.comm.device), "sum")
        counts: list[int] = both.tolist()
        return {"expert_slots": counts[: len(experts)], "rank_slots": counts[len(experts) :]}

    # Gradients of weights that several ranks share.

    def reductions(self) -> Reductions:
        """[(parameters, group)]: gradients that are partial on this rank and the group to sum them
        over; the same list on every rank."""
        return [(self.parameters_of(part), group) for part, group in self.summed]

    def parameters_of(self, part: str) -> list[nn.Parameter]:
        """Parameters of `part`: router, shared, or experts (all others)."""
        if part == "router":
            return [self.router.weight_ED]
        if part == "shared":
            return [] if self.shared is None else list(self.shared.parameters())
        others = self.named_parameters()
        return [one for name, one in others if not name.startswith(("router.", "shared."))]

    def finish_gradients(self) -> None:
        """Sums partial gradients over the ranks. Collective."""
        for parameters, group in self.reductions():
            for parameter in parameters:
                group.all_reduce_(gradient(parameter))
        for expert in self.places.copied:
            self._add_up_copies(expert)

    def _add_up_copies(self, expert: int) -> None:
        """Sums the gradients of one expert's copies; ranks without a copy contribute zeros."""
        at = self.experts.ids.index(expert) if expert in self.experts.ids else -1
        for parameter in self.experts.parameters():
            grad = gradient(parameter)
            part = grad[at] if at >= 0 else torch.zeros_like(grad[0])
            self.ep.all_reduce_(part)

    def named_gradients(self) -> dict[str, Tensor]:
        """{parameter name: gradient} of all weights this rank works with. Collective."""
        return {name: known_gradient(parameter) for name, parameter in self.named_parameters()}


def known_gradient(parameter: nn.Parameter) -> Tensor:
    """The gradient, or zeros where there is none; leaves the parameter unchanged."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def gradient(parameter: nn.Parameter) -> Tensor:
    """The parameter's gradient; created as zeros where there is none."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def without_dropped(places_TK: Tensor, routing: Routing, total: int) -> Tensor:
    """Places, with `total` (no rank) for dropped slots."""
    kept_TK = routing.kept_TK
    return places_TK if kept_TK is None else places_TK.masked_fill(~kept_TK, total)
