"""Why a launch ended: rank, cell and message. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from runners.launch.local import RunningLaunch
from runners.sweep.assemble import Assembler

WATCHDOG = "Timeout ("  # what faulthandler writes above the stacks
WAITING = ("distributed_c10d.py", "mpi/backend.py")  # stack frames of a rank that waits for others
STACKS_BYTES = 1 << 20


class Failure(NamedTuple):
    """The cause of a launch's end."""

    rank: int
    cell: int  # -1: no cell is the cause
    message: str


def find(lines: Assembler, started: RunningLaunch, silent_s: float) -> Failure:
    """The cause of a launch's end, by the first rule that applies. `silent_s` is how long the
    launcher waited for a line before it ended the launch, else 0.

    1. A node was lost, or the ranks' parent was killed by a signal: no cell is the cause.
    2. No rank got beyond its start: no cell is the cause.
    3. Ranks hung, by `silent_s` or a watchdog's stacks: the rank that does not wait for others.
    4. Otherwise exit codes and logged errors decide: Assembler.find_cause.
    """
    if lost := started.lost_node():
        return Failure(0, -1, lost)
    if sign := started.killed_by():
        return Failure(0, -1, f"the ranks' parent died of signal {sign}")
    if all(rank.stage == "start" and not rank.error for rank in lines.ranks):
        waited = f" within {silent_s:g} s" if silent_s else ""
        return Failure(0, -1, f"the ranks did not start{waited}: {_last_line(started.log_path(0))}")
    stacks = {n: _stacks(started.log_path(n)) for n in range(len(lines.ranks))}
    timed_out = [rank for rank, text in stacks.items() if WATCHDOG in text]
    if not silent_s and not timed_out:
        rank, cell, message = lines.find_cause(started.failures())
        return Failure(rank, cell, message)
    stuck = [n for n, text in stacks.items() if text and not any(w in text for w in WAITING)]
    rank = (stuck or timed_out or [0])[0]
    limit_s = silent_s or lines.plan.measure.cell_limit_s
    stalled, stage = lines.ranks[rank], lines.ranks[rank].stage
    message = f"rank {rank} stood still for {limit_s:g} s during {stage}; stacks in the ranks' logs"
    return Failure(rank, stalled.cell, message)


def _last_line(path: Path) -> str:
    return next((line for line in reversed(_stacks(path).split("\n")) if line.strip()), "no word")


def _stacks(path: Path) -> str:
    """The end of a rank's log; "" where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - STACKS_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
