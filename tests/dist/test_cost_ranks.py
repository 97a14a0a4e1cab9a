"""The cost model against real ranks: bytes as the collectives counted them, FLOPs as torch did."""

from __future__ import annotations

from typing import Any

import pytest

from moe.build import supports
from moe.strategies import names
from tests.dist import cost_ranks
from tests.support.ranks import run_ranks

Found = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module", params=[2, 3, 4], ids=["2 ranks", "3 ranks", "4 ranks"])
def found(request: pytest.FixtureRequest) -> Found:
    made: Found = run_ranks("cost_ranks", request.param)
    assert made.keys() == {name for name, cell in cost_ranks.cells(request.param)}
    assert all(len(ranks) == request.param for ranks in made.values())
    return made


def different(found: Found, field: str) -> list[str]:
    return [
        f"{name} rank {rank}: measured {row[field][0]}, computed {row[field][1]}"
        for name, rows in found.items()
        for rank, row in enumerate(rows)
        if row[field][0] != row[field][1]
    ]


@pytest.mark.dist
def test_bytes_and_calls_of_every_collective_are_as_counted(found: Found) -> None:
    moved = 0
    for name, rows in found.items():
        for rank, row in enumerate(rows):
            measured, computed = row["measured"], row["computed"]
            assert measured.keys() == computed.keys(), (name, rank)
            for collective, values in measured.items():
                assert computed[collective] == pytest.approx(values), (name, rank, collective)
                moved += values[1]
    assert moved > 0


@pytest.mark.dist
def test_flops_are_those_of_the_products_that_ran(found: Found) -> None:
    assert different(found, "flops") == []
    assert any(row["flops"][0] > 0 for rows in found.values() for row in rows)


@pytest.mark.dist
def test_weights_are_those_the_layer_holds(found: Found) -> None:
    assert different(found, "weights") == []


def test_every_strategy_that_is_ready_is_among_the_cells() -> None:
    cells = [cell for _, cell in cost_ranks.cells(2)]
    assert {cell.strategy.name for cell in cells} == set(names())
    for variant in cost_ranks.VARIANTS:
        assert any(name.startswith(f"{variant} |") for name, _ in cost_ranks.cells(2)), variant
    for cell in cells:
        supports(cell)
