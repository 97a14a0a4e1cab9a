"""The fastest strategy of every setting so far: provisional, for people to watch. Torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping

from moe.spec import Cell
from runners.plan import LaunchPlan
from runners.sweep.titles import SettingTitles, setting_of, strategy_title

SETTINGS_SHOWN = 6

Labelled = tuple[Cell, str]  # a cell and its label


class BestSoFar:
    """Medians by cell and launch, of finished launches and of the rounds so far."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        self.titles = SettingTitles(cells)
        self._ms: dict[Cell, dict[Labelled, dict[int, float]]] = {}  # by setting, latest last

    def add_rounds(self, plan: LaunchPlan, medians_ms: Mapping[int, float]) -> None:
        """Takes over the medians of the rounds so far, by index into the plan's cells. Their
        settings are then the latest, the first of the plan last."""
        wave = next((w for w in plan.waves if set(medians_ms) & set(w)), [])
        for index in set(wave) - set(medians_ms):  # found wrong since
            self.add(plan.cells[index], plan.labels[index], plan.launch, None)
        for index in sorted(medians_ms, reverse=True):
            setting = setting_of(plan.cells[index])
            self._ms[setting] = self._ms.pop(setting, {})
            self.add(plan.cells[index], plan.labels[index], plan.launch, medians_ms[index])

    def add(self, cell: Cell, label: str, launch: int, median_ms: float | None) -> None:
        """None: the cell failed, or computes something else. Noise can make a difference of two
        times negative: no best."""
        launches = self._ms.setdefault(setting_of(cell), {}).setdefault((cell, label), {})
        launches.pop(launch, None)
        if median_ms is not None and median_ms > 0:
            launches[launch] = median_ms

    def lines(self) -> list[str]:
        """One line per setting that has a time, those measured last first."""
        timed = [setting for setting in reversed(self._ms) if any(self._ms[setting].values())]
        lines = [self._line(setting) for setting in timed[:SETTINGS_SHOWN]]
        if not lines or not self.titles.varied:
            return [f"best so far: {line}" for line in lines]
        more = len(timed) - len(lines)
        return ["best so far:", *(f"  {line}" for line in lines)] + (
            [f"  and {more} more"] if more else []
        )

    def _ranking(self, setting: Cell) -> list[tuple[float, str]]:
        """Median over the launches and title of every cell with a time, fastest first."""
        return sorted(
            (statistics.median(launches.values()), strategy_title(cell, label))
            for (cell, label), launches in self._ms[setting].items()
            if launches
        )

    def _line(self, setting: Cell) -> str:
        (ms, name), *others = self._ranking(setting)
        line = f"{name} {ms:.3g} ms"
        if others:
            line += f" (next {others[0][1]} {others[0][0]:.3g} ms)"
        where = self.titles.title(setting)
        return f"{where}: {line}" if where else line
