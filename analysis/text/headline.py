"""`In short`: which strategy is fastest, whether spreading the layer pays, how sure that is, and
what limits it most.

A setting is a value of everything but the strategy at which two or more strategies were measured.
Every sentence has the ids of the cells it rests on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from analysis.data.cell_summary import CellSummary, measured, summaries
from analysis.data.facets import COMPANIONS, DESCRIBED, Facet, grouped, sort_key, title_of
from analysis.data.frame import varying
from analysis.data.series import (
    SERIAL,
    VARIANT,
    serial_of,
    series_names,
    series_order,
    without_serial,
)
from analysis.stats import findings
from analysis.stats.comparisons import Place, Standings
from analysis.stats.verdict import FASTER, MIN_LAUNCHES, SLOWER
from analysis.text import flag_legend, phrases, sentences
from analysis.text.phrases import listing, span
from analysis.text.sentences import Claim, claim
from moe.spec import PEER
from runners.records.stats import CONFIDENCE

NAMED = 3  # settings that are written out
LEADS = 4  # groups of settings with the same leaders that are written out
NOT_SPREAD = (SERIAL, "simple")  # strategies that compute everything on each of their ranks


def meetings(cells: pd.DataFrame) -> list[Place]:
    """Every setting at which two or more series were measured: its description and their cells."""
    timed = measured(cells.assign(series=series_names(cells)))
    tested = without_serial(timed)
    free = ("strategy", "topk", *VARIANT)
    names = [n for n in varying(tested, (*DESCRIBED, "host", "metric")) if n not in free]
    hosts = list(dict.fromkeys(tested["host"]))  # ids, which are told by their number
    places = []
    for fixed, part in grouped(tested, names):
        by_series = dict(zip(part["series"], summaries(part), strict=True))
        for serial in summaries(serial_of(timed, summaries(part)[0])):
            by_series[SERIAL] = serial
        words = ", ".join(
            f"machine {hosts.index(v) + 1}" if n == "host" else phrases.value(n, [v])
            for n, v in fixed
        )
        if len(by_series) > 1:
            order = sorted(by_series, key=series_order)
            named = {name: by_series[name] for name in order}
            places.append(Place(words, named, fixed))
    return sorted(places, key=lambda place: [sort_key(value) for _, value in place.fixed])


def claims(
    cells: pd.DataFrame, places: Sequence[Place], facets: Sequence[Facet], standings: Standings
) -> list[Claim]:
    """Who is fastest; whether spreading the layer pays; ours beside other systems."""
    rows = summaries(measured(cells))
    if not rows:
        return [claim("No cell has a time, so there is nothing to compare")]
    if not places:
        return [_no_meeting(cells)]
    every = [_fastest(places, facets, standings)]
    return every + [c for c in (_spreading(places, standings), _peers(places, standings)) if c]


def _no_meeting(cells: pd.DataFrame) -> Claim:
    timed = measured(cells)
    names = list(dict.fromkeys(series_names(timed)))
    if len(names) == 1:
        text = f"Only {names[0]} was measured, so there is no other strategy to compare it with"
    else:
        text = f"{listing(names)} were not measured at the same setting, so they are not compared"
    return claim(text, summaries(timed))


def _fastest(places: Sequence[Place], facets: Sequence[Facet], standings: Standings) -> Claim:
    """Along the one axis there is, or by how many settings."""
    if len(facets) == 1:
        along = standings.places(facets[0])
        if len(places) == sum(len(place.cells) > 1 for place in along):
            where = along_axis(facets[0].axis, along)
            return sentences.standing(along, standings, where)
    if len(places) == 1:
        return sentences.standing(places, standings, lambda _: "")
    if one_axis := _by_one_axis(places, standings):
        return one_axis
    leads = sorted(findings.leads(places, standings), key=lambda lead: -len(lead.places))
    of_all = {place.x: place for place in places}

    def at_settings(words: Sequence[object]) -> str:
        return _of([of_all[x] for x in words], len(places))

    parts = [sentences.lead_text(lead, standings, at_settings) for lead in leads]
    left = len(parts) - LEADS
    more = [f"others at {sum(len(lead.places) for lead in leads[LEADS:])} settings"]
    text = "; ".join([*parts[:LEADS], *(more if left > 0 else [])])
    return claim(text, [c for lead in leads for c in lead.cells])


def along_axis(axis: str, places: Sequence[Place]) -> Callable[[Sequence[object]], str]:
    """Words for some of the values of the axis at which series meet."""
    meeting = {place.x for place in places if len(place.cells) > 1}
    numeric = all(isinstance(x, (int, float)) for x in meeting)

    def where(values: Sequence[object]) -> str:
        count = len(set(values))
        if count == len(meeting) and (count > 2 or (numeric and count > 1)):
            return phrases.every(axis)
        return phrases.at(axis, list(dict.fromkeys(values)))

    return where


def _by_one_axis(places: Sequence[Place], standings: Standings) -> Claim | None:
    """Where one axis alone decides who is fastest: by its values, whatever the others are."""
    leaders = {id(place): tuple(standings.leaders(place)) for place in places}
    if len(set(leaders.values())) < 2 or len(places[0].fixed) < 2:
        return None
    for axis, _ in places[0].fixed:
        by_value: dict[object, list[Place]] = {}
        for place in places:
            by_value.setdefault(dict(place.fixed)[axis], []).append(place)
        others = {value: {_without(place, axis) for place in at} for value, at in by_value.items()}
        crossed = (
            min(map(len, others.values())) > 1 and len(set(map(frozenset, others.values()))) == 1
        )
        alone = all(len({leaders[id(place)] for place in at}) == 1 for at in by_value.values())
        if crossed and alone:
            along = [replace(place, x=dict(place.fixed)[axis]) for place in places]
            along_it = sentences.standing(along, standings, along_axis(axis, along), behind=False)
            free = listing([title_of(name) for name in _varied(places, axis)])
            return replace(along_it, text=f"Whatever the {free}, {along_it.text}")
    return None


def _without(place: Place, axis: str) -> tuple[object, ...]:
    """The other settings of a place, but for those that follow the axis."""
    return tuple(v for n, v in place.fixed if n != axis and n not in COMPANIONS.get(axis, ()))


def _varied(places: Sequence[Place], axis: str) -> list[str]:
    """The columns that vary beside the axis and do not follow it."""
    companions = COMPANIONS.get(axis, ())
    return [n for n, _ in places[0].fixed if n != axis and n not in companions]


def _of(places: Sequence[Place], total: int) -> str:
    """ "at 2 of 4 settings (batch size 16; batch size 32)"."""
    if len(places) == total:
        return f"at all {total} settings"
    text = f"at {len(places)} of {total} settings"
    return text + (f" ({'; '.join(p.x for p in places)})" if len(places) <= NAMED else "")


def _strategy(series: str) -> str:
    return series.partition(" ")[0]


def _spreading(places: Sequence[Place], standings: Standings) -> Claim | None:
    """The fastest way to spread the layer against serial, at the settings that have both."""
    pairs = []
    for place in places:
        spread = [
            series for series in place.cells
            if _strategy(series) not in NOT_SPREAD and not series.startswith(PEER)
        ]  # fmt: skip
        if SERIAL in place.cells and spread:
            best = min(spread, key=lambda n: place.cells[n].median_ms)
            pairs.append((place, best))
    if not pairs:
        return None
    results = [standings.verdict(place.cells[SERIAL], place.cells[best]) for place, best in pairs]
    slower = [1 / r.ratio for r in results if r and r.word == FASTER]
    faster = [r.ratio for r in results if r and r.word == SLOWER]
    total = len(pairs)
    paying = [(p, n) for (p, n), r in zip(pairs, results, strict=True) if r and r.word == SLOWER]
    best_names = listing(list(dict.fromkeys(n for _, n in (paying or pairs))), "or")
    serial = "serial (one process with every core)"
    if len(slower) == total:
        text = "Spreading the layer over ranks does not pay here: the fastest way, "
        text += f"{best_names}, takes {span(slower)} times as long as {serial}"
    elif len(faster) == total:
        text = "Spreading the layer over ranks pays: the fastest way, "
        text += f"{best_names}, is {span(faster)} times as fast as {serial}"
    elif faster:
        text = f"Spreading the layer over ranks pays {_of([p for p, _ in paying], total)}: there "
        text += f"{best_names} is {span(faster)} times as fast as {serial}"
    else:
        text = f"No way of spreading the layer over ranks is shown to be faster than {serial}"
    used = [place.cells[name] for place, best in pairs for name in (SERIAL, best)]
    detail = "; ".join(sentences.ratio_at(p, SERIAL, best, standings) for p, best in pairs)
    return claim(text, used, detail)


def _peers(places: Sequence[Place], standings: Standings) -> Claim | None:
    """The fastest of ours against the fastest other system, by setting."""
    pairs = []
    for place in places:
        names = [n for n in place.cells if n != SERIAL]
        sides = [[n for n in names if n.startswith(PEER) == side] for side in (False, True)]
        if all(sides):
            ours, theirs = (min(s, key=lambda n: place.cells[n].median_ms) for s in sides)
            result = standings.verdict(place.cells[theirs], place.cells[ours])
            if result:
                pairs.append((place, ours, theirs, result))
    if not pairs:
        return None
    words = [result.word for *_, result in pairs]
    ratios = [result.ratio for *_, result in pairs]
    faster, slower, total = words.count(SLOWER), words.count(FASTER), len(pairs)
    as_long = f"the other takes {span(ratios)} times as long"
    everywhere = " at every setting" if total > 1 else ""
    if faster == total:
        text = f"Ours is faster than the best other system{everywhere}: {as_long}"
    elif slower == total:
        text = f"The best other system is faster than ours{everywhere}: "
        text += f"ours takes {span([1 / ratio for ratio in ratios])} times as long"
    elif faster or slower:
        rest = total - faster - slower
        counts = [f"slower at {slower}"] * bool(slower) + [f"not told apart at {rest}"] * bool(rest)
        text = f"Ours is faster than the best other system at {faster} of {total} settings"
        text += f"{', ' if len(counts) > 1 else ' and '}{listing(counts)}: {as_long}"
    else:
        text = f"No difference is shown between ours and the best other system: {as_long}"
    detail = "; ".join(sentences.ratio_at(p, b, a, standings) for p, a, b, _ in pairs)
    return claim(text, [p.cells[n] for p, *names, _ in pairs for n in names], detail)


def sureness(cells: Sequence[CellSummary], standings: Standings) -> str:
    """What the intervals cover, from the cell with the fewest launches; "" without comparisons."""
    launches = [cell.launches for cell in cells if cell.launches]
    if not launches or not standings.comparisons:
        return ""
    count = standings.comparisons
    what = f"all {count} comparisons hold together" if count > 1 else "the comparison holds"
    level = f"{what} with {CONFIDENCE:.0%} confidence"
    noise = f"a difference counts only if it is surely over {standings.threshold:.0%}"
    fewest = min(launches)
    if fewest >= MIN_LAUNCHES:
        return f"{level}, over {fewest} or more launches; {noise}"
    here = f"with {'one launch' if fewest == 1 else f'{fewest} launches'} of each cell"
    remedy = f"measure.launches={MIN_LAUNCHES} covers what changes from launch to launch"
    return f"{level}, {here} ({remedy}); {noise}"


def limit(cells: pd.DataFrame) -> str:
    """The limit that matters most, and how many others there are; "" for none."""
    every = summaries(cells)
    missing = [cell.outcome for cell in every if not (cell.measured or cell.checked)]
    texts: list[str] = []
    if missing:
        kinds = [f"{missing.count(kind)} {kind}" for kind in dict.fromkeys(missing)]
        kinds = kinds if len(kinds) > 1 else missing[:1]
        texts.append(
            f"{_cells(len(missing), len(every), 'have no time')} ({', '.join(kinds)}): "
            "python -m analysis status says why"
        )
    timed = [cell for cell in every if cell.measured]
    counts = {name: sum(name in cell.flags for cell in timed) for name in flag_legend.MARKS}
    first = ["oversubscribed"]  # the others by how many cells they touch
    order = first + sorted((n for n in counts if n not in first), key=lambda n: -counts[n])
    texts += [
        _cells(counts[name], len(timed), flag_legend.MARKS[name].limit)
        for name in order if counts[name] and flag_legend.MARKS[name].limit
    ]  # fmt: skip
    left = len(texts) - 1
    more = f"; {left} more {'limit' if left == 1 else 'limits'}: python -m analysis check"
    return texts[0] + (more if left else "") if texts else ""


def _cells(count: int, total: int, limit: str) -> str:
    """ "all 9 cells have ...", "1 of 9 cells was ..."."""
    if count > 1 or count < total:
        which = f"all {total} cells" if count == total else f"{count} of {total} cells"
    else:
        which = "the cell"
    verb, _, rest = limit.partition(" ")
    verb = {"have": "has", "were": "was"}.get(verb, verb) if count == 1 else verb
    return f"{which} {verb} {rest}"
