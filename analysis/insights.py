"""What the data say along each axis: what is shown, what is not, how sure, and on which cells."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis import verdict
from analysis.panels import SERIAL, Panel, axes, panels, setting, title_of
from analysis.standings import Place, Standings
from analysis.verdict import MIN_LAUNCHES, NOISE_THRESHOLD, Estimate
from runners.estimate import CONFIDENCE

# The seed's three themes, and the experiment that measures each.
THEMES = {
    "world_size": ("Rank scalability", "seed_ranks"),
    "batch_size": ("Batch size effect", "seed_batch"),
    "topk_requested": ("Top-k impact", "seed_topk"),
}
MAX_PANELS = 3
LIMITS = {
    "oversubscribed": "waiting for a core is part of the time, so nothing here is shown about a "
    "machine with a core for every rank",
    "under_floor": "blocks are too short against the clock's floor",
    "no_steady_state": "no steady state was seen",
    "drift": "the machine drifted",
    "clamped": "top-k ran as the number of experts there",
}


@dataclass
class Insight:
    """A paragraph: what is shown, what is not, what limits it, and the cells it rests on."""

    title: str
    shown: list[str] = field(default_factory=list)
    not_shown: list[str] = field(default_factory=list)
    sure: str = ""
    limits: list[str] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For a terminal: one line a part."""
        parts = [
            ("Shown", "; ".join(self.shown)),
            ("Not shown", "; ".join(self.not_shown)),
            ("How sure", self.sure),
            ("Limits", "; ".join(self.limits)),
            ("Cells", " ".join(self.cells)),
        ]
        return [self.title, *(f"  {name}: {text}." for name, text in parts if text)]


def insights(
    frame: pd.DataFrame, cells: pd.DataFrame, threshold: float = NOISE_THRESHOLD
) -> list[Insight]:
    """One per panel of every axis, the seed's themes first, then its claim about tp."""
    found = {axis: panels(cells, axis)[:MAX_PANELS] for axis in axes(cells)}
    split_pairs = sum(len(p.series) for p in found.get("tokens", []))
    every = [p for each in found.values() for p in each]
    standings = Standings(frame, every, threshold, also=split_pairs)
    ordered = [axis for axis in THEMES if axis in found]
    ordered += [axis for axis in found if axis not in THEMES and axis != "tokens"]
    made = [_along(panel, standings) for axis in ordered for panel in found[axis]]
    split = [_batch_split(panel, standings) for panel in found.get("tokens", [])]
    made += [insight for insight in split if insight]
    missing = [THEMES[axis] for axis in THEMES if axis not in found]
    made += [_missing(theme, experiment) for theme, experiment in missing]
    return made if any(split) else [*made, _missing("Batch split in tp", "seed_topk")]


def _missing(theme: str, experiment: str) -> Insight:
    remedy = f"python runners/bench.py experiment={experiment}"
    return Insight(theme, not_shown=[f"these records have no cells for it; measure with {remedy}"])


def _along(panel: Panel, standings: Standings) -> Insight:
    title = THEMES.get(panel.axis, (f"Along {title_of(panel.axis)}", ""))[0]
    made = Insight(f"{title} ({setting(panel)})", cells=_ids(panel))
    _growth(panel, standings, made)
    _winners(panel, standings, made)
    _speedups(panel, standings, made)
    made.sure = _sureness(panel, standings)
    made.limits = _limits(panel)
    return made


def _ids(panel: Panel) -> list[str]:
    return list(dict.fromkeys(str(c) for c in panel.cells["cell_id"]))


def _growth(panel: Panel, standings: Standings, made: Insight) -> None:
    """The exponent p of duration ~ axis^p for every series, with its interval."""
    series = [name for name in panel.series if name != SERIAL]
    for name in series:
        found = exponent(panel, standings, name, len(series))
        if found is None:
            continue
        text = f"~ {title_of(panel.axis)}^{_exponent_text(found)}"
        if found.low > 0:
            made.shown.append(f"{name} grows {text}")
        elif found.high < 0:
            made.shown.append(f"{name} falls {text}")
        else:
            made.not_shown.append(f"whether {name} grows or falls ({text})")


def _exponent_text(found: Estimate) -> str:
    return f"{found.center:.2f} [{found.low:.2f}, {found.high:.2f}]"


def exponent(panel: Panel, standings: Standings, name: str, family: int) -> Estimate | None:
    """Least-squares slope of log duration on log axis; its interval is of the noise, not of the
    misfit of a power law. None for fewer than two places, or values that have no logarithm."""
    points = [(p.x, p.cells[name]) for p in standings.places(panel) if name in p.cells]
    if len(points) < 2 or not all(_positive(x) for x, _ in points):
        return None
    series = [standings.series(cell) for _, cell in points]
    launches = all(len(s.medians) >= MIN_LAUNCHES for s in series)
    groups = [list(s.medians.values()) if launches else s.all_rounds() for s in series]
    weights = slope_weights([math.log(x) for x, _ in points])
    each = verdict.level(CONFIDENCE, family)
    return verdict.contrast_interval(weights, [verdict.logs(g) for g in groups], each)


