"""Every comparison within a sweep, made together so that their correction counts all of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.data.facets import Facet
from analysis.stats import pairing, verdict
from analysis.stats.pairing import Series
from analysis.stats.verdict import NOISE_THRESHOLD, Verdict


@dataclass(frozen=True)
class Place:
    """The measured cells at one place of a facet: series name -> row of the summarized cells."""

    x: Any
    cells: dict[str, pd.Series[Any]]


class Standings:
    """Verdicts between all cells that meet at a place of a facet, corrected for their number."""

    def __init__(
        self,
        frame: pd.DataFrame,
        facets: Sequence[Facet],
        threshold: float = NOISE_THRESHOLD,
        also: int = 0,  # comparisons that will be made along an axis, beside those at its places
        meetings: Sequence[Place] = (),
    ) -> None:
        self.frame, self.threshold = frame, threshold
        self._places = {id(facet): _places(facet) for facet in facets}
        self._facets = list(facets)  # kept alive: their ids are keys
        self._series: dict[str, Series] = {}
        self._verdicts: dict[tuple[str, str], Verdict | None] = {}
        self.comparisons = also + len(
            {
                frozenset(_id(cell) for cell in pair)
                for places in (*self._places.values(), meetings)
                for place in places
                for pair in itertools.combinations(place.cells.values(), 2)
            }
        )

    def places(self, facet: Facet) -> list[Place]:
        return self._places[id(facet)]

    def series(self, cell: pd.Series[Any]) -> Series:
        if _id(cell) not in self._series:
            self._series[_id(cell)] = pairing.series(self.frame, cell)
        return self._series[_id(cell)]

    def verdict(self, a: pd.Series[Any], b: pd.Series[Any]) -> Verdict | None:
        """A against B; computed once for a pair, so that B against A is its inverse."""
        key = (_id(a), _id(b))
        if key[::-1] in self._verdicts:
            found = self._verdicts[key[::-1]]
            return found.inverted() if found else None
        if key not in self._verdicts:
            self._verdicts[key] = pairing.compare(
                self.series(a),
                self.series(b),
                comparisons=self.comparisons,
                threshold=self.threshold,
            )
        return self._verdicts[key]

    def ranks(self, place: Place) -> dict[str, int]:
        """1 for whoever nobody is shown to beat; those not told apart may share a rank."""

        def faster(a: str, b: str) -> bool:
            found = self.verdict(place.cells[a], place.cells[b])
            return found is not None and found.word == verdict.FASTER

        return verdict.ranks(list(place.cells), faster)

    def lead(self, place: Place) -> float:
        """How much longer the second fastest takes than the fastest, by their medians."""
        first, second = sorted(float(cell["median_ms"]) for cell in place.cells.values())[:2]
        return second / first

    def leaders(self, place: Place) -> list[str]:
        return [name for name, rank in self.ranks(place).items() if rank == 1]


def _id(cell: pd.Series[Any]) -> str:
    return f"{cell['cell_id']}@{cell['host']}@{cell['metric']}"


def _places(facet: Facet) -> list[Place]:
    places = []
    for x in facet.values:
        found = {name: facet.at(x, name) for name in facet.series}
        cells = {n: c for n, c in found.items() if c is not None and c["outcome"] == "measured"}
        places.append(Place(x, cells))
    return places
