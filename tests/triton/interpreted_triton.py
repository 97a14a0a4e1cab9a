"""The kernel `triton` in Triton's interpreter: our kernels as moe/layer/triton_experts.py calls
them, beside float64. tests/system/test_triton.py starts this file with TRITON_INTERPRET=1.

In float32 and float16: the interpreter's products of bfloat16 are wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from benchmarks.gpu import blocks
from moe.layer import liger, triton_experts
from moe.parallel import permute
from moe.parallel.comm import Comm
from moe.parallel.permute import RowsElsewhere, _sorted_on_gpu
from moe.spec import StrategySpec
from moe.step import Step
from moe.strategies.simple.layer import Simple
from moe.workload import batches
from tests.support import expert_cases
from tests.support.fake_cuda import DEVICE, FakeCuda

PRODUCTS = triton_experts.PRODUCTS
# The interpreter takes seconds for each: all blocks in one dtype, and another dtype.
FORMS = [*((name, torch.float16) for name in PRODUCTS), ("triton_16", torch.float32)]


@pytest.fixture(autouse=True)
def undefined() -> Iterator[None]:
    with expert_cases.undefined_memory():
        yield


@pytest.mark.parametrize("name, dtype", [form for form in FORMS if form[0] != "triton_narrow"])
@pytest.mark.parametrize("case, elsewhere", expert_cases.CASES)
def test_outputs_and_gradients_are_those_of_float64(
    case: str, elsewhere: RowsElsewhere, name: str, dtype: torch.dtype
) -> None:
    expert_cases.assert_outputs_and_gradients(case, elsewhere, dtype, PRODUCTS[name])


@pytest.mark.parametrize("name, dtype", FORMS)
@pytest.mark.parametrize("counts", expert_cases.COUNTS)
def test_rows_in_expert_order_with_undefined_rows_behind_them(
    counts: list[int], name: str, dtype: torch.dtype
) -> None:
    expert_cases.assert_rows(counts, dtype, PRODUCTS[name])


@pytest.mark.parametrize("group", [1, 3])
def test_every_block_is_computed_once_whatever_the_group(group: int) -> None:
    """Of 11 tiles of rows and 2 blocks of columns."""
    x, fc1, fc2, gates = expert_cases.inputs(80, torch.float16)
    fc1, fc2 = fc1.repeat(1, 4, 1), fc2.repeat(1, 4, 4)
    slots = expert_cases.slots_of([[t % 5, 1] for t in range(80)], "kept")
    name = "triton_16"
    y = liger.of_tokens(x, fc1, fc2, gates, slots, PRODUCTS[name])
    with mock.patch.object(triton_experts, "GROUP", group):
        assert torch.equal(liger.of_tokens(x, fc1, fc2, gates, slots, PRODUCTS[name]), y)
    assert not y.isnan().any()


@pytest.mark.parametrize("gradients", [False, True])
def test_hidden_rows_are_kept_for_gradients_alone(gradients: bool) -> None:
    sizes: list[int] = []
    launch = liger.launch

    def note(kernel: Any, grid: Any, tensors: Any, *rest: Any) -> None:
        sizes.append(max(len(x) * x.shape[-1] for x in tensors[-2:]))
        launch(kernel, grid, tensors, *rest)

    leaves = expert_cases.inputs(10, torch.float32)
    slots = expert_cases.slots_of(expert_cases.CHOICES["even"], "kept")
    with torch.set_grad_enabled(gradients), mock.patch.object(liger, "launch", note):
        liger.of_tokens(*leaves, slots, PRODUCTS["triton_16"])
    assert sizes[0] == 20 * expert_cases.H * (2 if gradients else 1)


def test_rows_are_added_in_float32() -> None:
    """In float16, 2,048 + 1 is 2,048; the sum of 2,048 and two ones is 2,050."""
    rows = torch.tensor([[2048.0], [1.0], [1.0], [torch.nan]], dtype=torch.float16)
    slots = expert_cases.slots_of([[0, 1, 2, 9]], "kept")
    tiles = liger.row_tiles(slots.counts.starts(rows.device), 4, 16, True)
    assert slots.bags is not None
    of = liger.SlotRows(tiles, liger.TILES["liger_16"], False, slots.order_S, slots.order_S,
                        slots.bags)  # fmt: skip
    halves = torch.full((1, 4), 0.5, dtype=torch.float16)
    assert triton_experts.sums(rows, None, of).tolist() == [[2050.0]]
    assert triton_experts.sums(rows, halves, of).tolist() == [[1025.0]]


CHOICES = {
    "one token": [[3, 0, 4]],
    "not all here": [[5, 1], [7, 5], [1, 0], [6, 6]],
    "nothing here": [[5, 9], [6, 5]],
    "one expert": [[2]] * 33,
    "most": [[(t * k) % 7 for k in range(1, 9)] for t in range(32)],
}


@pytest.mark.parametrize("elsewhere", ["kept", "padded"])
@pytest.mark.parametrize("case", CHOICES)
def test_few_slots_are_sorted_as_many_are(case: str, elsewhere: RowsElsewhere) -> None:
    """Rows elsewhere come last, in any order; their experts are any that exist."""
    chosen, experts = torch.tensor(CHOICES[case]), 5
    few = triton_experts.sort_slots(chosen, experts, elsewhere)
    want = _sorted_on_gpu(chosen.clamp(max=experts), experts, elsewhere)
    assert few.bags and want.bags and few.expert_S is not None
    assert few.counts.on_host == want.counts.on_host
    for here, there in (
        (few.counts.starts(chosen.device), want.counts.starts(chosen.device)),
        (few.counts.ends(chosen.device), want.counts.ends(chosen.device)),
        (few.order_S, want.order_S),
        (few.bags.row_N, want.bags.row_N),
        (few.bags.source_S, want.bags.source_S),
        (few.bags.entry_S, want.bags.entry_S),
        (few.expert_S, chosen.flatten().sort()[0].clamp(max=experts - 1)),
    ):
        assert torch.equal(here, there) and here.dtype == there.dtype
    assert (few.num_tokens, few.topk, few.bags.padding) == (
        want.num_tokens, want.topk, want.bags.padding
    )  # fmt: skip


def test_more_slots_are_sorted_by_torch() -> None:
    chosen = torch.tensor([[1, 0]] * 129)
    with mock.patch.object(permute, "sort_slots", lambda *arguments: arguments[1:]):
        assert triton_experts.sort_slots(chosen, 5, "kept") == (5, "kept")
        assert triton_experts.sort_slots(chosen[:9], 5, "cut") == (5, "cut")
        assert triton_experts.sort_slots(chosen[:0], 5, "kept") == (5, "kept")


@pytest.mark.parametrize("name, dispatcher, tokens, graph, mode", [
    ("simple", "local", "sharded", "on", "forward"),
    ("simple", "local", "sharded", "off", "train"),
    ("ep", "local", "replicated", "off", "forward"),
    ("ep", "alltoall", "sharded", "off", "train"),
])  # fmt: skip
def test_a_cell_passes_the_whole_check_without_waits(
    name: str, dispatcher: str, tokens: str, graph: str, mode: str
) -> None:
    strategy = StrategySpec(name, dispatcher, kernel="triton", graph=graph)
    expert_cases.assert_passes_without_waits(strategy, tokens, mode)


def test_a_step_of_one_token_takes_few_launches() -> None:
    """The router's: its weight in half precision, logits, the choice, gates. The experts': slots
    sorted, two products, the sum."""
    with FakeCuda() as gpu:
        cell = expert_cases.cell_of(StrategySpec("simple", kernel="triton"), 1)
        step = Step(cell, Simple(cell, Comm(DEVICE, 1, 0)), batches.inputs(cell, 0, DEVICE))
        step()  # keeps constants
        with gpu.watching():
            step()
    simulation = ("factory", "fill_")  # undefined memory, and how `mm` is computed
    launched = {name: count for name, count in gpu.kernels.items() if name not in simulation}
    assert launched == {"_to_copy": 1, "mm": 1, "sort": 1, "_softmax": 1, "triton": 4}


@pytest.mark.parametrize("mutant", expert_cases.WRONG_TILES)
def test_the_check_catches_wrong_tiles(mutant: Any) -> None:
    strategy = StrategySpec("simple", kernel="triton")
    with mock.patch.object(liger, "row_tiles", mutant):
        assert not expert_cases.checked(strategy, "sharded", "forward")["ok"]


def test_block_sizes_are_timed_and_agree(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(blocks, "FIRST", blocks.FIRST[-2:])
    monkeypatch.setattr(blocks, "SECOND", blocks.SECOND[-2:])
    monkeypatch.setattr(blocks, "sort_slots", _sorted_on_gpu)
    monkeypatch.setattr(blocks, "median_ms", lambda call, device, seconds: call() is None or 1.0)
    blocks.main(["tiny:8"], torch.device("cpu"), torch.float16)
    lines = capsys.readouterr().out.splitlines()
    assert [text.split()[1] for text in lines] == ["fc1"] * 2 + ["fc2"] * 2 + ["whole"] * 7
    assert all(text.endswith(" TFLOP/s") for text in lines), lines
