"""What the records show along one axis, as facts without words: how the time of every series
changes, and who is fastest at which values. `analysis.text.sentences` puts them into words.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.data.cell_summary import CellSummary
from analysis.data.facets import Facet
from analysis.data.series import SERIAL
from analysis.stats import verdict
from analysis.stats.comparisons import Place, Standings
from analysis.stats.verdict import FASTER, MIN_LAUNCHES, SAME, SLOWER, Estimate, Verdict
from runners.records.stats import CONFIDENCE

MISFIT = 1.10  # largest factor between a point and the fitted power at which the power is stated
POWER_VALUES = 3  # least values of an axis for a power
FLAT = 1.10  # largest change that an interval may leave where a time is called independent ...
BOUNDED = 1.25  # ... and up to which the change is called small


@dataclass(frozen=True)
class Change:
    """A series at the value `x` of an axis against its first value; `verdict.ratio` is the time
    here over the time there. None where there are too few samples."""

    x: Any
    verdict: Verdict | None
    cell: CellSummary

    @property
    def shown(self) -> bool:
        return is_difference(self.verdict)


@dataclass(frozen=True)
class Dependence:
    """How the time of a series changes along an axis, each value against the first."""

    series: str
    first: Any
    first_cell: CellSummary
    changes: tuple[Change, ...]
    exponent: Estimate | None  # of duration ~ axis^exponent, where POWER_VALUES values support it

    @property
    def cells(self) -> list[CellSummary]:
        return [self.first_cell, *(change.cell for change in self.changes)]

    @property
    def shown(self) -> list[Change]:
        return [change for change in self.changes if change.shown]

    @property
    def bound(self) -> float:
        """The largest factor of change, up or down, that the intervals leave; inf for none."""
        ends = [(c.verdict.high, c.verdict.low) if c.verdict else (math.inf, 1.0)
                for c in self.changes]  # fmt: skip
        return max(max(high, 1 / low if low > 0 else math.inf) for high, low in ends)

    @property
    def bounded(self) -> bool:
        """Whether the time is shown to change little along the axis, or not at all."""
        return not self.shown and self.bound <= BOUNDED


@dataclass(frozen=True)
class Lead:
    """The series that none is shown to beat, at the places where they are the same ones."""

    leaders: tuple[str, ...]
    places: tuple[Place, ...]

    @property
    def cells(self) -> list[CellSummary]:
        return [cell for place in self.places for cell in place.cells.values()]


@dataclass(frozen=True)
class Tie:
    """Two series without a shown difference at these places; `same`: shown to be equal there."""

    names: tuple[str, str]
    places: tuple[Place, ...]
    same: bool


def is_difference(result: Verdict | None) -> bool:
    """Whether one is shown to be faster than the other."""
    return result is not None and result.word in (FASTER, SLOWER)


def dependences(facet: Facet, standings: Standings) -> list[Dependence]:
    """One for every series but serial that was measured at two values of the axis or more."""
    names = [name for name in facet.series if name != SERIAL]
    every = []
    for name in names:
        places = [place for place in standings.places(facet) if name in place.cells]
        if len(places) < 2:
            continue
        first = places[0]
        changes = tuple(
            Change(p.x, standings.verdict(p.cells[name], first.cells[name]), p.cells[name])
            for p in places[1:]
        )
        exponent = fit(facet, standings, name, len(names))
        every.append(Dependence(name, first.x, first.cells[name], changes, exponent))
    return every


def changes_count(facet: Facet) -> int:
    """How many comparisons `dependences` makes."""
    names = [name for name in facet.series if name != SERIAL]
    cells = [[facet.at(x, name) for x in facet.values] for name in names]
    return sum(max(0, sum(c is not None and c.measured for c in row) - 1) for row in cells)


def is_numeric(facet: Facet) -> bool:
    """Whether the axis has positive numbers as values, so that it has a direction."""
    return all(_positive(x) for x in facet.values)


def fit(facet: Facet, standings: Standings, name: str, family: int) -> Estimate | None:
    """Least-squares slope of log duration on log axis; its interval, one of `family` that hold
    together, covers noise only.

    None for fewer than POWER_VALUES values, values without a logarithm, or points that lie further
    than MISFIT off the line.
    """
    points = [(p.x, p.cells[name]) for p in standings.places(facet) if name in p.cells]
    if len(points) < POWER_VALUES or not all(_positive(x) for x, _ in points):
        return None
    series = [standings.series(cell) for _, cell in points]
    launches = all(len(s.medians) >= MIN_LAUNCHES for s in series)
    groups = [list(s.medians.values()) if launches else s.all_rounds() for s in series]
    x, y = [math.log(value) for value, _ in points], [verdict.logs(g) for g in groups]
    slope = verdict.contrast_interval(slope_weights(x), y, verdict.level(CONFIDENCE, family))
    if slope is None:
        return None
    off = misfit(x, [statistics.fmean(g) for g in y], slope)
    return slope if off <= MISFIT else None


def misfit(x: Sequence[float], y: Sequence[float], slope: Estimate) -> float:
    """Largest factor between a point and the line through the middle of all."""
    middle_x, middle_y = statistics.fmean(x), statistics.fmean(y)
    off = [b - middle_y - slope.center * (a - middle_x) for a, b in zip(x, y, strict=True)]
    return math.exp(max(abs(value) for value in off))


def _positive(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and x > 0


def slope_weights(x: Sequence[float]) -> list[float]:
    """Weights w with sum(w * y) the least-squares slope of y on x."""
    mean = statistics.fmean(x)
    total = sum((value - mean) ** 2 for value in x)
    return [(value - mean) / total for value in x]


def leads(places: Sequence[Place], standings: Standings) -> list[Lead]:
    """Who is fastest at which places, where two series or more meet; in order of the places."""
    groups: dict[tuple[str, ...], list[Place]] = {}
    for place in places:
        if len(place.cells) > 1:
            groups.setdefault(tuple(standings.leaders(place)), []).append(place)
    return [Lead(leaders, tuple(at)) for leaders, at in groups.items()]


def all_same(lead: Lead, standings: Standings) -> bool:
    """Whether all leaders are shown to take the same time at all of the places."""
    return all(v is not None and v.word == SAME for v in _among(lead, standings))


def too_few_samples(lead: Lead, standings: Standings) -> bool:
    """Whether some leaders have too few samples for a verdict."""
    return any(v is None for v in _among(lead, standings))


def _among(lead: Lead, standings: Standings) -> list[Verdict | None]:
    """The verdicts between every two leaders at every place."""
    pairs = list(itertools.combinations(lead.leaders, 2))
    return [standings.verdict(p.cells[a], p.cells[b]) for p in lead.places for a, b in pairs]


def ties(places: Sequence[Place], standings: Standings) -> list[Tie]:
    """Pairs behind the leaders without a shown difference; those at most places first."""
    groups: dict[tuple[str, str], list[tuple[Place, bool]]] = {}
    for place in places:
        leaders = set(standings.leaders(place))
        for a, b in itertools.combinations(place.cells, 2):
            result = standings.verdict(place.cells[a], place.cells[b])
            # A lone leader is ahead of all: of some through others that it is shown to beat.
            led = len(leaders) == 1 and leaders & {a, b}
            if not is_difference(result) and not led and not {a, b} <= leaders:
                same = result is not None and result.word == SAME
                groups.setdefault((a, b), []).append((place, same))
    every = [
        Tie(names, tuple(place for place, _ in at), all(same for _, same in at))
        for names, at in groups.items()
    ]
    return sorted(every, key=lambda tie: -len(tie.places))
