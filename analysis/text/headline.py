"""The first thing to read: which strategy is fastest at how many of the settings, and by how much.

A setting is all that is fixed while strategies meet. Every sentence carries its cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis import numbers
from analysis.data.facets import (
    DESCRIBED,
    SERIAL,
    VARIANT,
    grouped,
    serial_of,
    series_names,
    series_order,
    title_of,
)
from analysis.data.frame import varying
from analysis.stats import findings
from analysis.stats.comparisons import Place, Standings
from analysis.stats.findings import Claim, Found

NAMED = 3  # undecided settings that are written out


def meetings(cells: pd.DataFrame) -> list[Place]:
    """Every setting at which two or more were measured, in words, with its cells by series."""
    named = cells.assign(series=series_names(cells))
    named = named[named["outcome"] == "measured"]
    tested, serial = (named[(named["strategy"] == SERIAL) == one] for one in (False, True))
    free = ("strategy", "topk", *VARIANT)
    names = [n for n in varying(tested, (*DESCRIBED, "host")) if n not in free]
    found = []
    for fixed, part in grouped(tested, names):
        rows = {str(row["series"]): row for _, row in part.iterrows()}
        for _, row in serial_of(serial, part.iloc[0]).iterrows():
            rows[SERIAL] = row
        words = ", ".join(f"{title_of(n)} {value}" for n, value in fixed if n != "host")
        ordered = dict(sorted(rows.items(), key=lambda item: series_order(item[0])))
        if len(ordered) > 1:
            found.append(Place(words, ordered))
    return found


def standing(places: Sequence[Place], standings: Standings) -> Found:
    """Who is fastest where, counted; settings without a single fastest are named."""
    found = Found()
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
        found.say(True, _won(name, at, len(places), standings), cells)
    if open_places:
        found.not_shown.append(_undecided(open_places, len(places)))
    return found


def _won(name: str, at: Sequence[Place], total: int, standings: Standings) -> str:
    if len(at) == 1:
        return f"{name} is fastest{_where(at[0], total)}: {findings.margin(name, at[0], standings)}"
    leads = sorted(standings.lead(place) for place in at)
    low, high = (numbers.short(lead) for lead in (leads[0], leads[-1]))
    where = f"all {total}" if len(at) == total else f"{len(at)} of {total}"
    return f"{name} is fastest at {where} settings, by {low}x to {high}x over the next"


def _where(place: Place, total: int) -> str:
    return f" at 1 of {total} settings ({place.x})" if total > 1 and place.x else ""


def _undecided(places: Sequence[tuple[Place, list[str]]], total: int) -> Claim:
    texts = [findings.listing(names) + (f" at {p.x}" if p.x else "") for p, names in places[:NAMED]]
    more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
    count = f"{len(places)} of {total} settings" if total > 1 else "the setting measured"
    ids = [str(cell["cell_id"]) for place, _ in places for cell in place.cells.values()]
    text = f"a single fastest at {count}: among {'; among '.join(texts)}{more}"
    return Claim(text, tuple(dict.fromkeys(ids)))
