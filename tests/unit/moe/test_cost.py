"""The cost model by hand: examples small enough to count, and what must hold of any cell."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe import cost
from moe.cost import load as loads
from moe.cost import work
from moe.parallel.comm import Comm
from moe.spec import Cell, LayerSpec, RankLayout, RouterSpec, StrategySpec, WorkloadSpec
from moe.strategies import rules_of
from moe.strategies.simple.layer import Simple
from moe.workload import batches
from runners.records import flat_row

# 16 tokens of 2 of 8 experts: 32 slots. An expert: 4 x 6 and 6 x 10 numbers.
LAYER = LayerSpec(dim=4, hidden=6, dim_out=10, num_experts=8, topk=2, topk_requested=2, bias="none")


def cell(
    name: str,
    ranks: int = 2,
    dispatcher: str = "local",
    tokens: str = "sharded",
    mode: str = "forward",
    layer: LayerSpec = LAYER,
    **degrees: int,
) -> Cell:
    work_ = WorkloadSpec(batch_size=16, tokens=tokens, mode=mode)
    strategy = StrategySpec(name=name, dispatcher=dispatcher, **degrees)
    return Cell(layer, strategy, work_, RankLayout(world_size=ranks))


def sent(
    of: Cell, rank: int = 0, skew: float = 1.0, exchanged: dict[str, int] | None = None
) -> dict[str, float]:
    calls = cost.collectives(of, cost.expected(of, rank, skew), rank, exchanged)
    return {f"{call.collective} {call.purpose}": call.sent_bytes for call in calls}


def test_flops_count_multiply_and_add_of_every_product() -> None:
    of = cell("simple", tokens="replicated")
    load = cost.expected(of)
    assert load.slots == 32
    assert cost.expert_flops(of, load) == 2 * 32 * (4 * 6 + 6 * 10)
    assert cost.router_flops(of) == 2 * 16 * 8 * 4
    gated = dataclasses.replace(LAYER, activation="silu_gated")
    assert cost.expert_elements(gated) == 2 * 4 * 6 + 6 * 10
    train = dataclasses.replace(of, workload=dataclasses.replace(of.workload, mode="train"))
    assert cost.step_flops(train, load) == 3 * cost.step_flops(of, load)


def test_bytes_of_dp_tp_and_ep_local_by_hand() -> None:
    assert sent(cell("simple")) == {}
    # own 8 tokens x 10 numbers x 4 bytes to one other rank
    assert sent(cell("dp", tokens="replicated")) == {"all_gather combine": 8 * 10 * 4}
    # ring of 4: 2 * 3/4 of 16 tokens x 10 numbers x 4 bytes
    whole = 16 * 10 * 4
    tp, ep = cell("tp", 4, tokens="replicated", layer=_wide()), cell("ep", 4, tokens="replicated")
    for of in (tp, ep):
        assert sent(of, exchanged=_up_to(whole - 1)) == {"all_reduce combine": 1.5 * whole}


def _up_to(size: int) -> dict[str, int]:
    return {"all_reduce": size, "all_gather": size}


def test_a_small_message_goes_to_everybody_on_gloo_alone() -> None:
    whole = 16 * 10 * 4  # bytes, to each of the 3 others
    of = cell("ep", 4, tokens="replicated")
    assert sent(of) == sent(of, exchanged=_up_to(whole)) == {"all_reduce combine": 3 * whole}
    mpi = dataclasses.replace(of, placement=dataclasses.replace(of.placement, backend="mpi"))
    assert sent(mpi) == {"all_reduce combine": 1.5 * whole}
    (call,) = cost.collectives(of, cost.expected(of))
    assert (call.algorithm, call.messages) == ("exchange", 3)
    (call,) = cost.collectives(mpi, cost.expected(mpi))
    assert (call.algorithm, call.messages) == ("library", 6)


def test_a_smaller_group_exchanges_by_the_table_whatever_all_ranks_do() -> None:
    of = cell("dp_ep", 4, tokens="replicated", ep=2)
    calls = cost.collectives(of, cost.expected(of), 0, _up_to(0))
    assert {call.group.size for call in calls} == {2}
    assert {call.algorithm for call in calls} == {"exchange"}


def _wide() -> LayerSpec:
    return dataclasses.replace(LAYER, hidden=8)


def test_bytes_of_dispatch_by_hand() -> None:
    # 8 own tokens, 2 slots each, half of them on the other rank: 8 rows there and 8 back
    found = sent(cell("ep", 2, "alltoall"))
    assert found["all_to_all counts"] == 4 * 8  # a count for each of the other's 4 experts
    assert found["all_to_all dispatch"] == pytest.approx(8 * 4 * 4)
    assert found["all_to_all combine"] == pytest.approx(8 * 10 * 4)


def test_bytes_through_symmetric_memory_by_hand() -> None:
    plain = sent(cell("ep", 2, "alltoall", mode="train"))
    found = sent(cell("ep", 2, "symm_mem"))
    # a number and an offset for each of the other's 4 experts, ahead of both exchanges of rows
    assert found["all_to_all counts"] == 2 * 4 * 16
    assert found["all_to_all dispatch"] == plain["all_to_all dispatch"]
    assert found["all_to_all combine"] == plain["all_to_all combine"]
    train = cell("ep", 2, "symm_mem", mode="train")
    calls = cost.collectives(train, cost.expected(train))
    counts = [(call.calls, call.sent_bytes) for call in calls if call.purpose == "counts"]
    assert counts == [(2, 128), (2, 128)]  # forward, backward
    assert [call.purpose for call in calls].count("backward") == 2


def test_symmetric_memory_has_room_for_the_worst_routing() -> None:
    of = cell("ep", 2, "symm_mem")
    # 8 tokens here of 2 slots, and a row for those that are dropped. At worst all of the 2 ranks'
    # 16 tokens have both slots here, and 3 of 4 experts without rows have one of padding.
    room = rules_of("ep").room(of)
    assert room == (8 * 2 + 1, 16 * 2 + 4, 10 * 4, 4)
    assert room.bytes == 2 * (17 + 36) * 40
    one_expert = dataclasses.replace(LAYER, num_experts=2)
    assert rules_of("ep").room(cell("ep", 2, "symm_mem", layer=one_expert)).rows == 16 + 1
    choice = dataclasses.replace(LAYER, router=RouterSpec(kind="expert_choice"))
    assert rules_of("ep").room(cell("ep", 2, "symm_mem", layer=choice))[:2] == (65, 16 * 4 + 4)
    uneven = cell("dp_ep", 4, "symm_mem", ep=2)
    uneven = dataclasses.replace(uneven, workload=WorkloadSpec(batch_size=5, tokens="sharded"))
    assert rules_of("dp_ep").room(uneven)[:2] == (2 * 2 + 1, 2 * 2 * 2 + 4)  # on every rank


def test_dedup_sends_a_token_once_per_rank() -> None:
    # both of a token's experts on the other rank: (4 choose 2) / (8 choose 2) = 6/28, at least one
    # there: 1 - 6/28 = 22/28
    assert cost.hit_probability(8, 2, 4) == pytest.approx(22 / 28)
    of = cell("ep", 2, "dedup")
    load = cost.expected(of)
    assert load.sent == pytest.approx(8 * 22 / 28)
    assert load.slots == pytest.approx(16)
    expected = sent(of)["all_to_all dispatch"]  # gates: 4 experts x float32; the later call is kept
    assert expected == pytest.approx(load.sent * 4 * 4)


def test_skew_sends_more_to_the_hot_rank_and_less_from_it() -> None:
    of = cell("ep", 4, "alltoall")
    even, hot = cost.expected(of), cost.expected(of, skew=2.0)
    assert hot.slots == 2 * even.slots
    assert hot.received == 2 * even.received
    assert hot.sent < even.sent
    with pytest.raises(ValueError, match="skew"):
        cost.expected(of, skew=4.5)


def test_training_adds_what_comes_back_and_the_gradients() -> None:
    found = cost.collectives(cell("dp", 2, tokens="replicated", mode="train"), cost.Load(16))
    gradients = [c for c in found if c.purpose == "gradients"]
    elements = 8 * (4 * 6 + 6 * 10)
    assert sum(c.sent_bytes for c in gradients) == 4 * (elements + 8 * 4)  # 2 * 1/2 of the weights
    assert [c.sent_bytes for c in found if c.purpose == "backward"] == [16 * 4 * 4]


def test_fsdp_gathers_all_weights_and_scatters_their_gradients() -> None:
    of = cell("fsdp", 4, mode="train")
    shard = math.ceil((8 * (4 * 6 + 6 * 10) + 8 * 4) / 4) * 4
    assert cost.weight_bytes(of) == shard
    assert sent(of) == {
        "all_gather dispatch": 3 * shard,
        "all_gather backward": 3 * shard,
        "reduce_scatter backward": 3 * shard,
    }


def test_groups_say_how_far_apart_their_ranks_are() -> None:
    layer = dataclasses.replace(LAYER, hidden=8)
    of = cell("ep_tp", 8, "alltoall", layer=layer, ep=4, tp=2)
    groups = {c.group.name: (c.group.size, c.group.stride) for c in cost.collectives(
        of, cost.expected(of))}  # fmt: skip
    assert groups == {"tp": (2, 1), "ep": (4, 2)}
    of = cell("dp_ep", 8, "alltoall", mode="train", ep=4)
    groups = {c.group.name: (c.group.size, c.group.stride) for c in cost.collectives(
        of, cost.expected(of))}  # fmt: skip
    assert groups == {"ep": (4, 1), "dp": (2, 4), "world": (8, 1)}


def test_weights_are_shared_out_by_the_degrees() -> None:
    router = 8 * 4 * 4
    whole = 8 * (4 * 6 + 6 * 10) * 4
    assert cost.weight_bytes(cell("simple")) == whole + router
    assert cost.weight_bytes(cell("ep", 4, "alltoall")) == whole / 4 + router
    assert cost.weight_bytes(cell("tp", 2)) == whole / 2 + router


@pytest.mark.parametrize("activation", ["relu", "identity", "gelu", "silu_gated"])
def test_activations_are_what_autograd_keeps(activation: str) -> None:
    """Tensors saved for the backward pass by the layer itself, weights left out."""
    layer = LayerSpec(dim=64, hidden=128, dim_out=64, activation=activation)
    work_ = WorkloadSpec(batch_size=512, tokens="sharded", mode="train")
    of = Cell(layer, StrategySpec(kernel="loop"), work_, RankLayout(world_size=1))
    comm = Comm(torch.device("cpu"), 1, 0)
    made, x = Simple(of, comm), batches.inputs(of, 0, comm.device)
    weights = {p.untyped_storage().data_ptr() for p in made.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(saved: torch.Tensor) -> torch.Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        made(x)
    total = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)
    assert cost.activation_bytes(of, cost.expected(of)) == pytest.approx(total, rel=0.02)


NAMES = st.sampled_from(["simple", "dp", "tp", "ep", "ep_tp", "dp_ep", "fsdp"])


@given(
    name=NAMES,
    dispatcher=st.sampled_from(["alltoall", "dedup"]),
    tokens=st.sampled_from(["replicated", "sharded"]),
    mode=st.sampled_from(["forward", "train"]),
    batch=st.integers(1, 300),
    ranks=st.sampled_from([1, 2, 4, 8]),
    topk=st.integers(1, 8),
)
@settings(max_examples=200)
def test_what_all_ranks_send_is_what_they_receive(
    name: str, dispatcher: str, tokens: str, mode: str, batch: int, ranks: int, topk: int
) -> None:
    layer = dataclasses.replace(LAYER, hidden=8, topk=topk, topk_requested=topk)
    strategy = StrategySpec(name=name, dispatcher=dispatcher if "ep" in name else "local")
    work_ = WorkloadSpec(batch_size=batch * ranks, tokens=tokens, mode=mode)
    of = Cell(layer, strategy, work_, RankLayout(world_size=ranks))
    calls = [call for rank in range(ranks)
             for call in cost.collectives(of, cost.expected(of, rank), rank)]  # fmt: skip
    assert sum(c.sent_bytes for c in calls) == pytest.approx(sum(c.received_bytes for c in calls))
    assert all(c.sent_bytes >= 0 and c.group.size > 1 for c in calls)
    slots = sum(cost.expected(of, rank).slots for rank in range(ranks))
    copies = ranks if name == "simple" and tokens == "replicated" else 1
    parts = loads.degrees(of).tp
    assert slots == pytest.approx(batch * ranks * topk * copies * parts)


@given(batch=st.integers(1, 200), more=st.integers(1, 200), name=NAMES)
@settings(max_examples=100)
def test_nothing_gets_cheaper_with_more_tokens(batch: int, more: int, name: str) -> None:
    dispatcher = "alltoall" if "ep" in name else "local"

    def figures(tokens: int) -> list[float]:
        of = Cell(
            dataclasses.replace(LAYER, hidden=8), StrategySpec(name=name, dispatcher=dispatcher),
            WorkloadSpec(batch_size=tokens, tokens="sharded", mode="train"),
            RankLayout(world_size=4),
        )  # fmt: skip
        load = cost.expected(of)
        total = sum(c.sent_bytes + c.received_bytes for c in cost.collectives(of, load))
        return [cost.step_flops(of, load), total, cost.peak_bytes(of, load), load.touched]

    few, many = figures(batch), figures(batch + more)
    assert all(b >= a - 1e-9 for a, b in zip(few, many, strict=True))
    assert work.weight_bytes(cell("ep", 4)) > 0


def test_a_row_of_the_analysis_is_the_cell_again() -> None:
    of = cell("ep_tp", 8, "alltoall", "replicated", "train", ep=4, tp=2)
    strategy = dataclasses.replace(of.strategy, placement="explicit", expert_order=tuple(range(8)))
    of = dataclasses.replace(of, strategy=strategy)
    assert flat_row.cell_of(flat_row.flat_config(of)) == of
    assert flat_row.cell_of({}) == Cell()
