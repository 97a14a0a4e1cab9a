"""Progress of a sweep: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from rich.console import Console
from rich.live import Live

from runners.plan import Job, LaunchPlan
from runners.records import stats
from runners.records.record import Record
from runners.sweep.activity import RankStage, activity, rounds_done
from runners.sweep.best import BestSoFar
from runners.sweep.estimate import Estimate
from runners.sweep.parts import LaunchWork
from runners.sweep.screen import Frame, Screen
from runners.sweep.titles import title

PLAIN_EVERY_S = 5.0
REFRESHES_PER_S = 4


class Progress:
    """Shows the cells done, what is done now, the time left and, on a terminal, the best so far."""

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console, self.clock = Console(file=stream or sys.stderr), clock
        # Not `is_terminal`, which variables such as FORCE_COLOR make true for a file.
        self.live = self.console.file.isatty() and not self.console.is_dumb_terminal
        self.ended = False
        self.total = self.done = 0
        self.estimate: Estimate | None = None
        self.best = BestSoFar([])
        self._activity = self._launch = self._last_text = ""
        self._last_text_at = self._began = -PLAIN_EVERY_S
        self._launches = 0
        self._screen = Screen(clock)
        self._display = Live(
            self._screen,
            console=self.console,
            transient=True,
            redirect_stdout=False,  # it may be a file, where stderr is a terminal
            refresh_per_second=REFRESHES_PER_S,
        )

    def begin(
        self,
        total: int,
        jobs: Sequence[Job],
        launches: Sequence[LaunchWork] = (),
        tracked: bool = False,
    ) -> None:
        """`total` counts every launch of a cell; without `launches` nothing is estimated."""
        self.total, self._launches, self._began = total, len(launches), self.clock()
        if launches:
            self.estimate = Estimate(launches, tracked, self.clock)
            many = "launches" if len(launches) > 1 else "launch"
            cells = f"{len(jobs)} cell{'s' if len(jobs) > 1 else ''}"
            self.print_line(f"{cells} in {len(launches)} {many}: {self.estimate.whole}")
        if self.live:
            self.best = BestSoFar(job.cell for job in jobs)
            self._refresh("starting")
            self._display.start()

    def end(self) -> None:
        """From here on nothing is shown but cells and lines that are asked for."""
        if self.live:
            self._display.stop()
        self.ended, self.live = True, False

    def print_line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin_launch(self, plan: LaunchPlan, later: int) -> None:
        """A launch begins, before the last `later` of those planned."""
        if self.estimate:
            self.estimate.begin_launch(plan, later)
        number = self._launches - later
        self._launch = f", launch {number} of {self._launches}" if self._launches > 1 else ""

    def update(self, plan: LaunchPlan, at: RankStage) -> None:
        """Shows what the ranks of a launch do."""
        if self.ended:
            return
        if self.estimate:
            self.estimate.update(plan, at)
        if self.live and at.stage == "round" and rounds_done(plan, at):
            self.best.add_rounds(plan, at.medians_ms)
        self.show(activity(plan, at) + self._launch, at_once=at.stage == "calibrate")

    def show(self, text: str, at_once: bool = False) -> None:
        """On a terminal at once; elsewhere every few seconds, or at once with `at_once`."""
        if self.live:
            self._refresh(text)
            return
        now = self.clock()
        if text != self._last_text and (at_once or now - self._last_text_at >= PLAIN_EVERY_S):
            self._last_text, self._last_text_at = text, now
            left = f", {self.estimate.outlook().text(now)}" if self.estimate else ""
            self.print_line(f"[{self.done}/{self.total}] {text}{left}")

    def show_live(self, text: str) -> None:
        """Shows what takes moments, on a terminal only."""
        if self.live:
            self._refresh(text + self._launch)

    def _refresh(self, text: str) -> None:
        self._activity = text
        self._screen.frame = Frame(
            done=self.done,
            total=self.total,
            began=self._began,
            activity=text,
            outlook=self.estimate.outlook() if self.estimate else None,
            best=tuple(self.best.lines()),
        )

    def cell_done(self, record: Record) -> None:
        self.done = min(self.total, self.done + (record.outcome != "interrupted"))
        figures = stats.headline(record)
        median_ms = figures.get("median_duration_ms")
        if self.live:
            self.best.add(record.cell, record.label, record.launch, median_ms)
            self._refresh(self._activity)
        result = f"{median_ms:.3g} ms" if median_ms is not None else record.outcome
        error = f" ({record.error['message']})" if record.error else ""
        if record.gate and not record.gate["ok"]:
            error = f" ({record.gate.get('detail') or 'disagrees with the oracle'})"
        name = title(record.cell, record.label)
        self.print_line(f"[{self.done}/{self.total}] {name}: {result}{error}")
