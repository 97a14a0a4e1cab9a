"""The real engine on a rank whose fake clock advances by the length of each simulated step."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runners.plan import Measure
from runners.rank.engine import Engine, TimedCell

Draw = Callable[[random.Random], float]


@dataclass(frozen=True)
class StartUp:
    """What a block costs beside its steps: once, and a fraction more on each of its first ones."""

    block_ms: float = 0.0
    share: float = 0.0
    steps: int = 2


START = StartUp(block_ms=0.5, share=0.30, steps=2)


class OneRank:
    """A single rank under a fake clock; `since` counts the steps since the last barrier."""

    rank = 0

    def __init__(self) -> None:
        self.clock_ns = 0
        self.since = 0

    def barrier(self) -> None:
        self.clock_ns += 10_000
        self.since = 0

    def sync(self) -> None: ...

    def now_ns(self) -> int:
        return self.clock_ns

    def broadcast(self, value: int) -> int:
        return value

    def gather(self, values: Sequence[int]) -> list[list[int]]:
        return [list(values)]

    def pass_ms(self, duration_ms: float) -> None:
        self.clock_ns += round(duration_ms * 1e6)


class SimulatedEngine(Engine):
    """Every round has an effect of its own, which all its blocks share."""

    def __init__(self, measure: Measure, generator: random.Random, draw: Draw = lambda g: 1.0):
        super().__init__(OneRank(), measure, lambda sample: None, lambda: None)
        self.generator, self.draw, self.effect = generator, draw, 1.0

    def run_round(self, cells: Sequence[TimedCell], number: int, seed: str) -> None:
        self.effect = self.draw(self.generator)
        super().run_round(cells, number, seed)

    def cell(
        self,
        index: int,
        step_ms: float,
        start: StartUp | None = None,
        noise: Draw = lambda g: 1.0,
    ) -> TimedCell:
        """A cell of this engine, with noise that a block's steps share; sized, not yet timed."""
        ranks, first = self.ranks, start or StartUp()
        assert isinstance(ranks, OneRank)
        own = 1.0

        def step() -> None:
            nonlocal own
            took_ms = step_ms
            if not ranks.since:
                own = noise(self.generator)
                ranks.pass_ms(first.block_ms)
            if ranks.since < first.steps:
                took_ms *= 1 + first.share
            ranks.since += 1
            ranks.pass_ms(took_ms * own * self.effect)

        made = TimedCell(index, step)
        self.size_block(made)
        return made
