"""runners.worker with a fault planted in one rank, at one stage of one cell of the first launch.

PYTHON_MOE_PLANT is a JSON object: {kind, rank, cell, stage}, or {kind: random, chance, seed} for
faults that come by chance with any cell of any launch. Every kind ends the rank, or spoils what it
computes, in the way of a fault that machines and code really have.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe.layer.experts import Experts
from runners.rank import process_group, worker
from runners.rank.worker import Worker

PLANT: dict[str, Any] = json.loads(os.environ.get("PYTHON_MOE_PLANT", "{}"))
AN_HOUR_S = 3600


def raises() -> None:
    raise ValueError("planted")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exits() -> None:
    os._exit(0)


def sleeps() -> None:
    time.sleep(AN_HOUR_S)


def sleeps_in_c() -> None:
    ctypes.PyDLL(None).sleep(AN_HOUR_S)  # keeps Python's lock: no other thread can run


def out_of_memory() -> None:
    bytearray(1 << 60)


def allocator_fails() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    torch.empty(1 << 30)


def cuda_out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (planted)")


AT_A_STAGE: dict[str, Callable[[], None]] = {
    "raise": raises,
    "kill": killed,
    "exit": exits,
    "stuck": sleeps,
    "stuck_in_c": sleeps_in_c,
    "memory": out_of_memory,
    "allocator": allocator_fails,
    "cuda_memory": cuda_out_of_memory,
}
spoiled = False  # whether what this rank's experts compute is not a number just now


def planted_enter(self: Worker, cell: int, stage: str) -> None:
    global spoiled
    enter(self, cell, stage)
    kind = due(self, cell, stage)
    spoiled = kind == "nan"
    if kind in AT_A_STAGE:
        AT_A_STAGE[kind]()


def due(self: Worker, cell: int, stage: str) -> str:
    """The kind of fault that this rank meets here."""
    if PLANT["kind"] != "random":
        here = (cell, stage) == (PLANT["cell"], PLANT["stage"]) and self.plan.launch == 0
        return PLANT["kind"] if here else ""
    dice = random.Random(f"{PLANT['seed']}:{self.plan.launch}:{cell}")
    mine = dice.randrange(self.place.world_size) == self.place.rank
    come = cell >= 0 and stage == "gate" and dice.random() < PLANT["chance"]
    return dice.choice(["raise", "kill", "exit", "stuck", "memory", "nan"]) if mine and come else ""


def spoil(result: Tensor) -> Tensor:
    return result * float("nan") if spoiled else result


def plant() -> None:
    Worker.enter_stage = planted_enter  # type: ignore[method-assign]
    rows, dense = Experts.rows, Experts.dense
    Experts.rows = lambda *a: spoil(rows(*a))  # type: ignore[method-assign]
    Experts.dense = lambda *a: spoil(dense(*a))  # type: ignore[method-assign]


def step_back() -> None:
    """Replaces this process's time.time: each reading is an hour earlier than the last."""
    told = [time.time()]

    def now() -> float:
        told[0] -= AN_HOUR_S
        return told[0]

    time.time = now


prepare = worker.prepare
enter = Worker.enter_stage


def main(arguments: list[str]) -> int:
    if PLANT.get("kind") == "clock":
        step_back()
    elif PLANT.get("kind") == "stranger" and os.environ["RANK"] == "1":
        os.environ[process_group.TOKEN] = (
            "guessed" if "/launches/0/" in arguments[0] else os.environ[process_group.TOKEN]
        )
    elif PLANT.get("kind") == "random" or os.environ["RANK"] == str(PLANT.get("rank")):
        plant()
    return worker.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
