"""What a cell takes on a GPU, added up by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from moe import cost
from moe.cost import gpu_memory
from moe.cost.load import fullest
from moe.cost.work import padded_bytes
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec

GIB = 1 << 30
# 16 tokens of 2 of 8 experts; an expert: 4 x 6 and 6 x 10 numbers of 4 bytes.
LAYER = LayerSpec(dim=4, hidden=6, dim_out=10, num_experts=8, topk=2, topk_requested=2, bias="none")
ROUTER, EXPERT = 8 * 4 * 4, (4 * 6 + 6 * 10) * 4
WEIGHTS = ROUTER + 8 * EXPERT
ENDS = 16 * (4 + 10) * 4
MATRICES = EXPERT // 4 * (4 + 8)  # of one expert, in float64
FULLEST = 4 + math.sqrt(2 * 4 * math.log(8))  # of 32 slots, 4 an expert
CHECK = 16 * 14 * (4 + 4 + 8) + 32 * 16 * 8 + 4 * FULLEST * (4 + 6 + 6 + 10) + MATRICES


def cell(kernel: str = "grouped", mode: str = "forward", cache: str = "warm") -> Cell:
    work = WorkloadSpec(batch_size=16, mode=mode, cache=cache)
    place = RankLayout(1, "nccl", "cuda")
    return Cell(LAYER, StrategySpec("simple", kernel=kernel), work, place)


def step(of: Cell) -> float:
    """What a step adds to weights and gradients."""
    kept = cost.weight_bytes(of) * (2 if of.workload.mode == "train" else 1)
    return cost.peak_bytes(of, cost.expected(of)) - kept


def test_a_forward_step_keeps_weights_its_ends_and_the_snapshot_of_them() -> None:
    of = cell()
    assert cost.weight_bytes(of) == WEIGHTS
    assert gpu_memory.kept_bytes(of) == WEIGHTS + 2 * ENDS
    assert step(of) < CHECK
    assert gpu_memory.needed_bytes(of) == pytest.approx(GIB + WEIGHTS + 2 * ENDS + CHECK)


def test_training_keeps_gradients_twice_as_a_gpus_snapshot_has_them() -> None:
    of = cell(mode="train")
    assert gpu_memory.kept_bytes(of) == 3 * WEIGHTS + 4 * ENDS
    check = 2 * 16 * 14 * 16 + 32 * 16 * 8 + 8 * FULLEST * 26 + EXPERT // 4 * 16
    assert check > step(of)
    assert gpu_memory.needed_bytes(of) == pytest.approx(GIB + 3 * WEIGHTS + 4 * ENDS + check)


def test_a_cold_cell_has_at_least_two_sets_and_one_snapshot() -> None:
    assert gpu_memory.kept_bytes(cell(cache="cold")) == 2 * (WEIGHTS + ENDS) + ENDS
    assert gpu_memory.kept_bytes(cell(mode="train", cache="cold")) == 2 * (
        2 * WEIGHTS + 2 * ENDS
    ) + (WEIGHTS + 2 * ENDS)


def test_choosing_among_kernels_takes_one_matrix_of_all_experts_again() -> None:
    # experts of 60 x 6 and 6 x 100 numbers, and one token: the step and its check are small beside
    wide = replace(LAYER, dim=60, dim_out=100)
    of = replace(cell("auto"), layer=wide, workload=WorkloadSpec(batch_size=1))
    ends, matrix = (60 + 100) * 4, 8 * 6 * 100 * 4
    tuning = cost.weight_bytes(of) + ends + step(of) + matrix
    assert gpu_memory.needed_bytes(of) == pytest.approx(GIB + tuning)
    grouped = replace(of, strategy=StrategySpec("simple", kernel="grouped"))
    assert gpu_memory.needed_bytes(grouped) < GIB + tuning


def test_kernels_that_pad_count_where_they_are_asked_for() -> None:
    load = cost.expected(cell())
    assert padded_bytes(cell("auto"), load) == padded_bytes(cell("grouped"), load) == 0
    assert padded_bytes(cell("bmm"), load) == pytest.approx(8 * FULLEST * (4 + 6 + 6 + 10) * 4)
    assert padded_bytes(cell("dense"), load) == 8 * 16 * (6 + 6) * 4


def test_symmetric_memory_is_kept_and_a_step_has_all_rows_it_has_room_for() -> None:
    work = WorkloadSpec(batch_size=16, tokens="sharded")
    place = RankLayout(2, "nccl", "cuda")
    plain = Cell(LAYER, StrategySpec("ep", "alltoall", kernel="grouped"), work, place)
    of = replace(plain, strategy=replace(plain.strategy, dispatcher="symm_mem"))
    symmetric = 2 * (17 + 36) * 40 + 512 * 2**20  # test_cost.py has these rows
    assert gpu_memory.kept_bytes(of) == gpu_memory.kept_bytes(plain) + symmetric
    wide = {  # where a step is larger than the check
        one: replace(one, layer=replace(LAYER, hidden=600), workload=replace(work, batch_size=1600))
        for one in (plain, of)
    }
    steps = [
        gpu_memory.needed_bytes(wide[one]) - gpu_memory.kept_bytes(wide[one]) for one in (plain, of)
    ]
    # 3,204 rows instead of 1,600, of 4 + 600 + 600 numbers
    assert steps[1] - steps[0] == pytest.approx(1604 * 1204 * 4)


def test_the_fullest_expert_is_above_the_mean_and_has_at_most_all_slots() -> None:
    assert fullest(32, 1) == 32
    assert fullest(1, 8) == pytest.approx(1 / 8 + math.sqrt(math.log(8) / 4))
    assert fullest(0.5, 64) == pytest.approx(0.5 / 64 + math.sqrt(math.log(64) / 64))
    assert fullest(2, 1000) == pytest.approx(0.002 + math.sqrt(0.004 * math.log(1000)))
    assert fullest(0.001, 8) == 0.001
    assert fullest(80_000, 8) == pytest.approx(10_000 + math.sqrt(20_000 * math.log(8)))


def test_a_shard_of_the_weights_is_checked_with_all_gradients_gathered() -> None:
    four = RankLayout(4, "nccl", "cuda")
    of = Cell(LAYER, StrategySpec("fsdp", kernel="grouped"),
              WorkloadSpec(batch_size=16, mode="train"), four)  # fmt: skip
    forward = replace(of, workload=WorkloadSpec(batch_size=16))
    gathered = 4 * cost.weight_bytes(of)
    assert gpu_memory._check_bytes(of) == pytest.approx(
        2 * 16 * 14 * 16 + 32 * 16 * 8 + 8 * FULLEST * 26 + EXPERT // 4 * 16 + gathered
    )
    assert gpu_memory._check_bytes(forward) == pytest.approx(CHECK)
