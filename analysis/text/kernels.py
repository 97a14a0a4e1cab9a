"""`kernels`: the sentences. Which expert kernel is fastest where and by how much, how far that is
from the roofline, what other systems do better, what waits, fails or is refused."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from analysis.data.cell_summary import CellSummary
from analysis.stats import findings, kernels, verdict
from analysis.stats.findings import Lead
from analysis.stats.kernels import RIVAL, Entrant, Kernels, Rival, Setting, Uneven
from analysis.text import headline, settings
from analysis.text.insights import Insight
from analysis.text.phrases import listing
from analysis.text.sentences import Claim, claim
from runners.records import forced_balance

MOST_NAMED = 4  # entrants of one tie, and of the overview
MOST_TIES = 3  # groups that share the first place, and are written out
MOST_REASONS = 3  # of cells without a time
LONGEST = 160  # characters of a reason


def short(view: Kernels, refused: Sequence[tuple[str, str]] = ()) -> Insight:
    """The paragraph. `refused` are (overrides, reason) of cells that never started."""
    claims = [
        *_fastest(view),
        *_rivals(view),
        *_roofline(view),
        *_waits(view),
        *_uneven(view),
        *_problems(view),
        *_refused(refused),
    ]
    timed = [e.cell for s in view.settings for e in s.timed]
    kinds = [cell.cell.workload.kind for cell in timed]
    sure = headline.sureness(timed, view.standings)
    notes = {**forced_balance.notes(kinds), **({"How sure": sure} if sure else {})}
    return Insight("In short", claims, notes, sorted({c for one in claims for c in one.cells}))


def _at(view: Kernels, some: Sequence[Setting], of: Sequence[Setting]) -> str:
    """ " at 2 of 4 settings (1 token)"; empty where there is one setting."""
    names = [*view.varied, *(["graph"] if len({s.fixed.get("graph") for s in of}) > 1 else [])]
    words = settings.some([s.fixed for s in some], [s.fixed for s in of], names)
    return f" {words}" if words else ""


def _geometric(ratios: Sequence[float], how: str) -> str:
    """ "1.4 times as long", or of several their geometric mean with its range."""
    low, high = _factor(min(ratios)), _factor(max(ratios))
    text = f"{_factor(statistics.geometric_mean(ratios))} times as {how}"
    return f"{text} (geometric mean; {low} to {high})" if low != high else text


def _factor(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 9.995 else f"{ratio:,.0f}"


def _named(names: Sequence[str]) -> str:
    """All of a few names, of many the first ones and how many others there are."""
    if len(names) <= MOST_NAMED:
        return listing(names)
    shown = MOST_NAMED - 1
    return listing([*names[:shown], f"{len(names) - shown} others"])


def _fastest(view: Kernels) -> list[Claim]:
    compared = view.compared
    if not compared:
        return [_nothing_to_compare(view)]
    groups: dict[tuple[str, ...], list[Setting]] = {}
    for setting in compared:
        groups.setdefault(tuple(view.leaders(setting)), []).append(setting)
    ordered = sorted(groups.items(), key=lambda item: (len(item[0]) > 1, -len(item[1])))
    alone = [(names[0], at) for names, at in ordered if len(names) == 1]
    tied = [(names, at) for names, at in ordered if len(names) > 1]
    claims = [_alone(view, name, at) for name, at in alone]
    claims += [_tied(view, names, at) for names, at in tied[:MOST_TIES]]
    if left := tied[MOST_TIES:]:
        count = sum(len(at) for _, at in left)
        claims.append(claim(f"At {count} more settings others share the first place"))
    if tied and len(compared) > 1:
        claims.append(_overview(view))
    return claims


def _nothing_to_compare(view: Kernels) -> Claim:
    timed = [e for s in view.settings for e in s.timed]
    names = list(dict.fromkeys(e.series for e in timed))
    if not names:
        return claim("No cell has a time, so there is nothing to compare")
    why = "so there is no other to compare it with" if len(names) == 1 else (
        "but no two at the same setting, so they are not compared")  # fmt: skip
    verb = "Only " if len(names) == 1 else ""
    were = "was" if len(names) == 1 else "were"
    return claim(f"{verb}{listing(names)} {were} measured, {why}", [e.cell for e in timed])


def _alone(view: Kernels, name: str, at: Sequence[Setting]) -> Claim:
    """ "liger is fastest at 3 of 4 settings (128 tokens), grouped takes 1.4 times as long"."""
    factors = [view.standings.lead(s.place, name) for s in at]
    nexts = list(dict.fromkeys(_next(s, name) for s in at))
    rival = nexts[0] if len(nexts) == 1 else "the next"
    text = f"{name} is fastest{_at(view, at, view.compared)}: {rival} takes "
    return claim(text + _geometric(factors, "long"), [e.cell for s in at for e in s.timed])


def _next(setting: Setting, name: str) -> str:
    return next(e.series for e in setting.timed if e.series != name)


def _tied(view: Kernels, names: tuple[str, ...], at: Sequence[Setting]) -> Claim:
    lead = Lead(names, tuple(s.place for s in at))
    where = _at(view, at, view.compared)
    if findings.too_few_samples(lead, view.standings):
        text = f"{_named(names)} have too few samples to be compared{where}"
    elif findings.all_same(lead, view.standings):
        text = f"{_named(names)} are fastest{where} and take the same time (within " \
               f"{view.standings.threshold:.0%})"  # fmt: skip
    else:
        text = f"{_named(names)} share the first place{where}: they are not told apart"
    return claim(text, [e.cell for s in at for e in s.timed])


def _overview(view: Kernels) -> Claim:
    """At how many settings each is first, alone or with others."""
    counts: dict[str, int] = {}
    for setting in view.compared:
        for name in view.leaders(setting):
            counts[name] = counts.get(name, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{name} at {count}" for name, count in ordered]
    listed = ", ".join(parts[:MOST_NAMED])
    if left := parts[MOST_NAMED:]:
        listed += f", {len(left)} others at {ordered[MOST_NAMED][1]} or fewer"
    return claim(f"First, alone or with others, of {len(view.compared)} settings: {listed}")


def _rivals(view: Kernels) -> list[Claim]:
    """Whether another system is surely faster than all of ours."""
    rivals = view.rivals()
    if not rivals:
        return []
    cells = [e.cell for r in rivals for e in r.setting.timed]
    beaten, may = ([r for r in rivals if r.beats], [r for r in rivals if r.may])
    of = [r.setting for r in rivals]
    how = _geometric([r.ratio for r in rivals], "long as the best kernel of ours")
    text = f"The best other system takes {how}; "
    if view.graphs:
        text = f"Eager steps beside eager ones, graphs beside graphs: the{text.removeprefix('The')}"
    if not beaten:
        text += f"none is shown to beat all of ours by more than {RIVAL:.0%}"
    else:
        text += f"shown to beat all of ours by more than {RIVAL:.0%}: "
        text += "; ".join(_beating(view, beaten, of))
    if may:
        more = "others" if beaten else "settings" if len(rivals) > 1 else ""
        open_at = f"at {len(may)} {more} " if more else ""
        text += f" ({open_at}the intervals leave it open)"
    return [claim(text, cells)]


def _beating(view: Kernels, beaten: Sequence[Rival], of: Sequence[Setting]) -> list[str]:
    by_name: dict[str, list[Rival]] = {}
    for rival in beaten:
        by_name.setdefault(rival.entrant.series, []).append(rival)
    return [
        f"{name}{_at(view, [r.setting for r in group], of)}, "
        f"{_geometric([1 / r.ratio for r in group], 'fast')}"
        for name, group in by_name.items()
    ]


def _roofline(view: Kernels) -> list[Claim]:
    """How far the fastest of every setting is from the roofline."""
    best = [s.timed[0] for s in view.settings if s.timed]
    known = [(e.fraction, s) for s in view.settings if s.timed and
             math.isfinite((e := s.timed[0]).fraction)]  # fmt: skip
    if not best:
        return []
    if not known:
        text = "How far from the roofline is not known: the records have no calibration of this "
        return [claim(f"{text}machine and dtype (measure.calibrate=true measures it)")]
    cells = [e.cell for e in best]
    (low, lowest), (high, highest) = min(known, key=_first), max(known, key=_first)
    if len(known) == 1:
        return [claim(f"The fastest reaches {percent(low)} of the roofline", cells)]
    text = f"The fastest of each setting reaches {percent(low)} of the roofline"
    text += f" ({settings.words(lowest.fixed, view.varied)}) to {percent(high)}"
    return [claim(f"{text} ({settings.words(highest.fixed, view.varied)})", cells)]


def _first(pair: tuple[float, Setting]) -> float:
    return pair[0]


def percent(fraction: float) -> str:
    """ "34%", of little "0.4%"; a dash for what is not known."""
    if not math.isfinite(fraction):
        return "-"
    return f"{fraction:.0%}" if fraction >= 0.0995 else f"{fraction:.1%}"


def _waits(view: Kernels) -> list[Claim]:
    """Who makes the host wait for the GPU; nothing where no cell ran on one."""
    known = [(e, e.host_waits) for s in view.settings for e in s.timed if e.host_waits is not None]
    if not known:
        return []
    most: dict[str, int] = {}
    for entrant, count in known:
        if count:
            most[entrant.series] = max(count, most.get(entrant.series, 0))
    if not most:
        return [claim("None makes the host wait for the GPU", [e.cell for e, _ in known])]
    ordered = sorted(most.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{name} {count}" for name, count in ordered)
    text = f"In a step the host waits for the GPU, at most so many times: {listed}"
    rest = {e.series for e, _ in known} - set(most)
    return [claim(f"{text}; the others never" if rest else text, [e.cell for e, n in known if n])]


def _uneven(view: Kernels) -> list[Claim]:
    """What uneven splits cost: every entrant's geometric mean, the dearest first."""
    groups = kernels.by_series(view.uneven)
    if not groups:
        return []
    means = {n: statistics.geometric_mean([_ratio(u) for u in g]) for n, g in groups.items()}
    ordered = sorted(means, key=lambda name: -means[name])
    counted = [u for group in groups.values() for u in group]
    slower = len(kernels.shown_slower(counted))
    faster = sum(bool(u.verdict and u.verdict.word == verdict.FASTER) for u in counted)
    loads = listing(list(dict.fromkeys(u.entrant.cell.load for u in counted)), "or")
    ends = ordered if len(ordered) < 3 else (ordered[0], ordered[-1])
    parts = [f"{_geometric([_ratio(u) for u in groups[name]], 'long')} in {name}" for name in ends]
    if len(ordered) > 2:
        parts = [f"{parts[0]}, the most,", f"{parts[1]}, the least"]
    text = f"Uneven splits: with {loads} in place of {forced_balance.LABEL} a step takes "
    text += f"{listing(parts)}; "
    text += f"of {len(counted)} pairs {slower} are shown to be slower"
    text += f" and {faster} faster" if faster else ""
    return [claim(text, [u.entrant.cell for u in counted])]


