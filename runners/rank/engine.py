"""The measuring engine: barriers, blocks, rounds and the stop rule.

**Two lengths of block.** A block of n steps takes start + n * step: its first steps find cold
caches and ranks that begin apart, its last ones ranks that are already done. So every round times a
short and a long block of each cell, each after another cell's block, and the time of a step is the
difference of their times over the difference of their steps: what a block costs beside its steps
cancels. One step alone is timed too: the latency. With `measure.block=N` every block has N steps,
and its mean, the start included, is the time.

**Several nodes** share no clock. A sample then ends with a second barrier: each node measures, on
its own clock, from the first start of its ranks until all ranks of the launch have ended; the
makespan is the longest of these. The floor is measured with the same two barriers. Measured clock
offsets would not do instead: they drift by milliseconds within a wave, while the barrier's cost is
in the floor.

The engine knows neither torch nor processes: `Ranks` is its interface to them, so that it is tested
under a fake clock. Every rank runs the same code; whatever depends on a measured time is decided by
rank 0 and sent to all, so that ranks never disagree on a count.
"""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from runners.plan import Measure
from runners.records.record import RULES
from runners.records.stats import median_interval, step_ms

STEADY = 0.10  # settled: the two halves of the warm-up differ by less than this, relative
SETTLE_BLOCKS = 8  # control blocks, whose two halves have to agree
SETTLE_S = 2.0  # time limit for that
PRECISE_ROUNDS = 8  # least rounds for a narrow interval: six may all be of one mode
SHORT_SHARE = 4  # the long block over the short one, in time
SHORT_STEPS = 2  # least steps of the short block
LONG_SHORT = 4  # least ratio of the steps of the long block and the short one
SHORT_TURNS = 2  # least length of the short block, in turns of all ranks on their core
CHECK_EVERY = 4  # rounds, in one of which a cell is called without being timed ...
CHECK_CALLS = 3  # ... 1 to so many times, to check steps that are not the last of a block
MAX_STEPS = 1_000_000


class Ranks(Protocol):
    """The engine's interface to the processes of a launch."""

    @property
    def rank(self) -> int: ...
    def barrier(self) -> None: ...
    def now_ns(self) -> int: ...
    def sync(self) -> None: ...
    def broadcast(self, value: int) -> int: ...  # rank 0's value, on every rank
    def gather(self, values: Sequence[int]) -> list[list[int]]: ...  # of every rank, on all


@dataclass
class TimedCell:
    """A cell that is ready to be timed. `active` is entered around its samples; a cell that is not
    `resident` is built again there, and all its blocks of a round are taken together. `check(when)`
    compares what the last step left, outside of samples; False where it is not what was verified.
    """

    index: int
    step: Callable[[], None]
    active: Callable[[], AbstractContextManager[None]] = nullcontext
    check: Callable[[str], bool] | None = None
    correct_here: bool = True  # in all checks on this rank
    correct: bool = True  # on all ranks, as of the last exchange
    resident: bool = True
    short: int = 0  # steps of the short block; 0: every block has `steps`
    steps: int = 1  # steps of the long block
    rounds_ms: list[float] = field(default_factory=list)  # median time of a step, by round
    warmup_ms: list[float] = field(default_factory=list)

    def steps_of(self, kind: str) -> int:
        if kind == "latency":
            return 1
        return self.short if kind == "short" else self.steps


@dataclass(frozen=True)
class Sample:
    """One line of a rank's log: start and end of one block on this rank, in ns."""

    cell: int
    kind: str  # of runners.records.record.KINDS, floor, or anchor-first, -middle, -last
    round: int
    position: int
    steps: int
    start_ns: int
    end_ns: int


Emit = Callable[[Sample], None]


def empty_step() -> None:
    """The empty step: what is left is the skew of the barrier."""


EMPTY = TimedCell(-1, empty_step)


