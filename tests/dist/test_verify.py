"""The gate on real ranks: right strategies pass, every mutant is caught."""

from __future__ import annotations

from typing import Any

import pytest

from tests.dist import verify_ranks
from tests.support.ranks import run_ranks


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def verdicts(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    found = run_ranks("verify_ranks", request.param)
    assert isinstance(found, dict)
    return found


@pytest.mark.dist
def test_every_mutant_is_caught_at_every_dtype_and_batch(
    verdicts: dict[str, dict[str, Any]],
) -> None:
    mutants = {name: v for name, v in verdicts.items() if name.startswith("mutant")}
    assert len(mutants) == 7 * 3 * 3
    assert [name for name, verdict in mutants.items() if verdict["ok"]] == []


@pytest.mark.dist
def test_every_broken_rule_and_gradient_is_caught(verdicts: dict[str, dict[str, Any]]) -> None:
    rules = {name: v for name, v in verdicts.items() if name.startswith("rule")}
    assert len(rules) == len(verify_ranks.RULE_MUTANTS) * 3 * 2
    assert [name for name, verdict in rules.items() if verdict["ok"]] == []
    details = {name.split(" float32")[0]: v["detail"] for name, v in rules.items()}
    for name in ("doubles gradients", "forgets the router", "forgets copies", "loss on every rank"):
        assert details[f"rule {name}"] == "gradients differ from the oracle's"


@pytest.mark.dist
def test_every_right_strategy_agrees_with_the_oracle(verdicts: dict[str, dict[str, Any]]) -> None:
    right = {name: v for name, v in verdicts.items() if name.startswith("right")}
    assert len(right) == (5 * 2 - 1) * 3 * 4 * 2
    assert {name: v for name, v in right.items() if not v["ok"]} == {}
    assert all(v["error"] <= v["tolerance"] and v["tokens_checked"] > 0 for v in right.values())
