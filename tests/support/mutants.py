"""Faults of one line, each in a cell that it breaks: the runner must report every one as wrong.

A fault is a function that returns what is to be replaced, as (owner, attribute, replacement); it is
put in place around one wave of a real launch (tests/dist/mutant_worker.py), on every rank. State
that a fault keeps is made anew each time.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe import build, weights
from moe.layer import activations, balance_loss, capacity, onednn
from moe.layer import base as layer_module
from moe.layer import experts as experts_module
from moe.layer import router as router_module
from moe.layer.base import MoELayer
from moe.layer.expert_autograd import PerExpertFunction
from moe.layer.experts import Experts
from moe.layer.router import Router, Routing
from moe.parallel import collectives, dispatch
from moe.parallel import permute as permute_module
from moe.parallel.collectives import add_up
from moe.parallel.expert_placement import Places
from moe.parallel.permute import Slots
from moe.parallel.row_counts import RowCounts
from moe.spec import Cell, LayerSpec, RankLayout, RouterSpec, StrategySpec, WorkloadSpec
from moe.strategies.ep.layer import Ep
from moe.strategies.simple.layer import Simple
from moe.strategies.tp.layer import Tp
from moe.verify import sampling
from moe.workload import batches, routings

Patch = tuple[Any, str, Any]
Make = Callable[[], list[Patch]]

LAYER = LayerSpec(16, 32, 16, 8, 2, 2, "silu_gated", "random")
BATCH = 24


def cell(
    strategy: str = "simple", dispatcher: str = "local", layer: LayerSpec = LAYER, **changes: Any
) -> Cell:
    """On two ranks; `changes` are fields of Layer, Router, Strategy or Workload."""
    names = {kind: {f.name for f in dataclasses.fields(kind)}
             for kind in (LayerSpec, RouterSpec, StrategySpec, WorkloadSpec)}  # fmt: skip

    def part(kind: Any) -> dict[str, Any]:
        return {name: value for name, value in changes.items() if name in names[kind]}

    rule = RouterSpec(
        **{n: v for n, v in part(RouterSpec).items() if n != "kind" or v == "expert_choice"}
    )
    work = {n: v for n, v in part(WorkloadSpec).items() if n != "kind" or v != "expert_choice"}
    return Cell(
        replace(layer, router=rule, **part(LayerSpec)),
        StrategySpec(strategy, dispatcher, **{"kernel": "loop"} | part(StrategySpec)),
        WorkloadSpec(**{"batch_size": BATCH} | work),
        RankLayout(world_size=2),
    )


@dataclass(frozen=True)
class Mutant:
    kind: str
    cell: Cell
    make: Make
    rebuilt: bool = False  # its layer is built again in every round


MUTANTS: dict[str, Mutant] = {}


def fault(kind: str, *cells: Cell, rebuilt: bool = False) -> Callable[[Make], Make]:
    """Registers a fault under its name, once for each cell."""

    def add(make: Make) -> Make:
        for number, one in enumerate(cells):
            name = make.__name__ + (f"_{number}" if len(cells) > 1 else "")
            MUTANTS[name] = Mutant(kind, one, make, rebuilt)
        return make

    return add


def routing_becomes(change: Callable[[Router, Routing], Routing]) -> list[Patch]:
    """What every router returns is changed."""
    forward = Router.forward
    return [(Router, "forward", lambda self, x: change(self, forward(self, x)))]


def output_becomes(
    kind: type[MoELayer], change: Callable[[MoELayer, Tensor], Tensor]
) -> list[Patch]:
    forward = kind.forward
    return [(kind, "forward", lambda self, x: change(self, forward(self, x)))]


def from_call(number: int, change: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """The change, from that forward on (counted on each rank for itself)."""
    calls = itertools.count(1)
    return lambda layer, y: change(y) if next(calls) >= number else y


def gradient_scaled(kind: type[MoELayer], factor: float) -> list[Patch]:
    """The output stays, what a backward pass gives back to it does not."""

    def scaled(layer: MoELayer, y: Tensor) -> Tensor:
        if y.requires_grad:
            y.register_hook(lambda grad: grad * factor)
        return y

    return output_becomes(kind, scaled)


TRAIN = {"mode": "train"}


# The router: which experts, with what weight.


@fault("routing", cell(), cell("ep", "alltoall"))
def worst_experts() -> list[Patch]:
    def worst(router: Router, found: Routing) -> Routing:
        scores = -found.logits_TE.detach()
        chosen = scores.topk(router.layer.topk, dim=1)[1]
        gates = router._gates(found.logits_TE, chosen)
        return replace(found, scores_TE=scores, indices_TK=chosen, gates_TK=gates)

    return routing_becomes(worst)


@fault("routing", cell())
def second_best_experts() -> list[Patch]:
    def next_ones(router: Router, found: Routing) -> Routing:
        chosen = found.logits_TE.topk(router.layer.topk + 1, dim=1)[1][:, 1:]
        return replace(found, indices_TK=chosen, gates_TK=router._gates(found.logits_TE, chosen))

    return routing_becomes(next_ones)


@fault("routing", cell())
def scores_of_its_own() -> list[Patch]:
    """Chooses by other scores, and reports those."""

    def other(router: Router, found: Routing) -> Routing:
        scores = found.logits_TE.detach().roll(1, dims=1)
        chosen = scores.topk(router.layer.topk, dim=1)[1]
        gates = router._gates(found.logits_TE, chosen)
        return replace(found, scores_TE=scores, indices_TK=chosen, gates_TK=gates)

    return routing_becomes(other)


@fault("routing", cell(kind="expert_choice", normalize=False))
def expert_choice_takes_its_worst_tokens() -> list[Patch]:
    take_best = capacity.take_best
    return [(router_module, "take_best", lambda scores, places: take_best(-scores, places))]


@fault("routing", cell(capacity_factor=0.7, drop="probability"))
def drops_the_largest_gates() -> list[Patch]:
    keep_first = capacity.keep_first

    def keep(indices: Tensor, weight: Tensor | None, *rest: Any) -> Tensor:
        assert weight is not None
        return keep_first(indices, -weight, *rest)

    limited = Router._limited

    def reported(self: Router, routing: Routing) -> Routing:
        found = limited(self, routing)
        assert found.weight_TK is not None
        return replace(found, weight_TK=-found.weight_TK)

    return [(router_module, "keep_first", keep), (Router, "_limited", reported)]


@fault("routing", cell(capacity_factor=0.6, drop="first_choices"))
def first_choices_are_not_first() -> list[Patch]:
    keep_first = capacity.keep_first
    return [(router_module, "keep_first", lambda i, w, e, p, drop: keep_first(i, w, e, p))]


@fault("routing", cell(), cell("ep", "dedup"))
def gates_of_a_token_swapped() -> list[Patch]:
    return routing_becomes(lambda _, r: replace(r, gates_TK=r.gates_TK.flip(1)))


@fault("routing", cell())
def gates_not_renormalised() -> list[Patch]:
    def shares(router: Router, found: Routing) -> Routing:
        return replace(found, gates_TK=found.logits_TE.softmax(1).gather(1, found.indices_TK))

    return routing_becomes(shares)


@fault("routing", cell(normalize=False))
def gates_renormalised() -> list[Patch]:
    return routing_becomes(
        lambda _, r: replace(r, gates_TK=r.gates_TK / r.gates_TK.sum(1, keepdim=True))
    )


@fault("routing", cell(normalize=False, kind="zipf", parameter=1.0))
def gates_of_the_prescribed_alone() -> list[Patch]:
    def shares(router: Router, found: Routing) -> Routing:
        masked = found.logits_TE.masked_fill(~router.allowed_TE, -torch.inf)
        return replace(found, gates_TK=masked.softmax(1).gather(1, found.indices_TK))

    return routing_becomes(shares)


@fault("routing", cell())
def gates_a_little_warmer() -> list[Patch]:
    def warm(router: Router, found: Routing) -> Routing:
        return replace(found, gates_TK=router._gates(found.logits_TE * 0.999, found.indices_TK))

    return routing_becomes(warm)


@fault("routing", cell(score="sigmoid", scale=2.5))
def scale_forgotten() -> list[Patch]:
    return routing_becomes(lambda _, r: replace(r, gates_TK=r.gates_TK / 2.5))


@fault("routing", cell(selection_bias="balanced"))
def bias_in_the_gates() -> list[Patch]:
    def biased(router: Router, found: Routing) -> Routing:
        assert router.bias_E is not None
        return replace(found, gates_TK=found.gates_TK + router.bias_E[found.indices_TK])

    return routing_becomes(biased)


@fault("routing", cell(selection_bias="balanced"))
def bias_subtracted_by_the_router() -> list[Patch]:
    ranked = Router._ranked

    def other(self: Router, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
        assert self.bias_E is not None
        found = ranked(self, logits_TE)[0] - 2 * self.bias_E
        return found, found

    return [(Router, "_ranked", other)]


@fault("routing", cell(score="sigmoid", groups=4, group_topk=1))
def groups_ignored() -> list[Patch]:
    ranked = Router._ranked
    return [(Router, "_ranked", lambda self, logits: (ranked(self, logits)[0],) * 2)]


@fault("routing", cell())
def ties_to_the_highest_id() -> list[Patch]:
    top_indices = router_module.top_indices

    def highest(scores: Tensor, topk: int) -> Tensor:
        return scores.shape[1] - 1 - top_indices(scores.flip(1), topk)

    return [(router_module, "top_indices", highest), (Router, "_simple", lambda self: False)]


@fault("routing", cell(), cell(**TRAIN))
def logits_in_bfloat16() -> list[Patch]:
    forward = Router.forward
    return [(Router, "forward", lambda self, x: forward(self, x.bfloat16().to(x.dtype)))]


@fault("routing", cell(kind="balanced"))
def prescribed_choice_ignored() -> list[Patch]:
    forward = Router.forward

    def by_logits(self: Router, x: Tensor) -> Routing:
        self.allowed_TE = None
        return forward(self, x)

    return [(Router, "forward", by_logits)]


# Definitions that layer and oracle share.


@fault("definitions", cell(capacity_factor=0.7), cell(kind="expert_choice", normalize=False))
def one_place_more_for_each_expert() -> list[Patch]:
    right = capacity.places_per_expert
    return [(owner, "places_per_expert", lambda layer, tokens: right(layer, tokens) + 1)
            for owner in (capacity, router_module)]  # fmt: skip


@fault("definitions", cell(capacity_factor=0.7))
def capacity_of_the_whole_batch() -> list[Patch]:
    def whole(of: Cell) -> list[tuple[int, int]]:
        return [(0, of.workload.batch_size)]

    return [(capacity, "extents", whole), (layer_module, "extents", whole)]


@fault("definitions", cell(selection_bias="balanced"))
def bias_that_unbalances() -> list[Patch]:
    right = balance_loss.selection_bias
    return [(balance_loss, "selection_bias", lambda layer: -right(layer))]


@fault("definitions", cell(), cell("ep", "alltoall"))
def all_experts_alike() -> list[Patch]:
    right = weights.matrices
    return [(weights, "matrices", lambda layer, ids, *of: right(layer, [0] * len(ids), *of))]


@fault("definitions", cell())
def two_experts_alike() -> list[Patch]:
    right = weights.matrices

    def alike(layer: LayerSpec, experts: Sequence[int], *of: Any) -> Tensor:
        return right(layer, [5 if expert == 6 else expert for expert in experts], *of)

    return [(weights, "matrices", alike)]


@fault("definitions", cell("ep", "alltoall", tokens="sharded"))
def every_rank_has_the_first_shard() -> list[Patch]:
    right = batches.tokens

    def first(of: Cell, rank: int, device: torch.device) -> Tensor:
        return right(of, batches.start_rows(of, 0)).to(device)

    return [(batches, "inputs", first)]


@fault("definitions", cell())
def all_tokens_alike() -> list[Patch]:
    right = batches.tokens
    return [(batches, "tokens", lambda of, bounds, *on: right(of, (0, 1), *on).repeat(
        bounds[1] - bounds[0], 1))]  # fmt: skip


@fault("definitions", cell(tokens="sharded"))
def shards_that_start_late() -> list[Patch]:
    right = batches.tokens
    return [(batches, "tokens", lambda of, bounds, *on: right(
        of, (0, bounds[1] - bounds[0]) if bounds[0] else bounds, *on))]  # fmt: skip


@fault("definitions", cell(kind="balanced"))
def balanced_on_the_first_experts() -> list[Patch]:
    def first(of: Cell, bounds: tuple[int, int]) -> Tensor:
        marked = torch.zeros(bounds[1] - bounds[0], of.layer.num_experts, dtype=torch.bool)
        marked[:, : of.layer.topk] = True
        return marked

    return [(routings, "MAKERS", {**routings.MAKERS, "balanced": first})]


@fault("definitions", cell(kind="imbalance", parameter=1.8))
def imbalance_that_is_even() -> list[Patch]:
    even = routings.MAKERS["balanced"]
    return [(routings, "MAKERS", {**routings.MAKERS, "imbalance": even})]


# Sending rows to experts and back.


@fault("dispatch", cell("ep", "alltoall"))
def rows_left_in_arrival_order() -> list[Patch]:
    def computed(x_ND: Tensor, rows: dispatch.Exchanged, compute: Any) -> Tensor:
        order = dispatch.expert_order(rows.counts_GP, len(x_ND))
        return compute(x_ND.index_select(0, order), RowCounts(rows.of_experts))

    return [(dispatch, "_computed", computed)]


@fault("dispatch", cell("ep", "alltoall"))
def rows_of_two_sources_mixed() -> list[Patch]:
    right = dispatch.expert_order
    return [(dispatch, "expert_order", lambda counts, rows: right(counts.flip(0), rows))]


@fault("dispatch", cell("ep", "dedup"))
def dedup_without_gates() -> list[Patch]:
    right = dispatch._gates_by_place
    return [(dispatch, "_gates_by_place", lambda *a: (right(*a) != 0).float())]


@fault("dispatch", cell("ep", "alltoall", overlap=2))
def second_chunk_lost() -> list[Patch]:
    right = dispatch.overlapped

    def first_only(x: Tensor, *rest: Any) -> Tensor:
        y = right(x, *rest).clone()
        y[len(y) // 2 :] = 0
        return y

    return [(dispatch, "overlapped", first_only)]


@fault("dispatch", cell("ep", "alltoall", hot_replicas=2))
def copies_found_one_place_on() -> list[Patch]:
    right = Places.locate

    def shifted(self: Places, indices: Tensor, first: int) -> Tensor:
        return (right(self, indices, first) + 1) % len(self.experts)

    return [(Places, "locate", shifted)]


@fault("dispatch", cell("ep", "alltoall", placement="round_robin"))
def round_robin_told_and_not_done() -> list[Patch]:
    right = MoELayer.hold

    def contiguous(self: MoELayer, ids: Any, *rest: Any) -> Experts:
        start = self.ep.index * len(ids)
        return right(self, range(start, start + len(ids)), *rest)

    return [(MoELayer, "hold", contiguous)]


@fault("dispatch", cell("ep", "alltoall", comm_dtype="float16"))
def coarser_on_the_wire_than_said() -> list[Patch]:
    right = dispatch.exchange
    return [(dispatch, "exchange", lambda x, *a: right(
        x.bfloat16().to(x.dtype) if x.is_floating_point() else x, *a))]  # fmt: skip


# Bringing results together.


@fault("combine", cell("tp"))
def outputs_not_added_up() -> list[Patch]:
    return [(collectives, "add_up", lambda x, *rest: x)]


@fault("combine", cell("ep", "local"))
def outputs_added_up_twice() -> list[Patch]:
    return [(collectives, "add_up", lambda x, *rest: add_up(add_up(x, *rest), *rest))]


@fault("combine", cell("ep", "alltoall"))
def outputs_of_ranks_in_reverse() -> list[Patch]:
    right = MoELayer.gather_batch
    half = BATCH // 2
    return [(MoELayer, "gather_batch", lambda self, y: right(self, y).roll(half, 0))]


@fault("combine", cell("tp"))
def second_bias_on_every_rank() -> list[Patch]:
    def hold(self: MoELayer, ids: Any, part: int = 0, parts: int = 1) -> Experts:
        width = self.layer.hidden // parts
        return Experts(self.layer, tuple(ids), (part * width, part * width + width),
                       self.comm.device, bias2=True)  # fmt: skip

    return [(MoELayer, "hold", hold)]


@fault("combine", cell(shared_experts=1), cell("tp", shared_experts=1))
def shared_experts_left_out() -> list[Patch]:
    return [(MoELayer, "plus_shared", lambda self, y, x, rows=None: y)]


@fault("combine", cell("ep", "alltoall"), cell("ep", "local", **TRAIN))
def last_token_zero() -> list[Patch]:
    def without(layer: MoELayer, y: Tensor) -> Tensor:
        mask = torch.ones(len(y), 1, dtype=y.dtype)
        mask[-1:] = 0
        return y * mask

    return output_becomes(Ep, without)


@fault("combine", cell())
def wrong_on_the_last_rank_only() -> list[Patch]:
    return output_becomes(Simple, lambda layer, y: y * 1.001 if layer.comm.rank else y)


# Multiplying by the experts.


@fault("kernels", cell(), cell(**TRAIN))
def last_expert_skipped() -> list[Patch]:
    right = Experts.rows

    def without(self: Experts, x: Tensor, counts: RowCounts) -> Tensor:
        mask = torch.ones(len(x), 1)
        mask[sum(counts.on_host[:-1]) :] = 0
        return right(self, x, counts) * mask

    return [(Experts, "rows", without)]


@fault("kernels", cell(activation="gelu"))
def gelu_by_tanh() -> list[Patch]:
    right = activations.activate

    def approximate(h: Tensor, name: str) -> Tensor:
        return F.gelu(h, approximate="tanh") if name == "gelu" else right(h, name)

    return [(experts_module, "activate", approximate)]


@fault("kernels", cell(activation="gelu"))
def gelu_by_tanh_in_a_packed_product() -> list[Patch]:
    right = Experts.use
    fused = {**onednn._FUSED, "gelu": ("gelu", [], "tanh")}
    return [(Experts, "use", lambda self, _: right(self, "packed")), (onednn, "_FUSED", fused)]


@fault("kernels", cell())
def halves_of_the_gated_layer_swapped() -> list[Patch]:
    right = activations.activate
    return [
        (experts_module, "activate", lambda h, n: right(torch.cat(h.chunk(2, -1)[::-1], -1), n))
    ]


@fault("kernels", cell(kernel="bmm"))
def rows_padded_one_place_on() -> list[Patch]:
    right = experts_module._padded_places
    return [(experts_module, "_padded_places", lambda *a: right(*a).roll(1))]


@fault("kernels", cell(kernel="dense"))
def second_bias_without_its_gate() -> list[Patch]:
    right = Experts.dense

    def dense(self: Experts, x: Tensor, gates: Tensor | None) -> Tensor:
        y = right(self, x, gates)
        if gates is None or self.b2 is None:
            return y
        return y - torch.mm(gates, self.b2) + self.b2.mean(0)

    return [(Experts, "dense", dense)]


@fault("kernels", cell())
def weights_of_the_next_expert() -> list[Patch]:
    right = MoELayer.hold
    return [(MoELayer, "hold", lambda self, ids, *rest: right(
        self, [(i + 1) % 8 for i in ids], *rest))]  # fmt: skip


# A product that is a little worse everywhere.


def rounded_rows(dtype: torch.dtype) -> list[Patch]:
    right = Experts.rows
    return [(Experts, "rows", lambda self, x, counts: right(self, x.to(dtype).to(x.dtype), counts))]


@fault("tolerance", cell(dtype="float16"), cell("ep", "alltoall", dtype="float16"))
def bfloat16_in_a_float16_cell() -> list[Patch]:
    return rounded_rows(torch.bfloat16)


@fault("tolerance", cell(), cell("tp"), cell(**TRAIN))
def float16_in_a_float32_cell() -> list[Patch]:
    return rounded_rows(torch.float16)


@fault("tolerance", cell(dtype="bfloat16"))
def sums_in_six_bits() -> list[Patch]:
    def coarse(layer: MoELayer, y: Tensor) -> Tensor:
        return ((y.float() + y.float() * 192) - y.float() * 192).to(y.dtype).mul(1.02)

    return output_becomes(Simple, coarse)


@fault("tolerance", cell())
def off_by_a_hundred_thousandth() -> list[Patch]:
    return output_becomes(Simple, lambda layer, y: y * (1 + 1e-5))


# What is remembered, and what changes with the number of the call.


@fault("state", cell(), cell("ep", "alltoall"))
def first_output_kept_under_inference_mode() -> list[Patch]:
    kept: dict[int, Tensor] = {}

    def cached(original: Any) -> Any:
        def run(self: MoELayer, x: Tensor) -> Tensor:
            if not torch.is_inference_mode_enabled():
                return original(self, x)
            if id(self) not in kept:
                kept[id(self)] = original(self, x)
            return kept[id(self)]

        return run

    return [(kind, "forward", cached(kind.forward)) for kind in (Simple, Ep)]


@fault("state", cell())
def output_kept_by_the_inputs_version() -> list[Patch]:
    kept: dict[Any, Tensor] = {}
    original = Simple.forward

    def run(self: Simple, x: Tensor) -> Tensor:
        key = (id(self), x.data_ptr(), x._version)
        if key not in kept:
            kept[key] = original(self, x).clone()
        return kept[key].clone()

    return [(Simple, "forward", run)]


@fault("state", cell(), cell("ep", "alltoall"))
def output_kept_by_the_inputs_content() -> list[Patch]:
    kept: dict[Any, Tensor] = {}

    def cached(original: Any) -> Any:
        def run(self: MoELayer, x: Tensor) -> Tensor:
            key = (self.comm.rank, float(x.double().sum()))
            if key not in kept:
                kept[key] = original(self, x).clone()
            return kept[key].clone()

        return run

    return [(kind, "forward", cached(kind.forward)) for kind in (Simple, Ep)]


@fault("state", cell(), cell("ep", "alltoall", kernel="auto"))
def rows_kept_by_their_content() -> list[Patch]:
    """What the kernel's choice has seen is then known when the cell is checked."""
    kept: dict[Any, Tensor] = {}
    original = Experts.rows

    def run(self: Experts, x: Tensor, counts: RowCounts) -> Tensor:
        key = (self.ids, tuple(counts.on_host), float(x.double().sum()))
        if key not in kept:
            kept[key] = original(self, x, counts).clone()
        return kept[key]

    return [(Experts, "rows", run)]


