"""Paragraphs of sentences: the verdict in short, then one for every axis that was swept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from analysis.data.cell_summary import measured, summaries
from analysis.data.facets import Facet, axes, facets, setting, title_of
from analysis.data.series import without_serial
from analysis.stats import findings
from analysis.stats.comparisons import Standings
from analysis.stats.verdict import NOISE_THRESHOLD
from analysis.text import headline, phrases, sentences
from analysis.text.phrases import listing
from analysis.text.sentences import Claim
from runners.host.project_paths import BENCH
from runners.records import forced_balance

# Axes that people ask for, and the experiment that measures each.
EXPERIMENTS = {
    "topk_requested": "reference_topk",
    "batch_size": "reference_batch",
    "world_size": "reference_ranks",
}
MAX_FACETS = 3
SHARDED = (
    "with sharded tokens a rank ends with the outputs of its own tokens, with replicated tokens "
    "with those of all"
)


@dataclass
class Insight:
    """A paragraph: its sentences, what to know to judge them, and the cells they rest on."""

    title: str
    claims: list[Claim]
    notes: dict[str, str] = field(default_factory=dict)  # "How sure", "Limit" -> sentence
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

    def lines(self, detail: bool = False) -> list[str]:
        """For a terminal: a line a sentence. With `detail` the figures behind each, with numbers in
        brackets that are places among the cells, which are listed below."""
        lines = [self.title]
        for claim in self.claims:
            lines.append(f"  {claim.text}.")
            if detail and (claim.detail or claim.cells):
                lines.append(f"    {claim.detail or 'no figures'} [{self.refs(claim)}]")
        lines += [f"  {name}: {text}." for name, text in self.notes.items()]
        if detail and self.cells:
            numbered = ", ".join(f"{n} {cell}" for n, cell in enumerate(self.cells, 1))
            lines.append(f"  Cells: {numbered}.")
        return lines


def headline_and_insights(
    frame: pd.DataFrame, cells: pd.DataFrame, threshold: float = NOISE_THRESHOLD
) -> tuple[Insight, list[Insight]]:
    """The insight "In short", and one per facet of every axis; their comparisons are corrected
    together."""
    swept = axes(cells)
    if "load" in swept:  # which has the workload's parameter in it
        swept = [axis for axis in swept if axis != "workload_parameter"]
    by_axis = {axis: facets(cells, axis)[:MAX_FACETS] for axis in swept}
    every = [facet for of_axis in by_axis.values() for facet in of_axis]
    meetings = headline.meetings(cells)
    changes = sum(findings.changes_count(facet) for facet in every)
    standings = Standings(frame, every, threshold, also=changes, meetings=meetings)
    claims = headline.claims(cells, meetings, every, standings)
    rows = summaries(measured(cells))
    notes = {
        **forced_balance.notes(cell.cell.workload.kind for cell in rows),
        "How sure": headline.sureness(rows, standings),
        "Limit": headline.limit(cells),
        "Not varied": "" if not rows else _not_varied(by_axis),
    }
    used = sorted({cell for claim in claims for cell in claim.cells})
    clusters = dict.fromkeys(cell.cluster for cell in rows if cell.cluster)
    title = "; ".join(["In short", *clusters])
    short = Insight(title, claims, _known(notes), used)
    leads = findings.leads(meetings, standings)
    one_wins = len(leads) == 1 and len(leads[0].leaders) == 1
    winner_said = len(every) == 1 or one_wins
    paragraphs = [_along(facet, standings, winner_said) for facet in every]
    return short, [paragraph for paragraph in paragraphs if paragraph.claims]


def _known(notes: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in notes.items() if text}


def _not_varied(by_axis: Mapping[str, object]) -> str:
    """The axes that people ask for and that were not swept, with the commands that sweep them."""
    missing = [axis for axis in EXPERIMENTS if axis not in by_axis]
    if not missing:
        return ""
    names = listing([title_of(axis) for axis in missing])
    commands = listing([f"experiment={EXPERIMENTS[axis]}" for axis in missing], "or")
    return f"{names}; next: {BENCH} {commands}"


def _along(facet: Facet, standings: Standings, winner_said: bool) -> Insight:
    """How times depend on the axis and, unless the headline says it, who is fastest along it."""
    claims = []
    meeting = [place for place in standings.places(facet) if len(place.cells) > 1]
    if not winner_said and meeting and facet.axis != "tokens":
        where = headline.along_axis(facet.axis, standings.places(facet))
        claims.append(sentences.standing(standings.places(facet), standings, where))
    claims += sentences.along(facet, standings)
    ids = list(dict.fromkeys(cell.cell_id for cell in summaries(facet.cells)))
    title = phrases.of_axis(facet.axis).removeprefix("the ")
    title = f"{title[0].upper()}{title[1:]}"
    title += f" ({words})" if (words := setting(facet)) else ""
    return Insight(title, claims, _known({"Note": _note(facet)}), ids)


def _note(facet: Facet) -> str:
    """What else changes along this axis."""
    experts = {s.cell.layer.num_experts for s in summaries(without_serial(facet.cells))}
    if facet.axis == "world_size" and len(experts) > 1:
        return "experts grow with ranks, so this is neither strong nor weak scaling"
    return SHARDED if facet.axis == "tokens" else ""
