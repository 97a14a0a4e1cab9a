"""What planning a large sweep adds to Hydra's own composition, in ms a cell and in memory.

    python -m benchmarks.overhead.planning [--cells 10000] [--composed 40]

Hydra takes its time for every job, so that a few are composed by its own loader, as a multirun
does, and the others are copies of theirs with another batch size. `ours` is everything between
composition and the first launch: plain configs, validation, memory check, keys, groups, the frozen
plan on disk.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

import runners.bench  # registers the resolvers that conf/ uses
from runners.config.resolution import Composed, plain
from runners.config.validate import validate
from runners.host.machine import this_machine
from runners.plan import groups
from runners.sweep.progress import Progress
from runners.sweep.settings import settings_of
from runners.sweep.sweep import Sweep

ROOT = Path(__file__).resolve().parents[2]
STRATEGIES = ("simple", "tp", "ep")
assert runners.bench


class Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def compose(count: int, clock: Clock) -> list[DictConfig]:
    """As Hydra composes the jobs of a multirun."""
    found = []
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        loader = GlobalHydra.instance().config_loader()
        whole = loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
        for number in range(count):
            overrides = [f"strategy={STRATEGIES[number % 3]}", f"batch_size={8 + number}"]
            with clock.time("hydra"):
                found.append(loader.load_sweep_config(whole, overrides))
    return found


def ask(configs: list[dict[str, Any]], cells: int) -> list[Composed]:
    """Copies share the parts they do not change, so that memory grows only by what differs."""
    asked = []
    for number in range(cells):
        config = {**configs[number % len(configs)], "batch_size": 8 + number}
        asked.append(Composed(config, [f"batch_size={config['batch_size']}"]))
    return asked


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--composed", type=int, default=40)
    args = parser.parse_args()
    clock = Clock()
    composed = compose(args.composed, clock)
    with clock.time("plain"):
        known: dict[str, Any] = {}
        configs = [plain(config, known) for config in composed]
    del composed
    before, asked = peak_mb(), ask(configs, args.cells)
    with tempfile.TemporaryDirectory() as folder:
        sweep_dir = Path(folder) / "sweep"
        with clock.time("settings"):
            settings = settings_of(configs[0], sweep_dir, "planning")
        machine = this_machine()  # imports torch, once, as every sweep does
        with clock.time("validate"):
            jobs, errors = validate(asked, machine)
        assert not errors, next(iter(errors.values()))
        with clock.time("sweep"):
            sweep = Sweep(list(jobs.values()), settings, Progress())
        with clock.time("plan on disk"):
            sweep.write_plan()
        with clock.time("groups"):
            found = groups(sweep.state.jobs, "group")
    say(clock, args.cells, args.composed, len(sweep.state.jobs), len(found), before)
    return 0


def say(clock: Clock, cells: int, composed: int, kept: int, made: int, before: float) -> None:
    ours = 0.0
    print(f"{cells} cells asked for, {kept} different ones in {made} groups")
    for name, seconds in clock.seconds.items():
        each = seconds / (composed if name in ("hydra", "plain") else cells) * 1e3
        ours += each if name != "hydra" else 0.0
        print(f"  {name:14} {each:8.3f} ms a cell")
    print(f"  {'ours':14} {ours:8.3f} ms a cell beside Hydra's (goal: under 2)")
    print(f"  memory: {peak_mb():.0f} MB at the peak, {before:.0f} before (goal: under 1000)")


if __name__ == "__main__":
    sys.exit(main())