@fault("state", cell())
def gates_doubled_under_inference_mode() -> list[Patch]:
    def doubled(router: Router, found: Routing) -> Routing:
        twice = 2.0 if torch.is_inference_mode_enabled() else 1.0
        return replace(found, gates_TK=found.gates_TK * twice)

    return routing_becomes(doubled)


@fault("state", cell(), cell("tp"))
def wrong_unless_watched() -> list[Patch]:
    kinds = (Simple, Tp)
    return [one for kind in kinds for one in output_becomes(
        kind, lambda layer, y: y if layer.seen is not None else y * 1.5)]  # fmt: skip


@fault("state", cell(), cell("ep", "alltoall"))
def rows_rolled_from_the_13th_call() -> list[Patch]:
    return [one for kind in (Simple, Ep)
            for one in output_becomes(kind, from_call(13, lambda y: y.roll(1, 0)))]  # fmt: skip


@fault("state", cell())
def every_fifth_call_wrong() -> list[Patch]:
    calls = itertools.count(1)
    return output_becomes(Simple, lambda layer, y: y * 0.9 if next(calls) % 5 == 0 else y)


@fault("state", cell())
def wrong_on_one_rank_from_the_9th_call() -> list[Patch]:
    change = from_call(9, lambda y: y + 1e-6)
    return output_becomes(Simple, lambda layer, y: change(layer, y) if layer.comm.rank else y)


