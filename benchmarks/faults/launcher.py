"""A sweep of three small cells on two ranks without Hydra, with the planted worker.

python -m benchmarks.faults.launcher FOLDER OPTIONS, a JSON object: {mode, measure, tracker, plant,
seeds, world_size, backend}. The last line on stdout is a JSON object with the outcome.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec
from runners.errors import ConfigError
from runners.host import timeout
from runners.launch import local
from runners.plan import Job, Measure
from runners.records import record
from runners.sweep import assemble, resume
from runners.sweep.progress import Progress
from runners.sweep.settings import Settings
from runners.sweep.sweep import Sweep

MEASURE = Measure(
    samples=12, samples_max=12, block=4, warmup=1, warmup_max=1, anchors=0, phases=0,
    calibrate=False, cell_limit_s=60.0,
)  # fmt: skip
STRATEGIES = (
    StrategySpec("simple", kernel="bmm"),
    StrategySpec("tp", kernel="bmm"),
    StrategySpec("ep", dispatcher="alltoall", kernel="bmm"),
)


def jobs(options: dict[str, Any]) -> list[Job]:
    measure = dataclasses.replace(MEASURE, **options.get("measure", {}))
    place = RankLayout(options.get("world_size", 2), options.get("backend", "gloo"))
    return [
        Job(_cell(strategy, seed, place), measure)
        for seed in range(options.get("seeds", 1))
        for strategy in STRATEGIES
    ]


def _cell(strategy: StrategySpec, seed: int, place: RankLayout) -> Cell:
    layer = LayerSpec(
        dim=64, hidden=128, dim_out=64, num_experts=4, topk=2, topk_requested=2, weight_seed=seed
    )
    return Cell(layer, strategy, WorkloadSpec(batch_size=32), place)


def plant(kind: str, folder: Path) -> None:
    """What goes wrong in the launcher itself."""
    timeout.LIMIT_S = 20.0
    if kind == "clock":
        assemble.datetime = BackwardClock()  # type: ignore[assignment]
    elif kind == "blocked_write":
        timeout.LIMIT_S = 3.0
    elif kind == "blocked_log" and any(p.is_fifo() for p in folder.glob("launches/0/samples/*")):
        timeout.LIMIT_S = 0.8  # before a rank has loaded torch and opens the pipe's other end
    if kind == "blocked_write" and not (folder / "blocked").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "blocked").touch()
        record.write_atomic = partial(_blocked, record.write_atomic)
    elif kind == "shared_network":
        local._alone = lambda plan: []


def _blocked(write: Any, path: Path, text: str) -> None:
    """The first record's write never returns, as on a file server that has failed."""
    if path.name.startswith("record-"):
        fifo = path.with_name(".fifo")
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(fifo)
        fifo.open("wb")
    write(path, text)


class BackwardClock:
    """Replaces the module datetime: each reading of the clock is an hour earlier than the last."""

    UTC = datetime.UTC

    def __init__(self) -> None:
        self.datetime = self
        self._at = datetime.datetime.now(datetime.UTC)

    def now(self, zone: datetime.tzinfo) -> datetime.datetime:
        self._at -= datetime.timedelta(hours=1)
        return self._at.astimezone(zone)


def main(folder: Path, options: dict[str, Any]) -> int:
    plant(options.get("plant", ""), folder)
    tracker = options.get("tracker", {"mode": "disabled"})
    settings = Settings(
        folder, tracker=tracker, command="faults", resume_mode=options.get("mode", "")
    )
    planted = partial(local.start, worker="benchmarks.faults.worker")
    with resume.locked(folder):
        result = Sweep(jobs(options), settings, Progress(), planted).run()
    told = {
        **result.counts(),
        "exit_code": result.exit_code,
        "said": [*(message for _, message, _ in result.failures), *result.warnings],
    }
    print(json.dumps(told), flush=True)
    return result.exit_code


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
    except ConfigError as error:
        sys.exit(f"error: {error}")