def _ratio(one: Uneven) -> float:
    assert one.verdict is not None
    return one.verdict.ratio


def _problems(view: Kernels) -> list[Claim]:
    """Cells without a time: who, how, where, and the first reason."""
    groups: dict[tuple[str, str], list[tuple[Entrant, Setting]]] = {}
    for setting in view.settings:
        for entrant in setting.entrants:
            if not entrant.cell.measured:
                key = (entrant.series, entrant.cell.outcome)
                groups.setdefault(key, []).append((entrant, setting))
    claims = []
    for (name, outcome), group in groups.items():
        where = _at(view, [s for _, s in group], view.settings)
        why = reason(group[0][0].cell)
        text = f"{name} {OUTCOMES.get(outcome, outcome)}{where}" + (f": {why}" if why else "")
        claims.append(claim(text, [e.cell for e, _ in group]))
    return claims


OUTCOMES = {
    "wrong": "computed a wrong result", "checked": "was checked and not timed",
    "interrupted": "was interrupted",
}  # fmt: skip


def reason(cell: CellSummary) -> str:
    """Why a cell has no time, in one line; empty where that is not recorded."""
    why = cell.error_message or cell.gate_detail or "; ".join(cell.notes)
    return _cut(why)


def _cut(text: str) -> str:
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= LONGEST else f"{line[:LONGEST].rstrip()}..."


def _refused(refused: Sequence[tuple[str, str]]) -> list[Claim]:
    """What cannot run here at all, by its reason."""
    by_reason: dict[str, int] = {}
    for _, why in refused:
        by_reason[why] = by_reason.get(why, 0) + 1
    if not by_reason:
        return []
    ordered = sorted(by_reason.items(), key=lambda item: -item[1])
    parts = [f"{count} cell{'s' * (count != 1)}, {_cut(why)}"
             for why, count in ordered[:MOST_REASONS]]  # fmt: skip
    if left := ordered[MOST_REASONS:]:
        parts.append(f"{sum(count for _, count in left)} more for {len(left)} other reasons")
    return [claim(f"Refused before the start: {'; '.join(parts)}")]
