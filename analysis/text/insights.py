"""What the data say along each axis: what is shown, what is not, how sure, and on which cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from analysis.data.facets import SERIAL, Facet, axes, facets, setting, title_of
from analysis.stats import findings, verdict
from analysis.stats.comparisons import Place, Standings
from analysis.stats.findings import Claim, Found
from analysis.stats.verdict import MIN_LAUNCHES, NOISE_THRESHOLD
from analysis.text import headline
from runners.host.project_paths import BENCH
from runners.records.stats import CONFIDENCE

# The seed's three themes, and the experiment that measures each.
THEMES = {
    "world_size": ("Rank scalability", "seed_ranks"),
    "batch_size": ("Batch size effect", "seed_batch"),
    "topk_requested": ("Top-k impact", "seed_topk"),
}
TITLES = {"load": "Skewed workloads", "mode": "Forward and training", "dtype": "Precision"}
MAX_FACETS = 3
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
    shown: list[Claim] = field(default_factory=list)
    not_shown: list[Claim] = field(default_factory=list)
    sure: str = ""
    limits: list[str] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)

    def refs(self, claim: Claim) -> str:
        """Where the claim's cells stand in `cells`, from 1: "1-3, 7"."""
        places = sorted(self.cells.index(c) + 1 for c in claim.cells if c in self.cells)
        runs: list[list[int]] = []
        for place in places:
            if runs and place == runs[-1][-1] + 1:
                runs[-1].append(place)
            else:
                runs.append([place])
        return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)

    def brief(self) -> list[str]:
        """For a terminal, where what it rests on is told further down."""
        found = [self.title]
        for name, listed in (("Shown", self.shown), ("Not shown", self.not_shown)):
            for claim in listed:
                count = f" [{len(claim.cells)} cells]" if claim.cells else ""
                found.append(f"  {name}: {claim.text}.{count}")
        return [*found, *(f"  Limits: {text}." for text in ["; ".join(self.limits)] if text)]

    def lines(self) -> list[str]:
        """For a terminal: one line a sentence; numbers in brackets are places among the cells."""
        found = [self.title]
        for name, listed in (("Shown", self.shown), ("Not shown", self.not_shown)):
            for claim in listed:
                refs = self.refs(claim)
                found.append(f"  {name}: {claim.text}." + (f" [{refs}]" if refs else ""))
        cells = ", ".join(f"{n} {cell}" for n, cell in enumerate(self.cells, 1))
        parts = (("How sure", self.sure), ("Limits", "; ".join(self.limits)), ("Cells", cells))
        return [*found, *(f"  {name}: {text}." for name, text in parts if text)]


def insights(
    frame: pd.DataFrame, cells: pd.DataFrame, threshold: float = NOISE_THRESHOLD
) -> list[Insight]:
    """One per facet of every axis, the seed's themes first, then its claim about tp."""
    return told(frame, cells, threshold)[1]


def told(
    frame: pd.DataFrame, cells: pd.DataFrame, threshold: float = NOISE_THRESHOLD
) -> tuple[Insight, list[Insight]]:
    """All in short, and the insights; their comparisons are corrected together."""
    found = {axis: facets(cells, axis)[:MAX_FACETS] for axis in axes(cells)}
    split_pairs = sum(len(p.series) for p in found.get("tokens", []))
    split_pairs += sum(findings.changes_count(p) for a, ps in found.items() for p in ps)
    every = [p for each in found.values() for p in each]
    meetings = headline.meetings(cells)
    standings = Standings(frame, every, threshold, also=split_pairs, meetings=meetings)
    ordered = [axis for axis in THEMES if axis in found]
    ordered += [axis for axis in found if axis not in THEMES and axis != "tokens"]
    made = [_along(facet, standings) for axis in ordered for facet in found[axis]]
    split = [_batch_split(facet, standings) for facet in found.get("tokens", [])]
    made += [insight for insight in split if insight]
    missing = [THEMES[axis] for axis in THEMES if axis not in found]
    made += [_missing(theme, experiment) for theme, experiment in missing]
    made += [] if any(split) else [_missing("Batch split in tp", "seed_topk")]
    return _in_short(cells, meetings, standings), made