@fault("state", cell(), cell(**TRAIN))
def input_scaled_in_place() -> list[Patch]:
    def scaled(original: Any) -> Any:
        def run(self: MoELayer, x: Tensor) -> Tensor:
            y = original(self, x)
            x.data.mul_(1.5)
            return y

        return run

    return [(Simple, "forward", scaled(Simple.forward))]


@fault("state", cell())
def weights_that_decay() -> list[Patch]:
    def decayed(layer: MoELayer, y: Tensor) -> Tensor:
        layer.experts.fc1.data.mul_(0.9999)
        return y

    return output_becomes(Simple, decayed)


@fault("state", cell())
def buffer_of_an_earlier_call() -> list[Patch]:
    kept: dict[int, Tensor] = {}

    def stale(layer: MoELayer, y: Tensor) -> Tensor:
        buffer = kept.setdefault(id(layer), y.clone())
        buffer[: len(y) // 2] = y[: len(y) // 2]
        return buffer

    return output_becomes(Simple, stale)


# Copies of a cold cell, and layers that are built again.


@fault("copies", cell(cache="cold"))
def copies_with_zero_weights() -> list[Patch]:
    right = MoELayer.clone

    def zeroed(self: MoELayer) -> MoELayer:
        made = right(self)
        made.experts.fc2.data.zero_()
        return made

    return [(MoELayer, "clone", zeroed)]


@fault("copies", cell(cache="cold", mode="train"))
def copies_with_other_gradients() -> list[Patch]:
    right = MoELayer.clone

    def other(self: MoELayer) -> MoELayer:
        made = right(self)
        made.router.weight_ED.register_hook(lambda grad: grad * 2)
        return made

    return [(MoELayer, "clone", other)]


@fault("copies", cell(), rebuilt=True)
def rebuilt_with_other_weights() -> list[Patch]:
    right, built = build.build, itertools.count(1)

    def other(of: Cell, *rest: Any) -> MoELayer:
        made = right(of, *rest)
        if next(built) > 1:
            made.experts.fc2.data.mul_(1.0001)
        return made

    return [(build, "build", other)]


# Training.


@fault("gradients", cell("tp", **TRAIN))
def outputs_not_added_up_in_training() -> list[Patch]:
    return [(collectives, "add_up", lambda x, *rest: x)]


@fault("gradients", cell(**TRAIN))
def outputs_doubled_beside_the_graph() -> list[Patch]:
    return output_becomes(Simple, lambda layer, y: y + y.detach())


@fault("gradients", cell("ep", "alltoall", **TRAIN))
def loss_on_every_rank() -> list[Patch]:
    return gradient_scaled(Ep, 2.0)


@fault("gradients", cell("ep", "local", **TRAIN), cell("tp", **TRAIN))
def router_gradient_not_added_up() -> list[Patch]:
    return [(kind, "reductions", lambda self: []) for kind in (Ep, Tp)]


@fault("gradients", cell("ep", "alltoall", hot_replicas=4, **TRAIN))
def copies_gradients_not_added_up() -> list[Patch]:
    return [(MoELayer, "_add_up_copies", lambda self, expert: None)]


@fault("gradients", cell(**TRAIN), cell("tp", **TRAIN))
def gradients_that_accumulate() -> list[Patch]:
    return [(nn.Module, "zero_grad", lambda self, set_to_none=True: None)]


@fault("gradients", cell(**TRAIN))
def gradients_of_two_experts_swapped() -> list[Patch]:
    right = PerExpertFunction.backward

    def swapped(ctx: Any, dy: Tensor) -> Any:
        dx, dfc1, *rest = right(ctx, dy)
        dfc1[[0, 1]] = dfc1[[1, 0]]
        return (dx, dfc1, *rest)

    return [(PerExpertFunction, "backward", staticmethod(swapped))]


@fault("gradients", cell(**TRAIN))
def no_gradient_for_half_of_the_tokens() -> list[Patch]:
    original = Simple.forward

    def run(self: Simple, x: Tensor) -> Tensor:
        half = len(x) // 2
        return original(self, torch.cat([x[:half], x[half:].detach()]))

    return [(Simple, "forward", run)]


@fault("gradients", cell(aux_loss=0.1, **TRAIN))
def balancing_loss_forgotten() -> list[Patch]:
    return [(Router, "_balanced", lambda self, gates, logits, indices: gates)]


@fault("gradients", cell("tp", aux_loss=100.0, **TRAIN))
def balancing_loss_on_every_rank() -> list[Patch]:
    right = Tp.scope
    return [(Tp, "scope", lambda self: replace(right(self), copies=1))]


@fault("gradients", cell(aux_loss=1.0, **TRAIN))
def balancing_loss_by_share_of_slots() -> list[Patch]:
    right = balance_loss.shares
    return [(balance_loss, "shares", lambda layer, *rest: right(layer, *rest) / layer.topk)]


@fault("gradients", cell(**TRAIN))
def gradient_lost_at_the_9th_call() -> list[Patch]:
    calls = itertools.count(1)
    right = MoELayer.finish_gradients

    def lost(self: MoELayer) -> None:
        right(self)
        if next(calls) >= 9:
            self.router.weight_ED.grad = torch.zeros_like(self.router.weight_ED)

    return [(MoELayer, "finish_gradients", lost)]


# Tokens that a sample does not see.


@fault("sampling", cell(batch_size=256), cell("ep", "alltoall", batch_size=256))
def rows_outside_the_sample_zero() -> list[Patch]:
    """The sample of a large layer, as it is drawn by the workload's seed."""
    low: list[Patch] = [(sampling, "FLOPS", 1e5)]
    seen = sampling.sample

    def zeroed(layer: MoELayer, y: Tensor) -> Tensor:
        mask = torch.zeros(len(y), 1)
        mask[seen(layer.cell, layer.cell.workload.seed)] = 1
        return y * mask

    return low + [one for kind in (Simple, Ep) for one in output_becomes(kind, zeroed)]


@fault("sampling", cell(batch_size=256, **TRAIN))
def gradients_outside_the_sample_zero() -> list[Patch]:
    original, seen = Simple.forward, sampling.sample

    def run(self: Simple, x: Tensor) -> Tensor:
        mask = torch.zeros(len(x), 1)
        mask[seen(self.cell, self.cell.workload.seed)] = 1
        return original(self, x * mask + (x * (1 - mask)).detach())

    return [(sampling, "FLOPS", 1e5), (Simple, "forward", run)]


# Found by somebody else, after the check was written to catch what is above.


@fault("state", cell("ep", "alltoall"))
def output_given_again_while_nobody_has_looked() -> list[Patch]:
    kept: dict[int, tuple[float, Tensor, Tensor]] = {}
    original = Ep.forward

    def run(self: Ep, x: Tensor) -> Tensor:
        content, last = float(x.double().sum()), kept.get(id(self))
        if last is None or last[0] != content or not torch.equal(last[1], last[2]):
            y = original(self, x)
            kept[id(self)] = content, y, y.clone()
        return kept[id(self)][1]

    return [(Ep, "forward", run)]


@fault("state", cell("ep", "alltoall"))
def counts_exchanged_once_for_a_content() -> list[Patch]:
    kept: dict[Any, list[dispatch.Exchanged]] = {}
    right = dispatch.exchange_counts

    def remembered(slots: list[Slots], way: dispatch.Way) -> list[dispatch.Exchanged]:
        key = (way.group.comm.rank, *(tuple(one.counts.on_host) for one in slots))
        if key not in kept:
            kept[key] = right(slots, way)
        return kept[key]

    return [(dispatch, "exchange_counts", remembered)]


@fault("state", cell("tp"))
def sum_over_ranks_remembered() -> list[Patch]:
    kept: dict[Any, Tensor] = {}

    def remembered(x: Tensor, group: Any, *rest: Any) -> Tensor:
        key = (group.comm.rank, float(x.double().sum()))
        if key not in kept:
            kept[key] = add_up(x, group, *rest).clone()
        return kept[key].clone()

    return [(collectives, "add_up", remembered)]


@fault("state", cell(kernel="bmm", **TRAIN))
def backward_pass_remembered() -> list[Patch]:
    kept: dict[Any, dict[str, Tensor]] = {}
    right = Tensor.backward

    def remembered(self: Tensor, gradient: Tensor | None = None, **rest: Any) -> None:
        key = float(self.detach().double().sum())
        tensors = {str(i): t for i, t in enumerate(leaves)}
        if key in kept:
            for name, tensor in tensors.items():
                tensor.grad = kept[key].get(name, torch.zeros_like(tensor)).clone()
            return
        right(self, gradient, **rest)
        kept[key] = {n: t.grad.clone() for n, t in tensors.items() if t.grad is not None}

    leaves: list[Tensor] = []
    original = Simple.forward

    def run(self: Simple, x: Tensor) -> Tensor:
        leaves[:] = [x, *self.parameters()]
        return original(self, x)

    return [(Simple, "forward", run), (Tensor, "backward", remembered)]


@fault("state", cell())
def choice_sorted_once_for_a_content() -> list[Patch]:
    kept: dict[Any, Any] = {}
    right = permute_module.sort_slots

    def remembered(places: Tensor, held: int, elsewhere: Any) -> Any:
        key = (held, tuple(places.reshape(-1).tolist()))
        if key not in kept:
            kept[key] = right(places, held, elsewhere)
        return kept[key]

    return [(permute_module, "sort_slots", remembered)]


@fault("copies", cell(cache="cold"), cell(cache="cold", mode="train"))
def copies_that_are_the_layer_itself() -> list[Patch]:
    return [(MoELayer, "clone", lambda self: self)]


@fault("gradients", cell("tp", **TRAIN), cell("ep", "local", **TRAIN))
def gradients_added_up_for_the_check_alone() -> list[Patch]:
    finish = MoELayer.finish_gradients

    def told(self: MoELayer) -> dict[str, Tensor]:
        left = {name: p.grad for name, p in self.named_parameters()}
        for parameter in self.parameters():
            parameter.grad = None if parameter.grad is None else parameter.grad.clone()
        finish(self)
        found = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
        for name, parameter in self.named_parameters():
            parameter.grad = left[name]
        return found

    return [(MoELayer, "finish_gradients", lambda self: None), (MoELayer, "named_gradients", told)]


@fault("definitions", cell())
def router_rows_all_alike() -> list[Patch]:
    right = weights.router

    def alike(layer: LayerSpec, *of: Any) -> Tensor:
        return right(layer, *of)[:1].repeat(layer.num_experts, 1)

    return [(weights, "router", alike)]


@fault("definitions", cell(seed=3), cell(weight_seed=3))
def seed_ignored() -> list[Patch]:
    right = weights.uniform_

    def first(out: Tensor, seed: int, *rest: Any, **named: Any) -> Tensor:
        return right(out, 0, *rest, **named)

    return [(weights, "uniform_", first)]


@fault("definitions", cell(**TRAIN))
def cotangents_of_zero() -> list[Patch]:
    right = batches.cotangent
    return [(batches, "cotangent", lambda *a: torch.zeros_like(right(*a)))]


@fault("definitions", cell("ep", "alltoall", tokens="sharded", kind="balanced"))
def balanced_without_traffic() -> list[Patch]:
    """Counts are even, but a rank's tokens all stay on it."""

    def own(of: Cell, bounds: tuple[int, int]) -> Tensor:
        batch, experts, topk = of.workload.batch_size, of.layer.num_experts, of.layer.topk
        marked = torch.zeros(bounds[1] - bounds[0], experts, dtype=torch.bool)
        for row, token in enumerate(range(*bounds)):
            half, place = divmod(token, batch // 2)
            for slot in range(topk):
                marked[row, half * experts // 2 + (place * topk + slot) % (experts // 2)] = True
        return marked

    return [(routings, "MAKERS", {**routings.MAKERS, "balanced": own})]


@fault("definitions", cell(kind="zipf", parameter=1.2))
def zipf_without_its_exponent() -> list[Patch]:
    right = routings.MAKERS["zipf"]

    def flat(of: Cell, bounds: tuple[int, int]) -> Tensor:
        return right(replace(of, workload=replace(of.workload, parameter=1e-9)), bounds)

    return [(routings, "MAKERS", {**routings.MAKERS, "zipf": flat})]


@fault("definitions", cell(dtype="bfloat16"))
def half_precision_told_and_not_done() -> list[Patch]:
    return [(weights, "dtype_of", lambda name: torch.float32)]


@fault("tolerance", cell(dtype="bfloat16", activation="gelu"), cell(dtype="float16",
       activation="gelu"))  # fmt: skip
def gelu_by_tanh_below_the_rounding() -> list[Patch]:
    return gelu_by_tanh()


@fault("tolerance", cell(dtype="bfloat16", **TRAIN))
def gradient_two_percent_large() -> list[Patch]:
    return gradient_scaled(Simple, 1.02)


@fault(
    "tolerance", cell("ep", "alltoall", dtype="bfloat16"), cell(comm_dtype="float16", strategy="tp")
)
def rows_a_little_large() -> list[Patch]:
    return [one for kind in (Ep, Tp)
            for one in output_becomes(kind, lambda layer, y: y * 1.004)]  # fmt: skip
