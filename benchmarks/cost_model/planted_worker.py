"""runners.worker where a cell's label says what is planted into its steps: see
benchmarks.cost_model.planted. The size of what is planted is timed here by itself where it is not
the label's."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe.layer.base import MoELayer
from moe.layer.experts import Experts
from moe.layer.router import Routing
from moe.parallel.comm import RankGroup
from moe.parallel.row_counts import RowCounts
from runners.rank import worker
from runners.rank.cells import CellRunner

EXPERT, BYTES, SKEW, HOST = "expert", "bytes", "skew", "host"
SLOW_RANK = "1"
REPEATS = 51
SPIN_S = 0.001  # a sleep ends this long before, since it lasts longer than it is asked to

rows, route, build, inspect = Experts.rows, MoELayer.route, CellRunner.build, CellRunner.inspect
exchange = RankGroup.all_to_all
kind, amount_ms = "", 0.0  # what is planted into the step that runs now
rooms: dict[tuple[int, ...], Tensor] = {}

prepare = worker.prepare


def planted(label: str) -> tuple[str, float]:
    """("expert", 8.0) of "expert-8"; an empty kind for a plain cell."""
    name, _, amount = label.partition("-")
    return (name, float(amount)) if amount else ("", 0.0)


def timed_file(launch_dir: Path, label: str) -> Path:
    """Where the size of what is planted is written, in ms."""
    return launch_dir / f"planted-{label}.json"


def until(deadline: float) -> None:
    while time.perf_counter() < deadline:
        pass


def slow_rows(self: Experts, x_SD: Tensor, counts: RowCounts) -> Tensor:
    """An expert of one rank takes longer: the core is busy."""
    if kind == EXPERT and os.environ["RANK"] == SLOW_RANK:
        until(time.perf_counter() + amount_ms / 1e3)
    return rows(self, x_SD, counts)


def waiting_route(self: MoELayer, x_TD: Tensor) -> Routing:
    """The host sleeps before the router, in no phase, on every rank."""
    if kind == HOST:
        deadline = time.perf_counter() + amount_ms / 1e3
        time.sleep(max(0.0, amount_ms / 1e3 - SPIN_S))
        until(deadline)
    return route(self, x_TD)


def doubled(
    self: RankGroup, x: Tensor, received: Sequence[int], sent: Sequence[int], wait: bool = True
) -> Any:
    """All rows are sent twice; counts of rows are not."""
    if x.is_floating_point() and kind == BYTES:
        x, out = x.contiguous(), room(x, sum(received))
        rows = [sum(of) - of[self.index] for of in (sent, received)]
        moved = [count * x.element_size() * x[0].numel() for count in rows]
        self.comm.count("all_to_all", self.name, *moved, max(moved))
        self.line_up()
        self._exchange(out, x, list(received), list(sent))
    return exchange(self, x, received, sent, wait)


def room(x: Tensor, length: int) -> Tensor:
    """Kept memory for such rows, so that none is mapped anew for what is planted."""
    shape = (length, *x.shape[1:])
    if shape not in rooms:
        rooms[shape] = torch.zeros(shape, dtype=x.dtype)
    return rooms[shape]


class Planted:
    """A step with what its label asks for."""

    def __init__(self, call: Callable[[], None], label: str) -> None:
        self.call, self.plan = call, planted(label)

    def __call__(self) -> None:
        with planting(*self.plan):
            self.call()


@contextmanager
def planting(name: str, amount: float) -> Iterator[None]:
    global kind, amount_ms
    kind, amount_ms = name, amount
    try:
        yield
    finally:
        kind, amount_ms = "", 0.0


def planted_build(self: CellRunner, index: int) -> None:
    fresh = index not in self.built
    build(self, index)
    if fresh:
        built = self.built[index]
        built.call = Planted(built.call, self.plan.labels[index])


def planted_inspect(self: CellRunner, index: int) -> None:
    """Also times what is planted by itself, for its true size."""
    inspect(self, index)
    label = self.plan.labels[index]
    if label.partition("-")[0] != SKEW:
        return
    value = _experts_ms(self, index)
    if self.comm.rank == 0:
        timed_file(Path(self.plan.launch_dir), label).write_text(json.dumps(value), "utf-8")


def _experts_ms(self: CellRunner, index: int) -> float:
    """ms of the experts' computation alone, on the rank that takes longest."""
    step = self.built[index].steps[0]
    with step.layer.watching() as trace:
        step()
    stage = trace.stage
    assert stage is not None

    def alone() -> None:
        with torch.inference_mode():
            stage()

    times = []
    for _ in range(REPEATS):
        self.ranks.barrier()
        start = time.perf_counter_ns()
        alone()
        spent = time.perf_counter_ns() - start
        times.append(max(row[0] for row in self.ranks.gather([spent])) / 1e6)
    return statistics.median(times)


def main(arguments: list[str]) -> int:
    install()
    return worker.main(arguments)


def install() -> None:
    """Puts all of it into this process."""
    Experts.rows = slow_rows  # type: ignore[method-assign]
    RankGroup.all_to_all = doubled  # type: ignore[method-assign]
    MoELayer.route = waiting_route  # type: ignore[method-assign]
    CellRunner.build = planted_build  # type: ignore[method-assign]
    CellRunner.inspect = planted_inspect  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