def _positive(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and x > 0


def slope_weights(x: list[float]) -> list[float]:
    """Weights w with sum(w * y) the least-squares slope of y on x."""
    mean = statistics.fmean(x)
    total = sum((value - mean) ** 2 for value in x)
    return [(value - mean) / total for value in x]


def _winners(panel: Panel, standings: Standings, made: Insight) -> None:
    """Who is fastest where; ties are named as such."""
    places = [p for p in standings.places(panel) if len(p.cells) > 1]
    by_leaders: dict[tuple[str, ...], list[str]] = {}
    for place in places:
        by_leaders.setdefault(tuple(standings.leaders(place)), []).append(str(place.x))
    axis = title_of(panel.axis)
    for leaders, values in by_leaders.items():
        listed = f"{axis} {', '.join(values)}"
        where = f"every value of {axis} measured" if len(by_leaders) == 1 else listed
        if len(leaders) == 1:
            margin = _margin(leaders[0], places, values, standings)
            made.shown.append(f"{leaders[0]} is fastest at {where}{margin}")
        else:
            made.not_shown.append(f"which of {' and '.join(leaders)} is fastest at {where}")
    _undecided(places, standings, made)


def _margin(leader: str, places: list[Place], values: list[str], standings: Standings) -> str:
    """Ahead of the nearest by how much, at the last of these places."""
    place = next(p for p in reversed(places) if str(p.x) in values)
    others = [n for n in place.cells if n != leader]
    nearest = min(others, key=lambda n: float(place.cells[n]["median_ms"]))
    found = standings.verdict(place.cells[leader], place.cells[nearest])
    if found is None:
        return ""
    text = f"{1 / found.ratio:.2f}x [{1 / found.high:.2f}, {1 / found.low:.2f}]"
    return f" (at {place.x}: {text} ahead of {nearest})"


def _undecided(places: list[Place], standings: Standings, made: Insight) -> None:
    texts = []
    for place in places:
        for a, b in itertools.combinations(place.cells, 2):
            found = standings.verdict(place.cells[a], place.cells[b])
            if found is None or found.word in (verdict.UNDECIDED, verdict.SAME):
                texts.append(f"{a} and {b} at {place.x}")
    if texts:
        more = f" and {len(texts) - 4} more" if len(texts) > 4 else ""
        made.not_shown.append(f"a difference between {', '.join(texts[:4])}{more}")


def _speedups(panel: Panel, standings: Standings, made: Insight) -> None:
    """The fastest spread-out strategy against both baselines, at the last place that has them."""
    for baseline in (SERIAL, "simple"):
        places = [p for p in standings.places(panel) if baseline in p.cells]
        last = places[-1].cells if places else {}
        rivals = {n: c for n, c in last.items() if n not in (SERIAL, "simple")}
        if not rivals:
            continue
        best = min(rivals, key=lambda n: float(rivals[n]["median_ms"]))
        found = standings.verdict(places[-1].cells[baseline], rivals[best])
        if found:
            text = (
                f"speed-up of {best} against {baseline} at {places[-1].x}: "
                f"{found.ratio:.2f}x [{found.low:.2f}, {found.high:.2f}]"
            )
            told = found.word in (verdict.FASTER, verdict.SLOWER)
            (made.shown if told else made.not_shown).append(text)


def _sureness(panel: Panel, standings: Standings) -> str:
    launches = [int(n) for n in panel.cells["launches"] if n]
    count = standings.comparisons
    level = f"{CONFIDENCE:.0%} intervals, all {count} comparisons together (Bonferroni)"
    noise = f"differences under {standings.threshold:.0%} are not called any"
    if launches and min(launches) >= MIN_LAUNCHES:
        return f"{level}, over {min(launches)} or more launches; {noise}"
    fewest = min(launches, default=0)
    words = "in this launch only" if fewest == 1 else f"in these {fewest} launches only"
    return (
        f"{level}, {words}: variation between launches is not in them; {noise}; "
        "measure.launches=5 would settle it"
    )


def _limits(panel: Panel) -> list[str]:
    rows = panel.cells[panel.cells["outcome"] == "measured"]
    counts = Counter(flag for flags in rows["flags"] for flag in flags)
    texts = [
        f"{n} of {len(rows)} cells {flag.replace('_', ' ')}"
        + (f" ({LIMITS[flag]})" if flag in LIMITS else "")
        for flag, n in counts.items()
    ]
    tested = panel.cells[panel.cells["strategy"] != SERIAL]
    grows = panel.axis == "world_size" and tested["num_experts"].nunique() > 1
    if grows:
        texts.append("experts grow with ranks, so this is neither strong nor weak scaling")
    broken = panel.cells[panel.cells["outcome"] != "measured"]
    if not broken.empty:
        texts.append(f"{len(broken)} cells have no time: {', '.join(broken['cell_id'])}")
    return texts


def _batch_split(panel: Panel, standings: Standings) -> Insight | None:
    """The seed's claim that splitting the batch speeds tp up: sharded against replicated tokens."""
    places = {place.x: place for place in standings.places(panel)}
    if not {"replicated", "sharded"} <= set(places):
        return None
    both = set(places["replicated"].cells) & set(places["sharded"].cells) - {SERIAL}
    if not any(name.split(" ")[0] == "tp" for name in both):
        return None
    made = Insight(f"Batch split in tp ({setting(panel)})")
    for name in sorted(both):
        sharded, whole = places["sharded"].cells[name], places["replicated"].cells[name]
        found = standings.verdict(sharded, whole)
        forms = [f"{name} with {tokens} tokens" for tokens in ("sharded", "replicated")]
        text = verdict.sentence(forms[0], forms[1], found, standings.threshold)
        shown = found is not None and found.word in (verdict.FASTER, verdict.SLOWER)
        (made.shown if shown else made.not_shown).append(text)
        made.cells += [str(sharded["cell_id"]), str(whole["cell_id"])]
    made.sure = _sureness(panel, standings)
    made.limits = [
        "sharded ranks end with their own tokens' outputs only, replicated ones with all",
        *_limits(panel),
    ]
    return made
