"""Every fault: how it is put into a sweep, and the outcome that is promised."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.faults import actions
from benchmarks.faults.actions import Trial

STAGES = ("gate", "warm-up", "phases", "round")
OFFLINE = {"mode": "offline", "project": "p", "limit_s": 60}
STUCK = {"cell_limit_s": 3.0}

Hand = Callable[[Trial], None]


@dataclass(frozen=True)
class Fault:
    """`ends` is cells measured, failed, wrong, and the exit code of the launcher; `says` is in what
    it tells the user. With `resumed`, going on with the folder must measure all cells after that;
    the outcome before may then be any. `hand` is what is done to the running sweep from outside."""

    what: str
    outcome: str
    ends: tuple[int, int, int, int]
    says: str = ""
    plant: str = ""  # in a rank, at a random stage of a random cell
    options: dict[str, Any] = field(default_factory=dict)
    hand: Hand = actions.nothing
    before: Hand = actions.nothing
    after: Hand = actions.nothing  # also after a fault that got out of hand: undoes `before`
    resumed: str = ""  # resume_mode
    root: bool = False

    def planted(self, dice: random.Random) -> dict[str, Any]:
        kind = dice.choice(self.plant.split("|"))
        stage = "gate" if kind == "nan" else dice.choice(STAGES)
        return {"kind": kind, "rank": dice.randrange(2), "cell": dice.randrange(3), "stage": stage}


ONE_FAILS = (2, 1, 0, 1)
FAILS = "its cell fails, the others are measured"
RESUMES = "all its processes die; resume measures what is missing"

FAULTS = {
    "raise": Fault("a rank raises", FAILS, ONE_FAILS, "planted", "raise"),
    "kill": Fault("a rank is killed (-9)", FAILS, ONE_FAILS, "signal 9", "kill"),
    "exit": Fault("a rank exits 0 early", FAILS, ONE_FAILS, "ended early", "exit"),
    "stuck": Fault(
        "a rank stands still, in Python or holding its lock",
        f"{FAILS}; every rank's stack is in its log",
        ONE_FAILS, "stood still", "stuck|stuck_in_c", {"measure": STUCK},
        after=actions.look_for_stacks,
    ),
    "memory": Fault(
        "out of memory: Python, allocator under a limit",
        FAILS, ONE_FAILS, "emory", "memory|allocator",
    ),
    "cuda_memory": Fault(
        "out of memory as CUDA reports it (planted exception)",
        FAILS, ONE_FAILS, "CUDA out of memory", "cuda_memory",
    ),
    "nan": Fault(
        "a rank computes NaN", "its cell is wrong and gets no time", (2, 0, 1, 1), "", "nan"
    ),
    "agent": Fault(
        "the ranks' parent (torchrun) is killed (-9)",
        "its ranks die; a new launch measures all cells", (3, 0, 0, 0), hand=actions.kill_agent,
    ),
    "launcher": Fault(
        "the launcher is killed (-9) at any moment", RESUMES, (3, 0, 0, 0),
        hand=actions.kill_launcher, resumed="missing",
    ),
    "launcher_tracking": Fault(
        "the launcher is killed (-9) while its tracker writes",
        "the tracker ends its run and goes too; resume writes the rest", (3, 0, 0, 0),
        options={"tracker": OFFLINE}, hand=actions.kill_launcher_of_tracker, resumed="missing",
    ),
    "ctrl_c": Fault(
        "Ctrl-C once", "the round ends, records are written, exit code 130; resume goes on",
        (3, 0, 0, 0), hand=actions.interrupt, resumed="missing",
    ),
    "ctrl_c_twice": Fault(
        "Ctrl-C twice", "ends at once, exit code 130; what was sampled is kept; resume goes on",
        (3, 0, 0, 0), hand=actions.interrupt_twice, resumed="missing",
    ),
    "terminate": Fault(
        "SIGTERM or SIGHUP", "as Ctrl-C once", (3, 0, 0, 0), hand=actions.terminate,
        resumed="missing",
    ),
    "ports": Fault(
        "every port taken, and no network of its own", "cells fail after three launches, saying so",
        (0, 3, 0, 1), "in use", options={"plant": "shared_network"},
        before=actions.take_all_ports, after=actions.give_ports_back, root=True,
    ),
    "shared_memory": Fault(
        "shared memory full", "gloo does not use it: all cells are measured", (3, 0, 0, 0),
        before=actions.fill_shared_memory, root=True,
    ),
    "disk": Fault(
        "disk full while records are written",
        "the sweep stops and says so, earlier records intact; with room again resume measures all",
        (3, 0, 0, 0), "o space left", before=actions.small_disk,
        hand=actions.until_it_ends_then_grow,
        after=actions.unmount, resumed="failed", root=True,
    ),
    "tracker": Fault(
        "the tracker is killed (-9)", "a warning; all cells are measured", (3, 0, 0, 0), "tracker",
        options={"tracker": OFFLINE}, hand=actions.kill_tracker,
    ),
    "tracker_disk": Fault(
        "the tracker's disk is full", "a warning; all cells are measured", (3, 0, 0, 0), "",
        options={"tracker": OFFLINE}, before=actions.small_tracker_disk, after=actions.unmount,
        root=True,
    ),
    "wandb": Fault(
        "W&B cannot be reached",
        "a warning, runs are written offline; all cells are measured; the key is in no file",
        (3, 0, 0, 0), "", options={"tracker": {**OFFLINE, "mode": "online"}},
        before=actions.no_server, after=actions.look_for_key,
    ),
    "clock": Fault(
        "the wall clock loses an hour at every look", "nothing: no time is taken from it",
        (3, 0, 0, 0), plant="clock", options={"plant": "clock"},
    ),
    "dead_write": Fault(
        "a filesystem that does not answer a record's write",
        "a time-out ends the sweep, which says so; resume measures all",
        (3, 0, 0, 0), "no answer", options={"plant": "blocked_write"}, hand=actions.until_it_ends,
        resumed="missing",
    ),
    "dead_log": Fault(
        "a filesystem that does not answer a rank's log",
        "a time-out ends the sweep, which says so; resume measures all",
        (3, 0, 0, 0), "no answer", options={"plant": "blocked_log"}, before=actions.blocking_log,
        hand=actions.unblock_when_ended, resumed="missing",
    ),
    "stranger": Fault(
        "a process that is not of the launch takes a rank's place",
        "the launch is refused before anything is measured; a new one measures all",
        (3, 0, 0, 0), plant="stranger", after=actions.look_for_refusal,
    ),
}  # fmt: skip
