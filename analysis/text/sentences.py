"""Facts of `analysis.stats.findings` as sentences for a person who reads one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from analysis import numbers
from analysis.data.cell_summary import CellSummary
from analysis.data.facets import Facet, title_of
from analysis.data.series import series_order
from analysis.stats import findings
from analysis.stats.comparisons import Place, Standings, runner_up
from analysis.stats.findings import Change, Dependence, Lead, Tie
from analysis.stats.verdict import Verdict
from analysis.text import phrases
from analysis.text.phrases import listing, span, times

MOST_TIES = 3  # pairs that are written out
MOST_CHANGES = 3  # values of an axis of names that are written out
TOO_WIDE = 20.0  # factor of change from which an interval says nothing
PEAK = 1.25  # factor past the last value from which a peak between is named
TOO_FEW = "have too few samples to be compared"
Where = Callable[[Sequence[Any]], str]  # words for some of the places


@dataclass(frozen=True)
class Claim:
    """A sentence without its full stop, the figures behind it, and the ids of its cells."""

    text: str
    cells: tuple[str, ...] = ()
    detail: str = ""


def claim(text: str, cells: Iterable[CellSummary] = (), detail: str = "") -> Claim:
    """Each cell counts once."""
    return Claim(text, tuple(dict.fromkeys(cell.cell_id for cell in cells)), detail)


def interval(result: Verdict | None) -> str:
    """ "1.23x [1.10, 1.40]"."""
    if result is None:
        return "too few samples"
    ratio = numbers.short(result.ratio)
    low, high = (numbers.like(v, ratio) for v in (result.low, result.high))
    return f"{ratio}x [{low}, {high}]"


def ratio_at(place: Place, a: str, b: str, standings: Standings) -> str:
    """A's time over B's with its interval: "tp / simple 2.00x [1.98, 2.02] at 4"."""
    at = f" at {place.x}" if place.x != "" else ""
    return f"{a} / {b} {interval(standings.verdict(place.cells[a], place.cells[b]))}{at}"


def standing(
    places: Sequence[Place], standings: Standings, where: Where, behind: bool = True
) -> Claim:
    """Who is fastest where and by how much and, with `behind`, which of the others are not told
    apart."""
    parts = [lead_text(lead, standings, where) for lead in findings.leads(places, standings)]
    if behind:
        parts += _ties(findings.ties(places, standings), where, standings.threshold)
    cells = [cell for place in places for cell in place.cells.values()]
    return claim("; ".join(parts), cells, _margins(places, standings))


def lead_text(lead: Lead, standings: Standings, where: Where) -> str:
    """ "simple is fastest at every top-k, 1.9 to 2.2 times ahead of tp"."""
    at = _after(where([place.x for place in lead.places]))
    if len(lead.leaders) > 1:
        how = tie_text(lead, standings)
        if how == TOO_FEW:
            return f"{listing(lead.leaders)} {how}{at}"
        return f"{listing(lead.leaders)} are fastest{at} and {how}"
    leader = lead.leaders[0]
    return f"{leader} is fastest{at}, {ahead(leader, lead.places, standings)}"


def tie_text(lead: Lead, standings: Standings) -> str:
    """What is said of several leaders: "not told apart"."""
    if findings.too_few_samples(lead, standings):
        return TOO_FEW
    same = f"take the same time (within {standings.threshold:.0%})"
    return same if findings.all_same(lead, standings) else "not told apart"


def ahead(leader: str, places: Sequence[Place], standings: Standings) -> str:
    """ "1.9 to 2.2 times ahead of tp"."""
    nearest = list(dict.fromkeys(runner_up(leader, place) for place in places))
    rivals = nearest[0] if len(nearest) == 1 else f"the next ({listing(nearest, 'or')})"
    factors = [standings.lead(place, leader) for place in places]
    return f"{span(factors)} times ahead of {rivals}"


def _after(where: str) -> str:
    return f" {where}" if where else ""


def _ties(ties: Sequence[Tie], where: Where, threshold: float) -> list[str]:
    """Pairs at the same places are told together: "tp, ep and dp" where all three pairs tie."""
    groups: dict[tuple[int, ...], list[Tie]] = {}
    for tie in ties:
        groups.setdefault((tie.same, *(id(place) for place in tie.places)), []).append(tie)
    parts: list[tuple[str, int]] = []  # words, and how many pairs they are about
    for group in groups.values():
        names = list(dict.fromkeys(name for tie in group for name in tie.names))
        complete = len(group) == len(names) * (len(names) - 1) // 2
        at = _after(where([place.x for place in group[0].places]))
        how = f"are not told apart{at.replace(' every ', ' any ')}"
        if group[0].same:
            how = f"take the same time (within {threshold:.0%}){at}"
        if complete:
            parts.append((f"{listing(names)} {how}", len(group)))
        else:
            parts += [(f"{listing(tie.names)} {how}", 1) for tie in group]
    left = sum(count for _, count in parts[MOST_TIES:])
    more = [f"{left} more {'pair shows' if left == 1 else 'pairs show'} no difference"]
    return [*(words for words, _ in parts[:MOST_TIES]), *(more if left else [])]


def _margins(places: Sequence[Place], standings: Standings) -> str:
    """The runner-up's time over the leader's at each place, with intervals."""
    texts = []
    for place in places:
        leaders = standings.leaders(place)
        if len(place.cells) > 1 and len(leaders) == 1:
            rival = runner_up(leaders[0], place)
            texts.append(ratio_at(place, rival, leaders[0], standings))
    return "; ".join(texts)


def along(facet: Facet, standings: Standings) -> list[Claim]:
    """How the time of every series depends on the axis: one claim for all that do alike."""
    dependences = findings.dependences(facet, standings)
    axis = facet.axis
    claims: list[Claim] = []
    if findings.is_numeric(facet) or all(len(d.changes) == 1 for d in dependences):
        to_end = [d for d in dependences if d.shown and _peak(d) is d.changes[-1]]
        for slower in (True, False):
            claims += _ends([d for d in to_end if (_ratio(d.changes[-1]) > 1) == slower], axis)
        claims += [_with_peak(d, axis) for d in dependences if d.shown and d not in to_end]
    else:
        claims += [_named(d, axis) for d in dependences if d.shown]
    claims += _bounded([d for d in dependences if d.bounded], axis)
    unknown = [d for d in dependences if not d.shown and not d.bounded]
    return claims + [_unknown(group, axis) for group in _by_ends(unknown).values()]


def _by_ends(group: Sequence[Dependence]) -> dict[tuple[Any, Any], list[Dependence]]:
    """Those measured from the same first to the same last value."""
    by_ends: dict[tuple[Any, Any], list[Dependence]] = {}
    for dependence in group:
        by_ends.setdefault((dependence.first, dependence.changes[-1].x), []).append(dependence)
    return by_ends


def _ratio(change: Change) -> float:
    return change.verdict.ratio if change.verdict else float("nan")


def _factor(change: Change) -> float:
    return max(_ratio(change), 1 / _ratio(change))


def _how(change: Change) -> str:
    return "long" if _ratio(change) > 1 else "fast"


def _verb(change: Change) -> str:
    return "takes" if _ratio(change) > 1 else "is"


def _times_as(change: Change) -> str:
    return f"{times(_factor(change))} times as {_how(change)}"


def _peak(dependence: Dependence) -> Change:
    """The last change, or the largest one if it is well past it or the last is not shown."""
    last = dependence.changes[-1]
    largest = max(dependence.shown, key=_factor)
    if last.shown and _how(last) == _how(largest) and _factor(largest) < PEAK * _factor(last):
        return last
    return largest


def _ends(group: Sequence[Dependence], axis: str) -> list[Claim]:
    """ "tp takes 1.4 times, ep and dp 1.2 times as long at top-k 8 as at 2": the last value against
    the first, all slower or all faster there."""
    claims = []
    for (first, last), members in _by_ends(group).items():
        change = members[0].changes[-1]
        end = f"as {_how(change)} {phrases.at(axis, [last])} as {phrases.short_at(axis, first)}"
        cells = [cell for d in members for cell in d.cells]
        claims.append(claim(f"{_by_factor(members)} {end}", cells, _details(members, axis)))
    return claims


def _by_factor(group: Sequence[Dependence]) -> str:
    """ "tp takes 1.4 times, ep and dp 1.2 times", to go on with "as long"; largest first."""
    names: dict[str, list[str]] = {}
    for dependence in sorted(group, key=lambda d: -_factor(d.changes[-1])):
        names.setdefault(times(_factor(dependence.changes[-1])), []).append(dependence.series)
    one, many = (" takes", " take") if _ratio(group[0].changes[-1]) > 1 else (" is", " are")
    words: list[str] = []
    for factor, series in names.items():
        verb = "" if words else one if len(series) == 1 else many
        words.append(f"{listing(sorted(series, key=series_order))}{verb} {factor} times")
    return ", ".join(words)


def _with_peak(dependence: Dependence, axis: str) -> Claim:
    """ "ep takes 8.0 times as long at batch size 32 as at 8, and 2.0 times as long at 128"."""
    peak, last = _peak(dependence), dependence.changes[-1]
    text = f"{dependence.series} {_verb(peak)} {_times_as(peak)} "
    text += f"{phrases.at(axis, [peak.x])} as {phrases.short_at(axis, dependence.first)}"
    if last.shown:
        verb = "" if _how(last) == _how(peak) else f"{_verb(last)} "
        text += f", and {verb}{_times_as(last)} {phrases.short_at(axis, last.x)}"
    elif last is not peak:
        text += f"; {phrases.short_at(axis, last.x)} no difference is shown"
    return claim(text, dependence.cells, _details([dependence], axis))


def _named(dependence: Dependence, axis: str) -> Claim:
    """ "ep takes 1.3 times as long with zipf 0.6 and 1.8 times as long with zipf 1.2 as ..."."""
    largest = sorted(dependence.shown, key=_factor)[-MOST_CHANGES:]
    kept = [change for change in dependence.shown if change in largest]
    words, verb = [], ""
    for change in kept:
        again = _verb(change) != verb
        verb = _verb(change)
        at = phrases.at(axis, [change.x])
        words.append(f"{verb} {_times_as(change)} {at}" if again else f"{_times_as(change)} {at}")
    first = phrases.at(axis, [dependence.first])
    text = f"{dependence.series} {listing(words)} as {first}"
    return claim(text, dependence.cells, _details([dependence], axis))


def _bounded(group: Sequence[Dependence], axis: str) -> list[Claim]:
    """ "ep: time does not depend on top-k between 2 and 8 (within 5%)", or "changes by at most 20%
    between top-k 2 and 8"."""
    alike: dict[tuple[Any, ...], list[Dependence]] = {}
    for d in group:
        alike.setdefault((d.first, d.changes[-1].x, phrases.percent(d.bound)), []).append(d)
    claims = []
    for (_, _, bound), members in alike.items():
        what, between = phrases.of_axis(axis), _between(members)
        text = f"time does not depend on {what}{between} (within {bound})"
        if members[0].bound > findings.FLAT:
            text = f"time changes by at most {bound} with {what}{between}"
        text = f"{listing([d.series for d in members])}: {text}"
        claims.append(claim(text, [c for d in members for c in d.cells], _details(members, axis)))
    return claims


