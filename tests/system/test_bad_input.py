"""Whatever is typed is run, or refused in one line with exit code 2; nothing starts before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.support import bad_input
from tests.support.examples import examples

ROOT = Path(__file__).resolve().parents[2]
# Each was a traceback or more than a line once, and was found by the test of any overrides.
FOUND = [
    ["~strategy.placement"],
    ["~name"],
    ["~model.router"],
    ["-m", "-3.3e+16", "model.dim=float32"],
    ["-m", "workload=0.0"],
    ["experiment=8"],
    ["model.router.selection_bias=${safe_name:../up}"],
    ["model.router=1"],
    ["strategy.placement=/dev/zero"],
    ["resume=" + "x" * 5000],
    ["name=\udcff"],
    ["label=\n"],
]


@pytest.mark.parametrize("words", FOUND, ids=lambda words: ascii(words)[:40])
def test_what_was_found_once(words: list[str], tmp_path: Path) -> None:
    answer = bad_input.ask(words, tmp_path)
    assert answer.code == 2
    assert bad_input.complaint(words, answer) == ""


@settings(max_examples=examples(40))
@given(words=bad_input.override_lists())
def test_any_overrides(words: list[str], tmp_path: Path) -> None:
    assert bad_input.complaint(words, bad_input.ask(words, tmp_path)) == ""


@pytest.mark.parametrize("words", [["~name"], ["-m", "--nope"], ["resume=../../etc"]])
def test_the_real_program_says_the_same(words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "runners" / "bench.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert list(tmp_path.rglob("launches")) == []
