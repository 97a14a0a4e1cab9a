"""Where the difference of two measured cells comes from: parts with intervals, A minus B.

Each quantity is a median: of the rounds for a step, of the passes for phases, of the launches where
there are several. An interval is the value +- t * s * sqrt(n / (n - 1)): s is the standard
deviation of the part when rounds and passes, or launches where there are five, are drawn again with
replacement (the bootstrap), t is Student's for n - 1, and n is how many were drawn from. Rounds
that both cells share are drawn together.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from analysis.stats.pairing import Series, Unit
from analysis.stats.parts import (
    AFTER_LINKS,
    BEFORE_LINKS,
    BYTES,
    UNEXPLAINED,
    State,
    Work,
    decompose,
)
from analysis.stats.verdict import MIN_LAUNCHES, factor, logs, t_quantile
from runners.records.stats import CONFIDENCE

LINKS = ("dispatch", "combine", "gradients")  # phases in which ranks send
BUSY = ("experts", "backward")
MOVES = ("permute", "unpermute")
IDLE = ("other",)
ROUTER = ("router",)
LOCAL = (ROUTER, MOVES, ("experts",), ("backward",), IDLE)  # all but links and waiting
FIELDS = ("total", "experts", "links", "backward", "router", "rows", "host")
DRAWS, SEED = 400, 0  # of the bootstrap

Phases = Mapping[str, float]  # ms by phase, of one rank in one pass
Passes = Mapping[Unit, Sequence[Sequence[Phases]]]  # by launch, pass, rank
Split = Callable[[State, State], Mapping[str, float]]


@dataclass(frozen=True)
class Side:
    """One of the two cells: its time of a step, its phases, and by rank what it needs (see
    `parts.Work`). `facts` has words by part: what this side has of it; `absent`, by part: why the
    records do not have it."""

    name: str
    median_ms: float
    series: Series
    passes: Passes
    experts: Sequence[Mapping[str, float]] = ()
    links: Sequence[Mapping[str, float]] = ()
    backward: Sequence[Mapping[str, float]] = ()
    over: float = 1.0
    host_waits_ms: float = 0.0
    kernel: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A part of the difference in ms, A minus B, with its interval; `ms` is None where the records
    do not have it. `about` are words: what both sides have of it, or what is missing."""

    key: str
    ms: float | None
    low: float = math.nan
    high: float = math.nan
    about: str = ""


@dataclass(frozen=True)
class Explanation:
    """The difference and its parts, which add up to it; the last one is what is not explained."""

    names: tuple[str, str]
    medians_ms: tuple[float, float]
    total: Part
    parts: list[Part]
    basis: str  # what the intervals cover

    @property
    def largest(self) -> Part:
        """The largest part, what is not explained included."""
        return max(self.parts, key=lambda part: abs(part.ms or 0.0))


class Draws:
    """One side's rounds and passes, as states; draws from them."""

    def __init__(self, side: Side) -> None:
        self.side, self.units = side, list(side.series.medians)
        passes = [one for unit in self.units for one in side.passes.get(unit, ()) if one]
        self.by_launch: dict[Unit, list[dict[str, float]]] = {}
        self.work = Work(over=side.over, host_waits_ms=side.host_waits_ms)
        if passes:
            busy, sending, idle = (slowest(passes, names) for names in (BUSY, LINKS, IDLE))
            self.by_launch = {
                unit: [_fields(one, busy, sending, idle) for one in side.passes[unit] if one]
                for unit in self.units
                if any(side.passes.get(unit, ()))
            }
            self.work = Work(
                _of_rank(side.experts, busy), _of_rank(side.links, sending),
                _of_rank(side.backward, busy), side.over, side.host_waits_ms, side.kernel,
            )  # fmt: skip

    @property
    def launches(self) -> list[list[dict[str, float]]]:
        """The passes of each launch that has some."""
        return list(self.by_launch.values())

    @property
    def passes(self) -> int:
        return sum(map(len, self.launches))

    @property
    def rounds(self) -> int:
        return sum(map(len, self.side.series.rounds.values()))

    def state(self) -> State:
        """The point estimate."""
        return _state(self.side.median_ms, self.launches)

    def of_launches(self, chosen: Sequence[int]) -> State:
        """A state of these launches."""
        units = [self.units[i] for i in chosen]
        known = [self.by_launch[unit] for unit in units if unit in self.by_launch]
        step = _center([self.side.series.medians[unit] for unit in units])
        return _state(step, known or self.launches)

    def of_rounds(self, rounds: Mapping[Unit, Sequence[float]], rng: random.Random) -> State:
        """A state of these rounds, and of passes drawn again from every launch."""
        step = _center([statistics.median(values) for values in rounds.values()])
        return _state(step, [rng.choices(one, k=len(one)) for one in self.launches])


