"""Sentences about one facet: growth along the axis, the fastest at each value, and speed-ups; each
with whether it is shown, and with the ids of the cells it rests on.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis import numbers
from analysis.data.cell_summary import CellSummary
from analysis.data.facets import Facet, title_of
from analysis.data.series import SERIAL
from analysis.stats import verdict
from analysis.stats.comparisons import Place, Standings
from analysis.stats.verdict import FASTER, MIN_LAUNCHES, SLOWER, Estimate, Verdict
from runners.records.stats import CONFIDENCE

MISFIT = 1.10  # factor off the fitted power law from which the sentence names it
UNDECIDED_NAMED = 4


@dataclass(frozen=True)
class Claim:
    """A sentence and the ids of the cells it rests on."""

    text: str
    cells: tuple[str, ...] = ()


@dataclass
class Claims:
    """The claims that are shown, and those that were looked for but are not."""

    shown: list[Claim] = field(default_factory=list)
    not_shown: list[Claim] = field(default_factory=list)

    def add(self, is_shown: bool, text: str, cells: Iterable[CellSummary] = ()) -> None:
        ids = tuple(dict.fromkeys(cell.cell_id for cell in cells))
        (self.shown if is_shown else self.not_shown).append(Claim(text, ids))


@dataclass(frozen=True)
class Power:
    """duration ~ axis^exponent, and the largest factor a point lies off that line."""

    exponent: Estimate
    misfit: float

    def text(self) -> str:
        slope = self.exponent
        off = f", points up to {self.misfit:.2f}x off it" if self.misfit > MISFIT else ""
        return f"{slope.center:.2f} [{slope.low:.2f}, {slope.high:.2f}]{off}"


def along(facet: Facet, standings: Standings) -> Claims:
    """Growth or changes, winners and speed-ups of one facet."""
    claims = Claims()
    for add_claims in (growth, changes, winners, speedups):
        add_claims(facet, standings, claims)
    return claims


def growth(facet: Facet, standings: Standings, claims: Claims) -> None:
    """The exponent p of duration ~ axis^p for every series, with its interval."""
    series = [name for name in facet.series if name != SERIAL]
    for name in series:
        power = fit(facet, standings, name, len(series))
        if power is None:
            continue
        cells = [p.cells[name] for p in standings.places(facet) if name in p.cells]
        text = f"~ {title_of(facet.axis)}^{power.text()}"
        if power.exponent.low > 0:
            claims.add(True, f"{name} grows {text}", cells)
        elif power.exponent.high < 0:
            claims.add(True, f"{name} falls {text}", cells)
        else:
            claims.add(False, f"whether {name} grows or falls ({text})", cells)


def fit(facet: Facet, standings: Standings, name: str, family: int) -> Power | None:
    """Least-squares slope of log duration on log axis. Its interval covers noise only; `misfit` is
    how far a power law is off. None for fewer than two places or values without a logarithm."""
    points = [(p.x, p.cells[name]) for p in standings.places(facet) if name in p.cells]
    if len(points) < 2 or not all(_positive(x) for x, _ in points):
        return None
    series = [standings.series(cell) for _, cell in points]
    launches = all(len(s.medians) >= MIN_LAUNCHES for s in series)
    groups = [list(s.medians.values()) if launches else s.all_rounds() for s in series]
    x, y = [math.log(value) for value, _ in points], [verdict.logs(g) for g in groups]
    each = verdict.level(CONFIDENCE, family)
    slope = verdict.contrast_interval(slope_weights(x), y, each)
    return Power(slope, misfit(x, [statistics.fmean(g) for g in y], slope)) if slope else None


def is_named(facet: Facet) -> bool:
    """Whether the axis has names as values instead of numbers, so that nothing grows along it."""
    return facet.axis != "tokens" and not all(_positive(x) for x in facet.values)


def changes_count(facet: Facet) -> int:
    """How many comparisons `changes` makes."""
    series = len([name for name in facet.series if name != SERIAL])
    return series * (len(facet.values) - 1) if is_named(facet) else 0


def changes(facet: Facet, standings: Standings, claims: Claims) -> None:
    """Every series at each value of a named axis against the first value.

    Only the first value is compared with: slowest against fastest would choose its pair by the
    outcome.
    """
    if not is_named(facet):
        return
    for name in (n for n in facet.series if n != SERIAL):
        places = [p for p in standings.places(facet) if name in p.cells]
        texts: dict[bool, list[str]] = {True: [], False: []}
        cells: dict[bool, list[CellSummary]] = {True: [], False: []}
        for place in places[1:]:
            change = standings.verdict(place.cells[name], places[0].cells[name])
            shown = is_difference(change)
            texts[shown].append(f"{_ratio(change)} as long with {place.x}")
            cells[shown] += [places[0].cells[name], place.cells[name]]
        for shown in (True, False):
            if texts[shown]:
                text = f"{name} takes {listing(texts[shown])} as with {places[0].x}"
                claims.add(shown, text if shown else f"a difference: {text}", cells[shown])


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


def winners(facet: Facet, standings: Standings, claims: Claims) -> None:
    """The fastest series at each value with its lead, and where none is shown to be the fastest."""
    places = [p for p in standings.places(facet) if len(p.cells) > 1]
    by_leaders: dict[tuple[str, ...], list[Place]] = {}
    for place in places:
        by_leaders.setdefault(tuple(standings.leaders(place)), []).append(place)
    axis = title_of(facet.axis)
    for leaders, won in by_leaders.items():
        listed = f"{axis} {', '.join(str(place.x) for place in won)}"
        where = f"every value of {axis} measured" if len(by_leaders) == 1 else listed
        cells = [cell for place in won for cell in place.cells.values()]
        if len(leaders) == 1:
            margins = [margin(leaders[0], place, standings) for place in won]
            claims.add(True, f"{leaders[0]} is fastest at {where}: {'; '.join(margins)}", cells)
        else:
            claims.add(False, f"which of {listing(leaders)} is fastest at {where}", cells)
    _undecided(places, standings, claims)


def listing(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def margin(leader: str, place: Place, standings: Standings) -> str:
    """Text: the runner-up's duration over the leader's, with interval, and who the runner-up is."""
    others = [n for n in place.cells if n != leader]
    nearest = min(others, key=lambda n: place.cells[n].median_ms)
    lead = standings.verdict(place.cells[nearest], place.cells[leader])
    return f"{_ratio(lead)} ahead of {nearest}" + (f" at {place.x}" if place.x != "" else "")


def _ratio(result: Verdict | None) -> str:
    """Text: the ratio with its interval."""
    if result is None:
        return "by an unknown factor"
    ratio = numbers.short(result.ratio)
    low, high = (numbers.like(v, ratio) for v in (result.low, result.high))
    return f"{ratio}x [{low}, {high}]"


def is_difference(result: Verdict | None) -> bool:
    """Whether one is shown to be faster than the other."""
    return result is not None and result.word in (FASTER, SLOWER)


def _undecided(places: list[Place], standings: Standings, claims: Claims) -> None:
    texts, cells = [], []
    for place in places:
        for a, b in itertools.combinations(place.cells, 2):
            result = standings.verdict(place.cells[a], place.cells[b])
            if not is_difference(result):
                same = result is not None and result.word == verdict.SAME
                word = "shown to be none" if same else _ratio(result)
                texts.append(f"{a} and {b} at {place.x} ({word})")
                cells += [place.cells[a], place.cells[b]]
    if texts:
        left = len(texts) - UNDECIDED_NAMED
        more = f" and {left} more" if left > 0 else ""
        text = f"a difference between {', '.join(texts[:UNDECIDED_NAMED])}{more}"
        claims.add(False, text, cells)


def speedups(facet: Facet, standings: Standings, claims: Claims) -> None:
    """The fastest spread-out strategy against both baselines, at the last place that has them."""
    for baseline in (SERIAL, "simple"):
        places = [p for p in standings.places(facet) if baseline in p.cells]
        last = places[-1].cells if places else {}
        rivals = {n: c for n, c in last.items() if n not in (SERIAL, "simple")}
        if not rivals:
            continue
        best = min(rivals, key=lambda n: rivals[n].median_ms)
        speedup = standings.verdict(last[baseline], rivals[best])
        if speedup:
            text = f"speed-up of {best} against {baseline} at {places[-1].x}: {_ratio(speedup)}"
            if speedup.ratio < 1:
                longer = f"{_ratio(speedup.inverted())} as long as {baseline} at {places[-1].x}"
                text = f"{best}, the fastest that spreads the work, takes {longer}"
            claims.add(is_difference(speedup), text, [last[baseline], rivals[best]])
