"""A representative of every fault, by the same driver as the counts in docs/results/reliability.md.

One trial is a whole sweep with a fault at a random place, so that a failure names its seed: go on
with `python -m benchmarks.faults --fault NAME --seed ...`.
"""

from __future__ import annotations

import os
import time

import pytest

from benchmarks.faults import trial
from benchmarks.faults.catalogue import FAULTS
from runners.host import timeout

# The others need what a test machine need not have (root, mounts): `make faults` has them all.
USUAL = [name for name, fault in FAULTS.items() if not fault.root or os.geteuid() == 0]
QUICK = ("raise", "exit", "stuck", "nan", "agent", "launcher", "ctrl_c", "disk", "tracker",
         "dead_log", "stranger")  # fmt: skip


@pytest.mark.dist
@pytest.mark.parametrize("name", [name for name in QUICK if name in USUAL])
def test_a_fault_ends_as_stated(name: str) -> None:
    assert trial.run(FAULTS[name], f"test:{name}:{time.time_ns()}").all() == []


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("name", [name for name in USUAL if name not in QUICK])
def test_the_other_faults_end_as_stated(name: str) -> None:
    assert trial.run(FAULTS[name], f"test:{name}:{time.time_ns()}").all() == []


def test_who_waits_for_a_dead_filesystem_gets_an_error_in_time() -> None:
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(TimeoutError, match="the folder: no answer within 0"):
            timeout.call_with_timeout("the folder", lambda: os.read(read_end, 1), 0.05)
    finally:
        os.close(write_end)
        os.close(read_end)


def test_who_need_not_wait_gets_the_answer_or_the_error() -> None:
    assert timeout.call_with_timeout("it", lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        timeout.call_with_timeout("it", lambda: 1 // 0)