@contextmanager
def without_gc() -> Iterator[None]:
    """No garbage collection inside samples."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def block(
    ranks: Ranks, step: Callable[[], None], steps: int, end_barrier: bool = False
) -> tuple[int, int]:
    """barrier -> device sync -> start -> steps -> device sync (-> barrier) -> end, in ns."""
    ranks.barrier()
    ranks.sync()
    start = ranks.now_ns()
    for _ in range(steps):
        step()
    ranks.sync()
    if end_barrier:
        ranks.barrier()
    return start, ranks.now_ns()


def makespan_ns(starts: Sequence[int], ends: Sequence[int], node_of: Sequence[int] = ()) -> int:
    """Last end minus first start, in ns. With `node_of`, the node of each rank: the longest of the
    nodes, each on its own clock (the ends are those of an end barrier)."""
    if not node_of:
        return max(ends) - min(starts)
    rows = list(zip(node_of, starts, ends, strict=True))
    return max(
        max(end for at, _, end in rows if at == node)
        - min(start for at, start, _ in rows if at == node)
        for node in set(node_of)
    )


class Engine:
    """Times the cells of one wave; runs alike on every rank."""

    def __init__(self, ranks: Ranks, measure: Measure, emit: Emit, flush: Callable[[], None]):
        self.ranks = ranks
        self.measure = measure
        self.emit = emit
        self.flush = flush
        self.floor_ms = 0.0
        self.floors = measure.block_floors  # least length of a long block, in floors
        self.turn_ms = 0.0  # turn of all ranks that share a core; 0: none share one
        self.min_block_ms = 0.0  # least length of a long block, beside measure.block_ms
        self.node_of: tuple[int, ...] = ()  # node of every rank, where there are several nodes

    def take(
        self, cell: TimedCell, kind: str, round_: int, position: int = 0, steps: int = 0
    ) -> tuple[int, int]:
        """One block of a cell: (start, end) in ns on this rank; times of other ranks are gathered
        later. Then checks what the last step left."""
        steps = steps or cell.steps_of(kind)
        start, end = block(self.ranks, cell.step, steps, bool(self.node_of))
        self.emit(Sample(cell.index, kind, round_, position, steps, start, end))
        self._check(cell, f"after a block ({kind}) of round {round_ + 1}")
        return start, end

    def _check(self, cell: TimedCell, when: str) -> None:
        if cell.check is not None:
            cell.correct_here = cell.check(when) and cell.correct_here

    def makespans_ms(
        self, blocks: Sequence[tuple[int, int]], cells: Sequence[TimedCell] = ()
    ) -> list[float]:
        """Makespans of blocks that every rank took in the same order. Also updates which of `cells`
        are still correct on all ranks."""
        spans = [value for pair in blocks for value in pair]
        rows = self.ranks.gather([*spans, *(int(cell.correct_here) for cell in cells)])
        for place, cell in enumerate(cells, len(spans)):
            cell.correct = all(row[place] for row in rows)
        return [
            makespan_ns([row[i] for row in rows], [row[i + 1] for row in rows], self.node_of) / 1e6
            for i in range(0, 2 * len(blocks), 2)
        ]

    def sample(self, cell: TimedCell, kind: str, round_: int, steps: int) -> float:
        """One block of a cell; its makespan per step in ms."""
        return self.makespans_ms([self.take(cell, kind, round_, steps=steps)], [cell])[0] / steps

    def measure_floor(self, samples: int = 21) -> None:
        """Times the empty block, to size blocks; the recorded floor is sampled in rounds."""
        with without_gc():
            blocks = [self.take(EMPTY, "sizing", number) for number in range(samples)]
        self.floor_ms = statistics.median(self.makespans_ms(blocks))
        self.flush()

    def settle(self, step: Callable[[], None]) -> bool:
        """Control blocks of a step until the latest of them agree: earlier load on the machine is
        then over. False where they do not agree within SETTLE_S."""
        began, control = self.ranks.now_ns(), TimedCell(-1, step)
        took_ms: list[float] = []
        self.size_block(control)
        while self.ranks.broadcast(int(self.ranks.now_ns() - began < SETTLE_S * 1e9)):
            took_ms.append(self.sample(control, "sizing", 0, control.short or control.steps))
            latest = took_ms[-SETTLE_BLOCKS:]
            agreed = len(latest) == SETTLE_BLOCKS and settled(latest)
            if self.ranks.broadcast(int(agreed)):
                return True
        return False

    def size_block(self, cell: TimedCell) -> None:
        """Lengthens the block until it is well above the floor; rank 0's clock decides."""
        if self.measure.block:
            cell.steps = self.measure.block
            return
        target_ms = max(
            self.measure.block_ms,
            self.min_block_ms,
            self.floors * self.floor_ms,
            SHORT_SHARE * SHORT_TURNS * self.turn_ms,
        )
        steps, more = 1, 1
        while more:
            took_ms = self.sample(cell, "sizing", 0, steps) * steps
            scaled = min(target_ms / took_ms, 10.0) * steps if took_ms > 0 else 2.0 * steps
            more = self.ranks.broadcast(int(took_ms < 0.7 * target_ms and steps < MAX_STEPS))
            if more:
                steps = self.ranks.broadcast(min(max(round(scaled), steps + 1), MAX_STEPS))
        cell.short = max(SHORT_STEPS, round(steps / SHORT_SHARE))
        cell.steps = max(LONG_SHORT * cell.short, steps)

    def warm_up(self, cell: TimedCell) -> bool:
        """At least `warmup` samples, at most `warmup_max`; True when the cell has settled."""
        limit = max(self.measure.warmup, self.measure.warmup_max)
        steps = cell.short or cell.steps
        steady = 1
        for number in range(limit):
            cell.warmup_ms.append(self.sample(cell, "warmup", number, steps))
            if number + 1 >= self.measure.warmup:
                steady = self.ranks.broadcast(int(settled(cell.warmup_ms)))
                if steady:
                    break
        self.flush()
        return bool(steady)

    def anchor(self, cell: TimedCell, place: str) -> None:
        """measure.anchors samples of the anchor cell; `place` is first, middle or last."""
        with without_gc(), cell.active():
            for number in range(self.measure.anchors):
                self.take(cell, f"anchor-{place}", number)
        self.flush()

    def run_round(self, cells: Sequence[TimedCell], number: int, seed: str) -> None:
        """Every cell once, in this round's order; ranks exchange times only at its end."""
        generator = random.Random(f"{seed}:{number}")
        order = list(cells)
        if self.measure.order == "random":
            generator.shuffle(order)
        blocks: list[tuple[int, str, tuple[int, int]]] = []
        with without_gc():
            self._lead_in(order[-1])
            for position, (cell, kinds) in enumerate(self._visits(order, number, generator)):
                with cell.active():
                    for kind in kinds:
                        if kind == "check":
                            self._call_untimed(cell, generator.randint(1, CHECK_CALLS), number)
                            continue
                        span = self.take(cell, kind, number, position)
                        blocks.append((cell.index, kind, span))
        spans: dict[tuple[int, str], list[float]] = {}
        makespans = self.makespans_ms([span for _, _, span in blocks], order)
        for (index, kind, _), span_ms in zip(blocks, makespans, strict=True):
            spans.setdefault((index, kind), []).append(span_ms)
        for cell in order:
            if cell.short:
                pairs = zip(spans[cell.index, "short"], spans[cell.index, "long"], strict=True)
                values = [step_ms(cell.short, one, cell.steps, two) for one, two in pairs]
            else:
                values = [span_ms / cell.steps for span_ms in spans[cell.index, "fixed"]]
            cell.rounds_ms.append(statistics.median(values))
        self.flush()

    def _call_untimed(self, cell: TimedCell, calls: int, number: int) -> None:
        for _ in range(calls):
            cell.step()
            self._check(cell, f"after a call that was not timed, in round {number + 1}")

    def _lead_in(self, last: TimedCell) -> None:
        """One unrecorded step, so that a round's first block too follows another cell's work, and
        not the garbage collection and logging between rounds."""
        self.ranks.barrier()
        if last.resident:
            last.step()

    def _visits(
        self, order: Sequence[TimedCell], number: int, generator: random.Random
    ) -> list[tuple[TimedCell, list[str]]]:
        """A round's blocks in order. Cells are paired (the last three together): a's block of one
        kind, then b's of the same kind, then a's of the next. So a cell's two lengths are timed
        close to each other, and each after another cell's block. The order of kinds and the place
        of an empty block are random. Some cells are called untimed at the end."""
        visits: list[tuple[TimedCell, list[str]]] = []
        checked = [c for c in order if c.check and (c.index + number) % CHECK_EVERY == 0]
        while order:
            size = 1 if not order[0].resident else 3 if len(order) == 3 else 2
            group, order = order[:size], order[size:]
            kinds = ["fixed"] if not group[0].short else ["short", "long"]
            kinds = kinds * self.measure.per_round
            kinds += ["latency"] if group[0].short else []
            generator.shuffle(kinds)
            if not group[0].resident and group[0] in checked:
                kinds.append("check")
            if group[0].resident:
                visits += [(cell, [kind]) for kind in kinds for cell in group]
            else:
                visits += [(group[0], kinds)]
        visits.insert(generator.randrange(1, len(visits) + 1), (EMPTY, ["floor"]))
        return [*visits, *((cell, ["check"]) for cell in checked if cell.resident)]

    def run(
        self, cells: Sequence[TimedCell], seed: str, report: Callable[[int], None] = lambda n: None
    ) -> str:
        """Runs rounds, with anchors around them, until the stop rule ends the wave; returns the
        rule. A cell that is no longer correct is left out of further rounds."""
        if self.measure.order == "product":
            return self._run_product(cells, seed, report)
        began = self.ranks.now_ns()
        limit_ns = self.measure.wall_limit_s * len(cells) * 1e9
        self._anchor(cells, "first")
        number, check, rule = 0, max(self.measure.rounds_min, PRECISE_ROUNDS), ""
        while not rule:
            self.run_round(cells, number, seed)
            number += 1
            report(number)
            cells = [cell for cell in cells if cell.correct]
            if not cells:
                return "wrong"
            if number == -(-self.measure.rounds_min // 2):
                self._anchor(cells, "middle")
            late = self.ranks.now_ns() - began > limit_ns
            rule = self._stop(cells, number, number == check, late)
            if number == check:
                check = max(check + 1, -(-check * 3 // 2))
        self._anchor(cells, "last")
        return rule

    def _run_product(
        self, cells: Sequence[TimedCell], seed: str, report: Callable[[int], None]
    ) -> str:
        """Hydra's own order, one cell after the other: kept to show the effect of drift."""
        self._anchor(cells, "first")
        for done, cell in enumerate(cells):
            for number in range(self.measure.rounds_min):
                if cell.correct:
                    self.run_round([cell], number, seed)
            if done == len(cells) // 2:
                self._anchor(cells, "middle")
            report((done + 1) * self.measure.rounds_min // len(cells))
        self._anchor(cells, "last")
        return "fixed"

    def _anchor(self, cells: Sequence[TimedCell], place: str) -> None:
        """Anchor samples of the correct cell with the shortest block."""
        cells = [cell for cell in cells if cell.correct]
        if self.measure.anchors and cells:
            took_ms = [c.steps * min(c.warmup_ms, default=0.0) for c in cells]
            self.anchor(cells[self.ranks.broadcast(took_ms.index(min(took_ms)))], place)

    def _stop(self, cells: Sequence[TimedCell], number: int, check: bool, late: bool) -> str:
        """The rule that ends the wave after `number` rounds, or "". Precision is tested only at
        geometric sizes: testing after every round would bias the interval."""
        measure, rule = self.measure, ""
        if self.interrupted():
            rule = "interrupted"
        elif check and all(precise(cell.rounds_ms, measure.precision) for cell in cells):
            rule = "precision"
        elif number >= measure.rounds_max:
            rule = "fixed" if measure.rounds_min == measure.rounds_max else "maximum"
        elif number >= measure.rounds_min and late:
            rule = "wall"
        return RULES[self.ranks.broadcast(RULES.index(rule))]

    def interrupted(self) -> bool:
        """Whether the user asked to stop after this round; overridden by the worker."""
        return False


def settled(values_ms: Sequence[float]) -> bool:
    """Whether the medians of the two halves of the last samples agree within STEADY."""
    if len(values_ms) < 2:
        return True
    half = len(values_ms) // 2
    early = statistics.median(values_ms[half - max(1, half // 2) : half])
    late = statistics.median(values_ms[half:])
    return abs(late / early - 1) < STEADY if early > 0 else False


def precise(values_ms: Sequence[float], target: float) -> bool:
    """Whether the median's interval is narrower than target * median to either side."""
    interval = median_interval(values_ms)
    if interval is None or interval.low <= 0:
        return False
    return interval.high - interval.low <= 2 * target * statistics.median(values_ms)
