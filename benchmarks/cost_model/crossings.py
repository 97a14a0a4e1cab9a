"""Where one strategy overtakes another along ranks or top-k: predicted and measured."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

from analysis.errors import InputError
from analysis.predict import candidates
from analysis.predict.fit import Measured
from benchmarks.cost_model.crossover import crossing, place_text
from moe.spec import Cell, StrategySpec

STRATEGIES = ("tp", "ep", "dp_ep")
LEAST = 3  # grid points of a slice
NAMED = ("name", "dispatcher", "ep", "tp", "overlap")  # knobs that `candidates.name_of` states
HEADER = ["along", "at", "pair", "measured", "predicted", "off by (grid steps)"]


class Crossing(NamedTuple):
    """Ratios of the first strategy's time to the second's along the grid."""

    axis: str
    setting: str
    names: tuple[str, str]
    grid: list[int]
    measured: list[float]
    predicted: list[float]

    @property
    def places(self) -> tuple[float | None, float | None]:
        return crossing(self.measured), crossing(self.predicted)

    @property
    def crosses(self) -> bool:
        """Whether one of them does: else there is nothing to miss but the sign."""
        return self.places != (None, None) or self.off > 0

    @property
    def off(self) -> float:
        """Grid steps between the two crossings. One that lies beyond the grid counts from the end
        where it must be: the least that the other can be off."""
        measured_at, predicted_at = self.places
        if measured_at is not None and predicted_at is not None:
            return abs(measured_at - predicted_at)
        last = len(self.grid) - 1
        if measured_at is None and predicted_at is None:
            return 0.0 if (self.measured[0] < 1) == (self.predicted[0] < 1) else float(last)
        inside = measured_at if measured_at is not None else predicted_at
        crossed, uncrossed = (
            (self.measured, self.predicted)
            if measured_at is not None
            else (self.predicted, self.measured)
        )
        assert inside is not None
        later = (uncrossed[0] < 1) == (crossed[0] < 1)  # not yet crossed at the grid's end
        return last - inside if later else inside

    @property
    def near(self) -> bool:
        return self.off <= 1

    def row(self) -> list[str]:
        words = [
            place_text(at, ratio, self.grid, self.axis)
            for at, ratio in zip(self.places, (self.measured, self.predicted), strict=True)
        ]
        least = "at least " if None in self.places and self.off else ""
        return [self.axis, self.setting, " / ".join(self.names), *words, f"{least}{self.off:.1f}"]


class Slice(NamedTuple):
    """The cells of two strategies along an axis, all else the same."""

    axis: str
    setting: str
    names: tuple[str, str]
    grid: list[int]
    pairs: list[tuple[Measured, Measured]]

    def judged(self, predicted_s: Callable[[Measured], float]) -> Crossing:
        return Crossing(
            self.axis, self.setting, self.names, self.grid,
            [a.total_s / b.total_s for a, b in self.pairs],
            [predicted_s(a) / predicted_s(b) for a, b in self.pairs],
        )  # fmt: skip


def words(m: Measured) -> str:
    """A cell: "ep alltoall, 8 ranks, batch 1024, top-k 2, dim 256 x 512, forward"."""
    layer, work = m.cell.layer, m.cell.workload
    return (
        f"{candidates.name_of(m.cell.strategy)}, {m.cell.placement.world_size} ranks, batch "
        f"{work.batch_size}, top-k {layer.topk}, dim {layer.dim} x {layer.hidden}, {work.mode}, "
        f"skew {m.skew:.2f}"
    )


def _value(cell: Cell, axis: str) -> int:
    return cell.placement.world_size if axis == "ranks" else cell.layer.topk


def _without(cell: Cell, axis: str, grows: bool) -> Cell:
    """The cell without axis and without what names its strategy (`candidates.name_of`); where the
    batch `grows` with the ranks, with a rank's share of it."""
    work, place, layer = cell.workload, cell.placement, cell.layer
    if axis == "ranks":
        share = work.batch_size / place.world_size if grows else work.batch_size
        work = dataclasses.replace(work, batch_size=round(share), nominal_ep=0)
        place = dataclasses.replace(place, world_size=1, threads=1, nodes=1)
    else:
        layer = dataclasses.replace(layer, topk=1, topk_requested=1)
    unnamed = {key: getattr(StrategySpec(), key) for key in NAMED}
    return Cell(layer, dataclasses.replace(cell.strategy, **unnamed), work, place)


def slices(cells: Sequence[Measured]) -> list[Slice]:
    """Every two of STRATEGIES with LEAST common values of an axis, ranks from 2 on; along ranks
    the batch is the same, or the same on each rank. Raises InputError for two measurements of one
    cell."""
    compared = [
        m for m in cells if m.cell.strategy.name in STRATEGIES and m.cell.placement.world_size > 1
    ]
    kinds = (("ranks", False), ("ranks", True), ("top-k", False))
    return [one for axis, grows in kinds for one in _along(compared, axis, grows)]


def _along(cells: Sequence[Measured], axis: str, grows: bool) -> Iterator[Slice]:
    groups: dict[Hashable, dict[str, dict[int, Measured]]] = {}
    for m in cells:
        by_name = groups.setdefault(_without(m.cell, axis, grows), {})
        along = by_name.setdefault(candidates.name_of(m.cell.strategy), {})
        if (value := _value(m.cell, axis)) in along:
            raise InputError(f"SWEEP: {words(m)} twice; name each sweep once")
        along[value] = m
    for by_name in groups.values():
        for one, other in itertools.combinations(sorted(by_name), 2):
            grid = sorted(set(by_name[one]) & set(by_name[other]))
            if len(grid) >= LEAST and one.split()[0] != other.split()[0]:
                pairs = [(by_name[one][value], by_name[other][value]) for value in grid]
                setting = _setting(pairs[0][0].cell, axis, grows)
                yield Slice(axis, setting, (one, other), grid, pairs)


def _setting(cell: Cell, axis: str, grows: bool) -> str:
    layer, work, ranks = cell.layer, cell.workload, cell.placement.world_size
    batch = f"batch {work.batch_size // ranks if grows else work.batch_size}"
    batch += " a rank" if grows else ""
    other = f"top-k {layer.topk}" if axis == "ranks" else f"{ranks} ranks"
    load = f"{work.kind} {work.parameter:g}" if work.parameter else work.kind
    return f"{other}, {batch}, dim {layer.dim} x {layer.hidden}, {work.mode}, {load}"
