"""Every comparison within a sweep, made together so that their correction counts all of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.data.cell_summary import CellSummary
from analysis.data.facets import Facet
from analysis.stats import pairing, verdict
from analysis.stats.pairing import Series
from analysis.stats.verdict import NOISE_THRESHOLD, Verdict


@dataclass(frozen=True)
class Place:
    """The measured cells at one value of a facet's axis, or at one setting, by series name. A
    setting's `x` is its words, `fixed` the columns that tell it from others with their values."""

    x: Any
    cells: dict[str, CellSummary]
    fixed: tuple[tuple[str, Any], ...] = ()


class Standings:
    """Verdicts between all cells that share a place, with intervals corrected for their number.

    `also` counts further comparisons that will be made along an axis; `meetings` are places beside
    those of the facets.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        facets: Sequence[Facet],
        threshold: float = NOISE_THRESHOLD,
        also: int = 0,
        meetings: Sequence[Place] = (),
    ) -> None:
        self.frame, self.threshold = frame, threshold
        self._places = {id(facet): _places(facet) for facet in facets}
        self._facets = list(facets)  # kept alive: their ids are keys
        self._series: dict[CellSummary, Series] = {}
        self._verdicts: dict[tuple[CellSummary, CellSummary], Verdict | None] = {}
        self.comparisons = also + len(
            {
                frozenset(pair)
                for places in (*self._places.values(), meetings)
                for place in places
                for pair in itertools.combinations(place.cells.values(), 2)
            }
        )

    def places(self, facet: Facet) -> list[Place]:
        return self._places[id(facet)]

    def series(self, cell: CellSummary) -> Series:
        if cell not in self._series:
            self._series[cell] = pairing.series(self.frame, cell)
        return self._series[cell]

    def verdict(self, a: CellSummary, b: CellSummary) -> Verdict | None:
        """A against B; computed once for a pair, so that B against A is its inverse."""
        if (b, a) in self._verdicts:
            known = self._verdicts[b, a]
            return known.inverted() if known else None
        if (a, b) not in self._verdicts:
            series = (self.series(a), self.series(b))
            self._verdicts[a, b] = pairing.compare(
                *series, comparisons=self.comparisons, threshold=self.threshold
            )
        return self._verdicts[a, b]

    def ranks(self, place: Place) -> dict[str, int]:
        """1 + how many are shown to be faster; series without a shown difference may share one."""

        def faster(a: str, b: str) -> bool:
            known = self.verdict(place.cells[a], place.cells[b])
            return known is not None and known.word == verdict.FASTER

        return verdict.ranks(list(place.cells), faster)

    def lead(self, place: Place, leader: str) -> float:
        """The next one's time over the leader's, as their verdict has it."""
        first, second = place.cells[leader], place.cells[runner_up(leader, place)]
        result = self.verdict(second, first)
        return result.ratio if result else second.median_ms / first.median_ms

    def leaders(self, place: Place) -> list[str]:
        """The series that none is shown to be faster than."""
        return [name for name, rank in self.ranks(place).items() if rank == 1]


def runner_up(leader: str, place: Place) -> str:
    """The series with the shortest median but for the leader."""
    return min((n for n in place.cells if n != leader), key=lambda n: place.cells[n].median_ms)


def _places(facet: Facet) -> list[Place]:
    return [
        Place(x, {n: c for n in facet.series if (c := facet.at(x, n)) and c.measured})
        for x in facet.values
    ]