def explain(a: Side, b: Side) -> Explanation:
    """The parts of A's time minus B's. Without phases on a side, all of it is unexplained."""
    both = Draws(a), Draws(b)
    lacking = " and ".join(one.side.name for one in both if not one.launches)

    def parts_of(x: State, y: State) -> Mapping[str, float]:
        if lacking:
            return {UNEXPLAINED: x.step - y.step}
        return decompose(x, both[0].work, y, both[1].work)

    return explained(both, parts_of, f"no phases of {lacking}" if lacking else "")


def explained(both: tuple[Draws, Draws], split: Split, lacking: str = "") -> Explanation:
    """The explanation whose parts `split` gives, with intervals."""
    sides = both[0].side, both[1].side
    values = split(both[0].state(), both[1].state())
    total = sides[0].median_ms - sides[1].median_ms
    spreads, by_launch = _deviations(both, split)
    timed = [one for one in both if one.units]  # a model is not
    launches = min(len(one.units) for one in timed)
    rounds = launches if by_launch else min(one.rounds for one in timed)
    passes = launches if by_launch else min(one.passes for one in timed)
    absent = {**sides[0].absent, **sides[1].absent}
    keys = _ordered([*values, *absent, *((*BEFORE_LINKS, *AFTER_LINKS) if lacking else ())])
    parts = []
    for key in keys:
        if key in absent or key not in values:
            parts.append(Part(key, None, about=absent.get(key, lacking)))
            continue
        half = _half_width(spreads[key], rounds if lacking else min(rounds, passes))
        value = values[key] + 0.0  # no -0.0
        parts.append(Part(key, value, value - half, value + half, _facts(key, *sides)))
    half = _half_width(spreads["total"], rounds)
    whole = Part("total", total, total - half, total + half)
    some = f"{launches} launches" if launches > 1 else "one launch"
    basis = f"over {some}" if by_launch else f"by rounds and passes of {some}"
    names, medians = (sides[0].name, sides[1].name), (sides[0].median_ms, sides[1].median_ms)
    return Explanation(names, medians, whole, parts, basis)


def slowest(passes: Sequence[Sequence[Phases]], names: Sequence[str]) -> int:
    """The rank with the longest median time in these phases."""
    ranks = range(min(map(len, passes)))
    return max(ranks, key=lambda r: statistics.median(_sum(one[r], names) for one in passes))


def _sum(rank: Phases, names: Sequence[str]) -> float:
    return sum(rank.get(name, 0.0) for name in names)


def _fields(ranks: Sequence[Phases], busy: int, sending: int, idle: int) -> dict[str, float]:
    links = _sum(ranks[sending], LINKS)
    local = [max(_sum(rank, names) for rank in ranks) for names in LOCAL]
    return {
        "total": links + sum(local),
        "experts": ranks[busy].get("experts", 0.0),
        "backward": ranks[busy].get("backward", 0.0),
        "links": links,
        "host": _sum(ranks[idle], IDLE),
        "router": statistics.fmean(_sum(rank, ROUTER) for rank in ranks),
        "rows": statistics.fmean(_sum(rank, MOVES) for rank in ranks),
    }


