"""What all strategies share: router, experts, and the local mix of both.

Shape letters: T tokens on this rank, B tokens in the global batch, D in, H hidden, O out,
E experts, P experts on this rank, K top-k, S slots, R ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moe import tuning, workload
from moe.collectives import gather_outputs
from moe.comm import Comm
from moe.experts import Experts
from moe.permute import permute, sort_slots, unpermute
from moe.phases import phase
from moe.router import Router, Routing
from moe.spec import Cell, shard_bounds


@dataclass
class Seen:
    """What one forward did on this rank, for the gate and the skew."""

    rows: tuple[int, int] = (0, 0)
    routing: Routing | None = None
    slots: int = 0  # rows this rank's experts were given
    stage: partial[Tensor] | None = None  # repeats what needs the experts, without collectives


class MoELayer(nn.Module):
    """Subclasses say which tokens this rank routes, which experts it holds, and `forward`."""

    def __init__(self, cell: Cell, comm: Comm, trace_NK: Tensor | None = None) -> None:
        super().__init__()
        self.cell, self.comm, self.layer = cell, comm, cell.layer
        self.total = cell.workload.batch_size
        self.sharded = cell.workload.tokens == "sharded"
        self.seen: Seen | None = None
        self.rows = self.routed_rows()
        self.router = Router(cell.layer, comm.device, workload.allowed(cell, self.rows, trace_NK))
        self.experts = self.make_experts()
        self.requires_grad_(cell.workload.mode == "train")
        if cell.strategy.kernel != "auto":
            self.use(cell.strategy.kernel)

    # What a strategy says.

    def routed_rows(self) -> tuple[int, int]:
        """Half-open range of global token ids that this rank's router sees."""
        return workload.own_rows(self.cell, self.comm.rank)

    def make_experts(self) -> Experts:
        return self.hold(range(self.layer.num_experts))

    def forward(self, x_TD: Tensor) -> Tensor:
        raise NotImplementedError

    # What strategies are made of.

    def hold(self, ids: Sequence[int], part: int = 0, parts: int = 1) -> Experts:
        """Part `part` of `parts` of the hidden units of the experts `ids`."""
        columns = shard_bounds(self.layer.hidden, parts, part)
        return Experts(self.layer, tuple(ids), columns, self.comm.device, bias2=part == 0)

    def shard_sizes(self) -> list[int]:
        """Tokens of every rank's shard."""
        size = self.comm.world_size
        bounds = [shard_bounds(self.total, size, rank) for rank in range(size)]
        return [end - start for start, end in bounds]

    def own_slice(self, x_BD: Tensor) -> Tensor:
        """The rows this rank routes, of what it started with."""
        if x_BD.shape[0] == self.rows[1] - self.rows[0]:
            return x_BD
        return x_BD[self.rows[0] : self.rows[1]]

    def gather_batch(self, y_TO: Tensor) -> Tensor:
        """The whole batch's outputs on every rank, from each rank's shard."""
        with phase("combine"):
            return gather_outputs(y_TO, self.comm.world, self.shard_sizes())

    def route(self, x_TD: Tensor) -> Routing:
        with phase("router"):
            routing = self.router(x_TD)
        if self.seen is not None:
            self.seen.rows, self.seen.routing = self.rows, routing
        return routing

    def mix(self, x_TD: Tensor, routing: Routing, first: int = 0) -> Tensor:
        """Gated sum over the experts held here, whose ids start at `first`, for all tokens."""
        if self.seen is not None and self.seen.stage is None:
            self.seen.stage = partial(self.mix, x_TD, routing, first)
        experts = self.experts
        held = len(experts.ids)
        everything = held == self.layer.num_experts
        if experts.fused:
            return self._mix_dense(x_TD, routing, slice(first, first + held))
        with phase("permute"):
            local_TK = routing.indices_TK
            if not everything:
                local_TK = (local_TK - first) % self.layer.num_experts
            slots = sort_slots(local_TK, held)
            x_SD = permute(x_TD, slots)
        y_SO = self.compute(x_SD, slots.counts)
        with phase("unpermute"):
            return unpermute(y_SO, routing.gates_TK, slots)

    def _mix_dense(self, x_TD: Tensor, routing: Routing, held: slice) -> Tensor:
        indices_TK = routing.indices_TK
        if self.seen is not None:
            here = (indices_TK >= held.start) & (indices_TK < held.stop)
            self.seen.slots += int(here.sum())
        with phase("permute"):
            gates_TE = torch.zeros_like(routing.logits_TE)
            gates_TE.scatter_(1, indices_TK, routing.gates_TK)
        with phase("experts"):
            return self.experts.dense(x_TD, gates_TE[:, held])

    def compute(self, x_SD: Tensor, counts: list[int]) -> Tensor:
        """The experts on rows in expert order."""
        if self.seen is not None:
            self.seen.slots += x_SD.shape[0]
            self.seen.stage = self.seen.stage or partial(self.compute, x_SD, counts)
        with phase("experts"):
            return self.experts.rows(x_SD, counts)

    # What the runner asks.

    @contextmanager
    def watching(self) -> Iterator[Seen]:
        """Notes what the next forward routes and how many rows its experts get."""
        self.seen = Seen()
        try:
            yield self.seen
        finally:
            self.seen = None

    def use(self, kernel: str) -> None:
        self.experts.use(kernel)

    def tune(self, x_TD: Tensor) -> dict[str, Any]:
        """Chooses the kernel for strategy.kernel; collective. {name, how, candidates_ms}."""
        return tuning.tune(self, x_TD)

    def clone(self) -> MoELayer:
        """The same layer with weights of its own, on the same ranks."""
        return copy.deepcopy(self)

    def weights_bytes(self) -> int:
        """Bytes of the weights this rank keeps between steps."""
        return sum(parameter.nbytes for parameter in self.parameters())

    def skew(self, x_TD: Tensor) -> dict[str, list[int]]:
        """Global slots per expert, and per rank the rows its experts computed; collective."""
        with torch.no_grad(), self.watching() as seen:
            self(x_TD)
        experts = torch.zeros(self.layer.num_experts, dtype=torch.int64)
        ranks = torch.zeros(self.comm.world_size, dtype=torch.int64)
        ranks[self.comm.rank] = seen.slots
        own = workload.own_rows(self.cell, self.comm.rank)
        if self.comm.rank == 0 and self.cell.strategy.name == "serial":
            own = (0, self.total)
        if seen.routing is not None:
            chosen = seen.routing.indices_TK[own[0] - seen.rows[0] : own[1] - seen.rows[0]]
            experts += torch.bincount(chosen.reshape(-1).cpu(), minlength=experts.numel())
        both = self.comm.world.combine_(torch.cat([experts, ranks]).to(self.comm.device), "sum")
        counts: list[int] = both.tolist()
        return {"expert_slots": counts[: len(experts)], "rank_slots": counts[len(experts) :]}

    # Gradients of weights that several ranks hold whole.

    def replicated_parameters(self) -> list[nn.Parameter]:
        """Parameters whose gradient on this rank is only its part; the same list on every rank."""
        return [self.router.weight_ED]

    def finish_gradients(self) -> None:
        """Adds up over the ranks what `backward` left in parts."""
        for parameter in self.replicated_parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self.comm.world.all_reduce_(parameter.grad)
