"""Every accepted way to spread the layer computes the same function, gradients included."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.dist import agree_ranks
from tests.support.covering import pairs_of, pairwise
from tests.support.ranks import run_ranks


def check(kind: str, ranks: int, folder: Path, limit_s: float = 280) -> Any:
    rows = agree_ranks.save(agree_ranks.rows_for(kind, ranks), folder / "rows.json")
    return run_ranks("agree_ranks", ranks, str(rows), limit_s=limit_s)


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_all_strategies_agree_with_the_oracle(ranks: int, tmp_path: Path) -> None:
    found = check("pairwise", ranks, tmp_path)
    assert found["cells"] > (150 if ranks > 1 else 30)
    assert found["wrong"] == []
    assert found["worst_float32"]["error"] < 1e-5  # the gate allows 1e-4
    assert 0 < found["worst_float32"]["gradient_error"] < 1e-5


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_whole_product_agrees_with_the_oracle(ranks: int, tmp_path: Path) -> None:
    found = check("full", ranks, tmp_path, limit_s=7000)
    assert found["cells"] > 1000
    assert found["wrong"] == []


def test_every_accepted_pair_and_combination_is_in_the_array() -> None:
    rows, impossible = agree_ranks.covering(2)
    covered = set().union(*map(pairs_of, rows))
    names = sorted(agree_ranks.FACTORS)
    asked = {
        (a, x, b, y)
        for a, b in itertools.combinations(names, 2)
        for x in agree_ranks.FACTORS[a]
        for y in agree_ranks.FACTORS[b]
    }
    assert covered | impossible >= asked
    every = [tuple(row[name] for name in agree_ranks.CROSSED) for row in agree_ranks.every_core(2)]
    assert {tuple(row[name] for name in agree_ranks.CROSSED) for row in rows} == set(every)
    cores = {core for core in agree_ranks.CORE if core[0] != "serial"}
    refused = {("ep", "local", "sharded"), ("ep", "allgather", "replicated"),
               ("ep_tp", "local", "sharded"), ("dp_ep", "local", "sharded"),
               *((name, "allgather", tokens) for name in ("ep_tp", "dp_ep")
                 for tokens in ("replicated", "sharded"))}  # fmt: skip
    assert {row["core"] for row in rows} == cores - refused


def test_pairwise_by_hand() -> None:
    factors = {"a": (0, 1), "b": (0, 1), "c": (0, 1)}
    rows, impossible = pairwise(factors, lambda row: not (row["a"] and row["b"]))
    assert impossible == {("a", 1, "b", 1)}
    assert not any(row["a"] and row["b"] for row in rows)
    assert len(rows) <= 7
