"""The exchange of emulated ranks gives what the library's all-to-all gives."""

from __future__ import annotations

from tests.support.ranks import run_ranks


def test_the_exchange_agrees_with_the_library() -> None:
    result = run_ranks("emulated_exchange_ranks", 3)
    assert result == {"right": 3, "ranks": 3, "checks": 13}