def _between(group: Sequence[Dependence]) -> str:
    """ " between 2 and 8" for an axis of numbers."""
    values = [x for d in group for x in (d.first, d.changes[-1].x)]
    if not all(isinstance(x, (int, float)) for x in values):
        return ""
    return f" between {min(values):g} and {max(values):g}"


def _unknown(group: Sequence[Dependence], axis: str) -> Claim:
    """Series whose intervals are too wide to say anything."""
    verdicts = [c.verdict for d in group for c in d.changes if c.verdict]
    little = "too noisy" if verdicts else "too few samples"
    names = listing([d.series for d in group])
    text = f"{names}: {little} to say whether time depends on {phrases.of_axis(axis)}"
    low = min((v.low for v in verdicts), default=0.0)
    high = max((v.high for v in verdicts), default=0.0)
    if low > 1 / TOO_WIDE and high < TOO_WIDE:
        first = phrases.short_at(axis, group[0].first)
        text += f" (it may be {times(low)} to {times(high)} times that {first})"
    return claim(text, [c for d in group for c in d.cells], _details(group, axis))


def _details(group: Sequence[Dependence], axis: str) -> str:
    """Every ratio with its interval, and the power where one fits."""
    texts = []
    for dependence in group:
        ratios = [
            f"{interval(c.verdict)} {phrases.short_at(axis, c.x)}" for c in dependence.changes
        ]
        if slope := dependence.exponent:
            power = f"{slope.center:.2f} [{slope.low:.2f}, {slope.high:.2f}]"
            ratios.append(f"~ {title_of(axis)}^{power}")
        texts.append(f"{dependence.series} {', '.join(ratios)}")
    return "; ".join(texts)
