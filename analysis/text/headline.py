"""`In short`: which strategy is fastest at how many of the settings, and by how much.

A setting is a value of everything but the strategy at which two or more strategies were measured.
Every sentence has the ids of the cells it rests on.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis import numbers
from analysis.data.cell_summary import measured, summaries
from analysis.data.facets import DESCRIBED, grouped, title_of
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
from analysis.stats.findings import Claim, Claims

NAMED = 3  # undecided settings that are written out


def meetings(cells: pd.DataFrame) -> list[Place]:
    """Every setting at which two or more series were measured: its description and their cells."""
    timed = measured(cells.assign(series=series_names(cells)))
    tested = without_serial(timed)
    free = ("strategy", "topk", *VARIANT)
    names = [n for n in varying(tested, (*DESCRIBED, "host")) if n not in free]
    places = []
    for fixed, part in grouped(tested, names):
        by_series = dict(zip(part["series"], summaries(part), strict=True))
        for serial in summaries(serial_of(timed, summaries(part)[0])):
            by_series[SERIAL] = serial
        words = ", ".join(f"{title_of(n)} {value}" for n, value in fixed if n != "host")
        if len(by_series) > 1:
            order = sorted(by_series, key=series_order)
            places.append(Place(words, {name: by_series[name] for name in order}))
    return places


def standing(places: Sequence[Place], standings: Standings) -> Claims:
    """At how many settings each strategy is fastest, and the settings without a single fastest."""
    claims = Claims()
    won: dict[str, list[Place]] = {}
    open_places: list[tuple[Place, list[str]]] = []
    for place in places:
        leaders = standings.leaders(place)
        if len(leaders) == 1:
            won.setdefault(leaders[0], []).append(place)
        else:
            open_places.append((place, leaders))
    for name, at in sorted(won.items(), key=lambda item: -len(item[1])):
        cells = [cell for place in at for cell in place.cells.values()]
        claims.add(True, _win_text(name, at, len(places), standings), cells)
    if open_places:
        claims.not_shown.append(_undecided(open_places, len(places)))
    return claims


def _win_text(name: str, at: Sequence[Place], total: int, standings: Standings) -> str:
    if len(at) == 1:
        margin = findings.margin(name, at[0], standings)
        return f"{name} is fastest{_place_text(at[0], total)}: {margin}"
    leads = sorted(standings.lead(place) for place in at)
    low, high = (numbers.short(lead) for lead in (leads[0], leads[-1]))
    where = f"all {total}" if len(at) == total else f"{len(at)} of {total}"
    return f"{name} is fastest at {where} settings, by {low}x to {high}x over the next"


def _place_text(place: Place, total: int) -> str:
    return f" at 1 of {total} settings ({place.x})" if total > 1 and place.x else ""


def _undecided(places: Sequence[tuple[Place, list[str]]], total: int) -> Claim:
    texts = [findings.listing(names) + (f" at {p.x}" if p.x else "") for p, names in places[:NAMED]]
    more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
    count = f"{len(places)} of {total} settings" if total > 1 else "the setting measured"
    ids = [cell.cell_id for place, _ in places for cell in place.cells.values()]
    text = f"a single fastest at {count}: among {'; among '.join(texts)}{more}"
    return Claim(text, tuple(dict.fromkeys(ids)))