def _in_short(cells: pd.DataFrame, meetings: Sequence[Place], standings: Standings) -> Insight:
    met = {str(cell["cell_id"]) for place in meetings for cell in place.cells.values()}
    rows = cells[[str(cell) in met for cell in cells["cell_id"]]]
    if rows.empty:
        text = "which strategy is fastest: no two were measured at one setting"
        return Insight("In short", not_shown=[Claim(text)])
    found = headline.standing(meetings, standings)
    sure = _sureness(rows, standings)
    limits = _flag_limits(rows)
    return Insight("In short", found.shown, found.not_shown, sure, limits, sorted(met))


def _missing(theme: str, experiment: str) -> Insight:
    remedy = f"{BENCH} experiment={experiment}"
    text = f"these records have no cells for it; measure with {remedy}"
    return Insight(theme, not_shown=[Claim(text)])


def _along(facet: Facet, standings: Standings) -> Insight:
    named = TITLES.get(facet.axis, f"Along {title_of(facet.axis)}")
    title = THEMES.get(facet.axis, (named, ""))[0]
    found = findings.along(facet, standings)
    return Insight(
        f"{title} ({setting(facet)})",
        found.shown,
        found.not_shown,
        _sureness(facet.cells, standings),
        _limits(facet),
        _ids(facet),
    )


def _ids(facet: Facet) -> list[str]:
    return list(dict.fromkeys(str(c) for c in facet.cells["cell_id"]))


def _sureness(cells: pd.DataFrame, standings: Standings) -> str:
    launches = [int(n) for n in cells["launches"] if n]
    count = standings.comparisons
    level = f"{CONFIDENCE:.0%} intervals, all {count} comparisons together (Bonferroni)"
    noise = f"differences under {standings.threshold:.0%} are not called any"
    if launches and min(launches) >= MIN_LAUNCHES:
        return f"{level}, over {min(launches)} or more launches; {noise}"
    fewest = min(launches, default=0)
    words = "within one launch only" if fewest == 1 else f"in these {fewest} launches only"
    return (
        f"{level}, {words}: variation between launches is not in them; {noise}; "
        "measure.launches=5 would settle it"
    )


def _flag_limits(rows: pd.DataFrame) -> list[str]:
    counts = Counter(flag for flags in rows["flags"] for flag in flags)
    return [
        f"{n} of {len(rows)} cells {flag.replace('_', ' ')}"
        + (f" ({LIMITS[flag]})" if flag in LIMITS else "")
        for flag, n in counts.items()
    ]


def _limits(facet: Facet) -> list[str]:
    texts = _flag_limits(facet.cells[facet.cells["outcome"] == "measured"])
    tested = facet.cells[facet.cells["strategy"] != SERIAL]
    grows = facet.axis == "world_size" and tested["num_experts"].nunique() > 1
    if grows:
        texts.append("experts grow with ranks, so this is neither strong nor weak scaling")
    broken = facet.cells[facet.cells["outcome"] != "measured"]
    if not broken.empty:
        texts.append(f"{len(broken)} cells have no time: {', '.join(broken['cell_id'])}")
    return texts


def _batch_split(facet: Facet, standings: Standings) -> Insight | None:
    """The seed's claim that splitting the batch speeds tp up: sharded against replicated tokens."""
    places = {place.x: place for place in standings.places(facet)}
    if not {"replicated", "sharded"} <= set(places):
        return None
    both = set(places["replicated"].cells) & set(places["sharded"].cells) - {SERIAL}
    if not any(name.split(" ")[0] == "tp" for name in both):
        return None
    made = Found()
    for name in sorted(both):
        sharded, whole = places["sharded"].cells[name], places["replicated"].cells[name]
        found = standings.verdict(sharded, whole)
        forms = [f"{name} with {tokens} tokens" for tokens in ("sharded", "replicated")]
        text = verdict.sentence(forms[0], forms[1], found, standings.threshold)
        shown = found is not None and found.word in (verdict.FASTER, verdict.SLOWER)
        made.say(shown, text, [sharded, whole])
    limit = "sharded ranks end with their own tokens' outputs only, replicated ones with all"
    return Insight(
        f"Batch split in tp ({setting(facet)})",
        made.shown,
        made.not_shown,
        _sureness(facet.cells, standings),
        [limit, *_limits(facet)],
        _ids(facet),
    )
