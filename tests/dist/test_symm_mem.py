"""strategy.dispatcher=symm_mem on a simulated GPU, with a stand-in of torch's two operations
(tests/support/fake_symm_mem.py): right, without a wait, and with the bytes that are planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moe.layer.experts import BY_ENDS
from tests.dist import agree_ranks, symm_mem_ranks
from tests.dist.test_gpu import name_of, wrong
from tests.support.covering import Row
from tests.support.ranks import run_ranks

PLAIN: Row = {
    "router": "plain", "workload": "learned", "spread": "plain", "kernel": "grouped",
    "activation": "silu_gated", "bias": "random", "shared": 0, "batch": 29, "dtype": "bfloat16",
    "mode": "forward",
}  # fmt: skip
CORES = [(name, "symm_mem", tokens) for name in ("ep", "dp_ep", "ep_tp")
         for tokens in ("replicated", "sharded")]  # fmt: skip
UNEVEN: list[Row] = [
    {"workload": "k_hot", "mode": "train"},  # 8 of 12 experts have no rows
    {"workload": "hot_rank", "mode": "train"},
    {"workload": "zipf", "mode": "train", "batch": 3},  # at 4 ranks one has no tokens
    {"batch": 1, "mode": "train"},
    {"router": "capacity", "mode": "train", "workload": "zipf"},
    {"router": "capacity by probability", "mode": "train"},
    {"router": "expert choice", "mode": "train"},
    {"router": "loss", "mode": "train", "shared": 2},
    {"spread": "copies", "mode": "train"},
    {"spread": "explicit", "mode": "train", "bias": "none", "activation": "relu"},
    {"spread": "round robin", "bias": "zero", "activation": "gelu"},
]


def rows_of(ranks: int) -> list[Row]:
    every = [{**PLAIN, "core": core, "mode": mode} for core in CORES[: 2 if ranks == 2 else None]
             for mode in ("forward", "train")]  # fmt: skip
    return every + [{**PLAIN, "core": CORES[1], **row} for row in UNEVEN]


def check(rows: list[Row], ranks: int, folder: Path) -> list[Any]:
    path = agree_ranks.save(rows, folder / "rows.json")
    by_rank = run_ranks("symm_mem_ranks", ranks, str(path))
    return list(zip(rows, zip(*by_rank, strict=True), strict=True))


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_form_is_right_and_never_waits(ranks: int, tmp_path: Path) -> None:
    checked = check(rows_of(ranks), ranks, tmp_path)
    assert wrong(checked) == {}
    every = [(row, rank) for row, by_rank in checked for rank in by_rank]
    assert {name_of(row): rank["waits"] for row, rank in every if rank["waits"]} == {}
    assert {name_of(row): rank["on_host"] for row, rank in every if rank["on_host"]} == {}
    assert all(rank["counted_waits"] == 0 for _, rank in every)
    for row, rank in every:
        assert rank["counted"] == rank["planned"], name_of(row)
        assert rank["kernel"] == "grouped"
        passes = ["there", "back"] * (2 if row["mode"] == "train" else 1)
        assert rank["calls"][: len(passes)] == passes, name_of(row)


@pytest.mark.dist
def test_in_float32_it_is_right(tmp_path: Path) -> None:
    """As the twin of a cell in half precision, whose rounding could hide a fault."""
    rows = [{**PLAIN, "core": core, "dtype": "float32", "mode": "train"} for core in CORES[:2]]
    assert wrong(check(rows, 2, tmp_path)) == {}


@pytest.mark.dist
def test_a_kernel_is_chosen_among_those_that_read_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Triton's kernels there are several, so that one pass is run before the choice."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    row = {**PLAIN, "core": CORES[1], "bias": "none", "dtype": "float16", "workload": "k_hot"}
    checked = check([row], 2, tmp_path)
    assert wrong(checked) == {}
    for _, by_rank in checked:
        assert len({rank["kernel"] for rank in by_rank}) == 1
        assert {rank["kernel"] for rank in by_rank} <= set(BY_ENDS)
        assert all(rank["candidates"] > 1 for rank in by_rank)


@pytest.mark.dist
def test_a_planted_fault_is_wrong(tmp_path: Path) -> None:
    train = {**PLAIN, "core": CORES[1], "mode": "train", "workload": "k_hot"}
    rows = [{**train, "planted": name} for name in symm_mem_ranks.PLANTED]
    found = wrong(check(rows, 2, tmp_path))
    assert len(rows) == 3 and set(found) == {name_of(row) for row in rows}
