"""Every way to spread the layer on a simulated GPU (tests/support/fake_cuda.py): right, within its
budget of waits, and without work on the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.budget import host_waits
from tests.dist import agree_ranks, gpu_ranks
from tests.support.covering import Row
from tests.support.ranks import run_ranks

RANKS = pytest.mark.parametrize("ranks", [1, 2, 4])


def check(rows: list[Row], ranks: int, folder: Path, limit_s: float = 280) -> list[Any]:
    """For each row what all ranks say of it."""
    path = agree_ranks.save(rows, folder / "rows.json")
    by_rank = run_ranks("gpu_ranks", ranks, str(path), limit_s=limit_s)
    return list(zip(rows, zip(*by_rank, strict=True), strict=True))


def name_of(row: Row) -> str:
    return " ".join(str(value) for value in row.values())


def wrong(checked: list[Any]) -> dict[str, str]:
    return {
        name_of(row): rank["detail"] for row, ranks in checked for rank in ranks if not rank["ok"]
    }


@pytest.mark.dist
@RANKS
def test_every_form_is_right_and_waits_no_more_than_it_must(ranks: int, tmp_path: Path) -> None:
    checked = check(gpu_ranks.every_form(ranks), ranks, tmp_path)
    strategies = {row["core"][0] for row, _ in checked}
    assert strategies >= {"simple", "dp", "tp", "fsdp", "ep", "dp_ep", "ep_tp"}
    assert any(row.get("graph") == "on" for row, _ in checked)
    assert wrong(checked) == {}
    over = {}
    for row, by_rank in checked:
        strategy, dispatcher, _ = row["core"]
        budget = 0 if row.get("graph") else host_waits(strategy, dispatcher, row["kernel"])
        assert budget is not None
        for rank in by_rank:
            assert rank["counted"] == len(rank["waits"]), name_of(row)
            if len(rank["waits"]) > budget:
                over[name_of(row)] = rank["waits"]
    assert over == {}
    assert {name_of(row): r["on_host"] for row, rs in checked for r in rs if r["on_host"]} == {}


@pytest.mark.dist
def test_ligers_kernels_are_right_on_two_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    rows = gpu_ranks.with_liger(2)
    assert {row["core"][0] for row in rows} >= {"simple", "dp", "tp", "fsdp", "ep", "dp_ep"}
    checked = check(rows, 2, tmp_path)
    assert wrong(checked) == {}
    for row, by_rank in checked:
        strategy, dispatcher, _ = row["core"]
        budget = host_waits(strategy, dispatcher, "liger")
        assert budget is not None
        assert max(len(rank["waits"]) for rank in by_rank) <= budget, name_of(row)


@pytest.mark.dist
@RANKS
def test_routers_kernels_dtypes_and_placements_are_right(ranks: int, tmp_path: Path) -> None:
    rows = gpu_ranks.mixed(ranks)
    for factor in ("router", "kernel", "dtype", "activation", "bias", "batch"):
        assert {row[factor] for row in rows} == set(agree_ranks.FACTORS[factor]), factor
    checked = check(rows, ranks, tmp_path)
    assert wrong(checked) == {}
    assert {name_of(row): r["on_host"] for row, rs in checked for r in rs if r["on_host"]} == {}
    by_torch = [row["kernel"] == "grouped" and row["dtype"] != "bfloat16" for row in rows]
    waited = [max(len(rank["waits"]) for rank in by_rank) for _, by_rank in checked]
    ours = [count for count, torchs in zip(waited, by_torch, strict=True) if not torchs]
    assert max(ours) <= 2  # kernels that loop wait for counts too


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(3600)
@RANKS
def test_the_whole_array_is_right(ranks: int, tmp_path: Path) -> None:
    checked = check(agree_ranks.covering(ranks)[0], ranks, tmp_path, limit_s=3000)
    assert wrong(checked) == {}
