"""transformers' block on the simulated GPU: right, and how often its step waits for the GPU."""

from __future__ import annotations

import pytest

from moe import waits
from moe.build import build
from moe.parallel.comm import Comm
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec
from moe.step import Step
from moe.verify.verifier import Verifier
from moe.workload import batches
from tests.support.fake_cuda import DEVICE, FakeCuda

EXPERTS = 4
# One for the list of experts with tokens; of each of them five: whether there are more, its rows
# (twice), and its two matrices by a number on the GPU.
LOOP = 1 + 5 * EXPERTS


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("variant, dtype, expected", [
    ("grouped_mm", "bfloat16", {"forward": 0, "train": 0}),
    ("grouped_mm", "float32", {"forward": 2, "train": 6}),  # its two products, four more back
    ("batched_mm", "bfloat16", {"forward": 0, "train": 0}),
    ("eager", "bfloat16", {"forward": LOOP, "train": LOOP}),
])  # fmt: skip
def test_waits_of_transformers(
    variant: str, dtype: str, expected: dict[str, int], mode: str
) -> None:
    layer = LayerSpec(
        dim=64, hidden=64, dim_out=64, num_experts=EXPERTS, topk=2, topk_requested=2,
        activation="silu_gated", bias="none", dtype=dtype,
    )  # fmt: skip
    cell = Cell(
        layer,
        StrategySpec("peer_transformers", variant=variant),
        WorkloadSpec(batch_size=32, mode=mode),  # all experts have tokens
        RankLayout(1, "nccl", "cuda", 1),
    )
    with FakeCuda() as gpu:
        comm = Comm(DEVICE, 1, 0)
        step = Step(cell, build(cell, comm), batches.inputs(cell, 0, DEVICE))
        verifier = Verifier(cell, comm)
        proven = verifier.prove([step], 0)
        assert proven.ok, proven.detail
        assert verifier.seen and verifier.seen.routing
        used = verifier.seen.routing.indices_TK.unique()
        assert len(used) == EXPERTS
        with gpu.watching(rows=64):
            step()
        assert len(gpu.waits) == expected[mode], gpu.waits
        assert gpu.host_operations == []
        assert waits.count(step, DEVICE) == expected[mode]
        again = verifier.prove_again([step], 1)
        assert again.ok, again.detail
