"""Insights: sentences along each axis that are shown and not shown, how sure, and their cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from analysis.data.cell_summary import CellSummary, measured, summaries
from analysis.data.facets import Facet, axes, facets, setting, title_of
from analysis.data.series import SERIAL, without_serial
from analysis.stats import findings, verdict
from analysis.stats.comparisons import Place, Standings
from analysis.stats.findings import Claim, Claims
from analysis.stats.verdict import MIN_LAUNCHES, NOISE_THRESHOLD
from analysis.text import headline
from runners.host.project_paths import BENCH
from runners.records.stats import CONFIDENCE

# The reference's three themes, and the experiment that measures each.
THEMES = {
    "world_size": ("Rank scalability", "reference_ranks"),
    "batch_size": ("Batch size effect", "reference_batch"),
    "topk_requested": ("Top-k impact", "reference_topk"),
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
        """For a terminal: one line a sentence with the number of its cells, then the limits."""
        counts = {claim: f"{len(claim.cells)} cells" for claim in self.claims if claim.cells}
        return [*self._sentences(counts), *_labelled({"Limits": "; ".join(self.limits)})]

    def lines(self) -> list[str]:
        """For a terminal: one line a sentence; numbers in brackets are places among the cells."""
        refs = {claim: self.refs(claim) for claim in self.claims}
        cells = ", ".join(f"{n} {cell}" for n, cell in enumerate(self.cells, 1))
        ends = {"How sure": self.sure, "Limits": "; ".join(self.limits), "Cells": cells}
        return [*self._sentences(refs), *_labelled(ends)]

    @property
    def claims(self) -> list[Claim]:
        return [*self.shown, *self.not_shown]

    def _sentences(self, notes: Mapping[Claim, str]) -> list[str]:
        """The title, then a line for every claim with its note in brackets."""
        groups = (("Shown", self.shown), ("Not shown", self.not_shown))
        return [self.title] + [
            f"  {name}: {claim.text}." + (f" [{notes[claim]}]" if notes.get(claim) else "")
            for name, claims in groups
            for claim in claims
        ]


def _labelled(texts: Mapping[str, str]) -> list[str]:
    return [f"  {name}: {text}." for name, text in texts.items() if text]


def insights(
    frame: pd.DataFrame, cells: pd.DataFrame, threshold: float = NOISE_THRESHOLD
) -> list[Insight]:
    """One per facet of every axis, the reference's themes first, then its claim about tp."""
    return headline_and_insights(frame, cells, threshold)[1]


def headline_and_insights(
    frame: pd.DataFrame, cells: pd.DataFrame, threshold: float = NOISE_THRESHOLD
) -> tuple[Insight, list[Insight]]:
    """The insight "In short", and all others; their comparisons are corrected together."""
    by_axis = {axis: facets(cells, axis)[:MAX_FACETS] for axis in axes(cells)}
    every = [facet for of_axis in by_axis.values() for facet in of_axis]
    by_tokens = by_axis.get("tokens", [])
    along = sum(len(f.series) for f in by_tokens) + sum(findings.changes_count(f) for f in every)
    meetings = headline.meetings(cells)
    standings = Standings(frame, every, threshold, also=along, meetings=meetings)
    ordered = [axis for axis in THEMES if axis in by_axis]
    ordered += [axis for axis in by_axis if axis not in THEMES and axis != "tokens"]
    split = [i for i in (_batch_split(facet, standings) for facet in by_tokens) if i]
    return _in_short(cells, meetings, standings), [
        *(_along(facet, standings) for axis in ordered for facet in by_axis[axis]),
        *split,
        *(_missing(*THEMES[axis]) for axis in THEMES if axis not in by_axis),
        *([] if split else [_missing("Batch split in tp", "reference_topk")]),
    ]


def _in_short(cells: pd.DataFrame, meetings: Sequence[Place], standings: Standings) -> Insight:
    met = {cell.cell_id for place in meetings for cell in place.cells.values()}
    rows = [cell for cell in summaries(cells) if cell.cell_id in met]
    if not rows:
        text = "which strategy is fastest: no two were measured at one setting"
        return Insight("In short", not_shown=[Claim(text)])
    claims = headline.standing(meetings, standings)
    sure = _sureness(rows, standings)
    limits = _flag_limits(rows)
    return Insight("In short", claims.shown, claims.not_shown, sure, limits, sorted(met))


def _missing(theme: str, experiment: str) -> Insight:
    remedy = f"{BENCH} experiment={experiment}"
    text = f"these records have no cells for it; measure with {remedy}"
    return Insight(theme, not_shown=[Claim(text)])


def _along(facet: Facet, standings: Standings) -> Insight:
    named = TITLES.get(facet.axis, f"Along {title_of(facet.axis)}")
    title = THEMES.get(facet.axis, (named, ""))[0]
    claims = findings.along(facet, standings)
    return _of_facet(f"{title} ({setting(facet)})", facet, claims, standings, _limits(facet))


def _of_facet(
    title: str, facet: Facet, claims: Claims, standings: Standings, limits: list[str]
) -> Insight:
    cells = summaries(facet.cells)
    sure, ids = _sureness(cells, standings), list(dict.fromkeys(cell.cell_id for cell in cells))
    return Insight(title, claims.shown, claims.not_shown, sure, limits, ids)


def _sureness(cells: Sequence[CellSummary], standings: Standings) -> str:
    """Text: what the intervals cover, from the cell with the fewest launches."""
    launches = [cell.launches for cell in cells if cell.launches]
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


def _flag_limits(cells: Sequence[CellSummary]) -> list[str]:
    counts = Counter(flag for cell in cells for flag in cell.flags)
    return [
        f"{n} of {len(cells)} cells {flag.replace('_', ' ')}"
        + (f" ({LIMITS[flag]})" if flag in LIMITS else "")
        for flag, n in counts.items()
    ]


def _limits(facet: Facet) -> list[str]:
    texts = _flag_limits(summaries(measured(facet.cells)))
    experts = {s.cell.layer.num_experts for s in summaries(without_serial(facet.cells))}
    if facet.axis == "world_size" and len(experts) > 1:
        texts.append("experts grow with ranks, so this is neither strong nor weak scaling")
    broken = [cell.cell_id for cell in summaries(facet.cells) if not cell.measured]
    if broken:
        texts.append(f"{len(broken)} cells have no time: {', '.join(broken)}")
    return texts


def _batch_split(facet: Facet, standings: Standings) -> Insight | None:
    """The reference's claim that splitting the batch speeds tp up: sharded tokens or replicated."""
    places = {place.x: place for place in standings.places(facet)}
    if not {"replicated", "sharded"} <= set(places):
        return None
    both = set(places["replicated"].cells) & set(places["sharded"].cells) - {SERIAL}
    if not any(name.split(" ")[0] == "tp" for name in both):
        return None
    claims = Claims()
    for name in sorted(both):
        sharded, whole = places["sharded"].cells[name], places["replicated"].cells[name]
        result = standings.verdict(sharded, whole)
        forms = [f"{name} with {tokens} tokens" for tokens in ("sharded", "replicated")]
        text = verdict.sentence(forms[0], forms[1], result, standings.threshold)
        claims.add(findings.is_difference(result), text, [sharded, whole])
    limit = "sharded ranks end with their own tokens' outputs only, replicated ones with all"
    title = f"Batch split in tp ({setting(facet)})"
    return _of_facet(title, facet, claims, standings, [limit, *_limits(facet)])
