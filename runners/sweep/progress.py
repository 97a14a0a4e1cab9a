"""Progress of a sweep: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from moe.spec import Cell
from moe.strategies import rules_of
from runners.plan import LaunchPlan
from runners.records import flat_row, stats
from runners.records.record import Record

PLAIN_EVERY_S = 5.0


def title(cell: Cell, label: str = "") -> str:
    """A cell's title in a few words."""
    work, place = cell.workload, cell.placement
    words = [cell.strategy.name]
    words += [cell.strategy.dispatcher] if rules_of(cell.strategy.name).dispatchers else []
    words += [f"k={cell.layer.topk_requested}", f"batch={work.batch_size}"]
    words += [f"ranks={place.world_size}", cell.layer.dtype]
    usual = Cell()
    for part, normal, names in (
        (work, usual.workload, ("tokens", "mode", "cache")),
        (cell.strategy, usual.strategy, ("variant",)),
    ):
        words += [getattr(part, n) for n in names if getattr(part, n) != getattr(normal, n)]
    if work.kind != usual.workload.kind:
        words.append(flat_row.workload_name(work))
    if cell.strategy.slowdown:
        words.append(f"slowdown={cell.strategy.slowdown}")
    return " ".join(words + ([f"[{label}]"] if label else []))


class Progress:
    """Shows the cells done, the current cell and round, and the time left of a wave."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.console = Console(file=stream or sys.stderr)
        self.live = self.console.is_terminal
        self.total = self.done = 0
        self._last_text = ""
        self._last_text_at = self._wave_at = 0.0
        self._wave: tuple[int, int] | None = None
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            refresh_per_second=2,
        )

    def begin(self, total: int) -> None:
        self.total = total
        if self.live:
            self._bars.start()
            self._task = self._bars.add_task("starting", total=total)

    def end(self) -> None:
        if self.live:
            self._bars.stop()

    def print_line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(
        self, plan: LaunchPlan, launch: int, cell: int, stage: str, rounds: tuple[int, int]
    ) -> None:
        place = plan.placement
        where = f"launch {launch}: {place.world_size} ranks, {place.backend}"
        what = f"{where}: {stage}"
        if cell >= 0 and stage != "round":
            what += f" {title(plan.cells[cell], plan.labels[cell])}"
        if stage == "calibrate":
            what += f" (once for these ranks, at most {plan.measure.calibration_limit_s:g} s)"
        if stage == "round":
            number = min(rounds[1] + 1, plan.measure.rounds_max)
            what = f"{where}: round {number}{self._eta(plan, launch, rounds)}"
        self._show(what, always=stage == "calibrate")

    def _eta(self, plan: LaunchPlan, launch: int, rounds: tuple[int, int]) -> str:
        """Time left for the minimum of rounds, at the pace of this wave's rounds so far."""
        now, wave = time.monotonic(), (launch, rounds[0])
        if wave != self._wave:
            self._wave, self._wave_at = wave, now
        least, most, done = plan.measure.rounds_min, plan.measure.rounds_max, rounds[1]
        limits = f" of {least}" if least == most else f" of {least} to {most}"
        if not 0 < done < least:
            return limits
        left_s = (now - self._wave_at) / done * (least - done)
        return f"{limits}, at least {left_s:.0f} s left"

    def _show(self, what: str, always: bool = False) -> None:
        """On a terminal at once; elsewhere every few seconds, or at once with `always`."""
        if self.live:
            self._bars.update(self._task, description=what)
            return
        now = time.monotonic()
        words = what.split(", at least")[0]
        if words != self._last_text and (always or now - self._last_text_at >= PLAIN_EVERY_S):
            self._last_text, self._last_text_at = words, now
            self.print_line(f"[{self.done}/{self.total}] {what}")

    def cell_done(self, record: Record) -> None:
        self.done = min(self.total, self.done + (record.outcome != "interrupted"))
        if self.live:
            self._bars.update(self._task, completed=self.done)
        figures = stats.headline(record)
        result = f"{figures['median_duration_ms']:.3g} ms" if figures else record.outcome
        error = f" ({record.error['message']})" if record.error else ""
        if record.gate and not record.gate["ok"]:
            error = f" ({record.gate.get('detail') or 'disagrees with the oracle'})"
        name = title(record.cell, record.label)
        self.print_line(f"[{self.done}/{self.total}] {name}: {result}{error}")
