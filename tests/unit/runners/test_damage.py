"""Damaged files of every format are named and kept, never trusted, never deleted."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.support import damage
from tests.support.damage import Format
from tests.support.examples import examples


@pytest.mark.parametrize("name", damage.NAMES)
def test_damaged_files(name: str) -> None:
    assert damage.fuzz(name, examples(40), str(time.time_ns())) == []


def test_the_fuzzer_sees_a_reader_that_trusts(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_text("12345")
    trusting = Format(path, lambda: int(path.read_bytes() or b"0"))
    dice = random.Random(1)
    assert any(text.startswith("trusted") for text in (trusting.complaint(dice) for _ in range(50)))


def test_a_line_lost_by_one_rank_never_pairs_samples_of_different_rounds(tmp_path: Path) -> None:
    found = damage.formats(tmp_path)["rank log"]
    lines = found.good.splitlines(keepends=True)
    found.path.write_bytes(b"".join(lines[:5] + lines[6:]))  # round 5 of rank 1
    rows = found.read()
    assert [row[0] for row in rows] == [n for n in range(40) if n != 5]
    assert all(row in found.wanted for row in rows)