def _of_rank(needs: Sequence[Mapping[str, float]], rank: int) -> Mapping[str, float]:
    return needs[rank] if rank < len(needs) else {}


def _state(step: float, launches: Sequence[Sequence[Mapping[str, float]]]) -> State:
    """Of each field the median over the launches of the medians over their passes."""
    if not launches:
        return State(step, 0.0)
    middle = {
        name: statistics.median(statistics.median(p[name] for p in one) for one in launches)
        for name in FIELDS
    }
    return State(step, **middle)


def _center(medians: Sequence[float]) -> float:
    """As `analysis.stats.summarize` puts launches together."""
    if len(medians) < MIN_LAUNCHES:
        return statistics.median(medians)
    return factor(statistics.fmean(logs(medians)))


def _deviations(both: tuple[Draws, Draws], split: Split) -> tuple[dict[str, float], bool]:
    """The standard deviation of the total and of every part over draws, and whether launches were
    drawn."""
    rng = random.Random(SEED)
    by_launch = min(len(one.units) for one in both if one.units) >= MIN_LAUNCHES
    drawn: dict[str, list[float]] = {}
    for _ in range(DRAWS):
        a, b = _draw_launches(both, rng) if by_launch else _draw_rounds(both, rng)
        for key, value in {**split(a, b), "total": a.step - b.step}.items():
            drawn.setdefault(key, []).append(value)
    return {key: statistics.pstdev(values) for key, values in drawn.items()}, by_launch


def _draw_launches(both: tuple[Draws, Draws], rng: random.Random) -> tuple[State, State]:
    """Launches that both cells share are drawn together."""
    first = [rng.randrange(len(both[0].units)) for _ in both[0].units]
    together = both[0].units == both[1].units
    second = first if together else [rng.randrange(len(both[1].units)) for _ in both[1].units]
    a, b = (
        one.of_launches(chosen) if chosen else one.state()
        for one, chosen in zip(both, (first, second), strict=True)
    )
    return a, b


def _draw_rounds(both: tuple[Draws, Draws], rng: random.Random) -> tuple[State, State]:
    """Rounds that both cells share are drawn together."""
    chosen: tuple[dict[Unit, list[float]], dict[Unit, list[float]]] = {}, {}
    rounds = both[0].side.series.rounds, both[1].side.series.rounds
    for unit in dict.fromkeys((*rounds[0], *rounds[1])):
        here = [one.get(unit, {}) for one in rounds]
        shared = [key for key in here[0] if key in here[1]]
        keys = rng.choices(shared, k=len(shared)) if shared else []
        for own, into in zip(here, chosen, strict=True):
            picked = keys or (rng.choices(list(own), k=len(own)) if own else [])
            if picked:
                into[unit] = [own[key] for key in picked]
    a, b = (
        one.of_rounds(some, rng) if some else one.state()
        for one, some in zip(both, chosen, strict=True)
    )
    return a, b


def _half_width(deviation: float, count: int) -> float:
    """nan with fewer than two values to draw from."""
    if count < 2:
        return math.nan
    return t_quantile((1 + CONFIDENCE) / 2, count - 1) * deviation * math.sqrt(count / (count - 1))


def _ordered(keys: Sequence[str]) -> list[str]:
    present = dict.fromkeys(keys)
    sent = [key for key in present if key.startswith(BYTES)]
    others = [k for k in present if k not in (*BEFORE_LINKS, *sent, *AFTER_LINKS)]
    known = [*BEFORE_LINKS, *sent, *others, *AFTER_LINKS]
    return [key for key in known if key in present]


def _facts(key: str, a: Side, b: Side) -> str:
    """ "8 MiB against 4 MiB", or what both have."""
    words = [side.facts.get(key, "") for side in (a, b)]
    if words[0] == words[1]:
        return words[0]
    return f"{words[0] or 'nothing'} against {words[1] or 'nothing'}"
